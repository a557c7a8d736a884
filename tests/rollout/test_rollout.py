"""Examples to captions: sharded, whatever the batch size."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import pytest
import tiny
from PIL import Image

from balcap_jax.data.examples import Example
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.inputs import Prompts
from balcap_jax.parallel.sharding import make_mesh, replicated
from balcap_jax.rollout import rollout as rollout_room
from balcap_jax.rollout.rollout import Captioner

POLICY, PARAMS = tiny.policy()
POOL = jax.device_get(tiny.prompts(8))
EXAMPLES = [Example(str(i), Image.new("RGB", (8, 8)), "Describe.", "") for i in range(8)]


@dataclasses.dataclass(frozen=True)
class TinyProcessor(Processor):
    """Example "3" is prompt 3 of POOL; a caption in words is its token ids."""

    def prompts(self, examples: Sequence[Example]) -> Prompts:
        index = np.array([int(example.id) for example in examples])
        return jax.tree.map(lambda x: x[index], POOL)

    def decode(self, tokens) -> list[str]:
        return [" ".join(map(str, row)) for row in tokens.tolist()]


PROCESSOR = TinyProcessor(tiny.CONFIG, None, None, "")


def captioner(mesh, *, processor=PROCESSOR, **options) -> Captioner:
    options = {"group_size": 2, "max_new_tokens": 5, **options}
    return Captioner(POLICY, processor, mesh, **options)


def tiny_stops():
    """Ten of 48 words end a caption."""
    return dataclasses.replace(tiny.CONFIG, stop_tokens=tuple(range(10, 20)))


@pytest.fixture(scope="module")
def one():
    return captioner(make_mesh(devices=jax.devices()[:1]))


@pytest.fixture(scope="module")
def eight():
    return captioner(make_mesh())


def test_captions_are_shorter_than_the_policys_positions():
    mesh = make_mesh(devices=jax.devices()[:1])
    positions = tiny.CONFIG.text.max_position_embeddings
    captioner(mesh, max_new_tokens=positions - 1)
    for count in (positions, 2**20):
        with pytest.raises(UserError, match=f"max_new_tokens={count} must be below .*={positions}"):
            captioner(mesh, max_new_tokens=count)


def test_rollout_of_a_batch(eight):
    generation = eight.generate(PARAMS, EXAMPLES, jax.random.key(0))
    tokens = generation.rollout.tokens
    assert tokens.shape == (8, 2, 5)
    assert tokens.addressable_shards[0].data.shape == (1, 2, 5)
    assert generation.prompts.tokens.addressable_shards[0].data.shape[0] == 1
    np.testing.assert_allclose(
        generation.features, jax.jit(POLICY.encode_images)(PARAMS, POOL.images), atol=1e-5
    )
    texts = eight.texts(generation.rollout)
    assert [len(group) for group in texts] == [2] * 8
    assert texts[3][1] == " ".join(map(str, np.asarray(tokens)[3, 1]))
    assert not np.isin(tokens, POLICY.config.banned_tokens).any()


@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.slow), 2, 5])
@pytest.mark.one_jax
def test_captions_are_told_as_they_end(one, eight, chunk, monkeypatch):
    """Each once, the same as in one program, the ones that end early before the others."""
    monkeypatch.setattr(rollout_room, "_CHUNK", chunk)
    stopping = dataclasses.replace(PROCESSOR, config=tiny_stops())
    for mesh in (one.mesh, eight.mesh):
        by = captioner(mesh, processor=stopping, group_size=3)
        told: list[tuple] = []
        generation = by.generate(
            PARAMS, EXAMPLES, jax.random.key(0), tell=lambda *caption, to=told: to.append(caption)
        )
        whole = by.sampled(by.generate(PARAMS, EXAMPLES, jax.random.key(0)).rollout)
        assert by.sampled(generation.rollout) == whole
        assert sorted((row, place) for row, place, _ in told) == [
            (row, place) for row in range(8) for place in range(3)
        ]
        assert all(whole[row][place] == caption for row, place, caption in told)
        chunks = [-(-len(caption.ids) // chunk) for *_, caption in told]
        assert chunks == sorted(chunks)
        assert len(set(chunks)) == -(-5 // chunk)  # some end in each chunk


def test_captions_do_not_depend_on_batch_size_or_devices(one, eight):
    key = jax.random.key(5)
    expected = list(eight.captions(PARAMS, EXAMPLES, key, batch_size=8))
    assert len(expected) == 8
    assert len({text for group in expected for text in group}) > 8
    assert list(one.captions(PARAMS, EXAMPLES, key, batch_size=3)) == expected
    # fewer examples than shards: filled up, and the filling is thrown away
    assert list(eight.captions(PARAMS, EXAMPLES[:3], key, batch_size=3)) == expected[:3]


def test_numbers_of_images_choose_their_keys(one):
    key = jax.random.key(5)
    plain = one.generate(PARAMS, EXAMPLES[:3], key)
    moved = one.generate(PARAMS, EXAMPLES[1:4], key, images=[1, 2, 9])
    np.testing.assert_array_equal(plain.rollout.tokens[1:3], moved.rollout.tokens[:2])


def test_a_batch_that_does_not_divide_says_so(eight):
    with pytest.raises(UserError, match="batch of 3 prompts cannot be split over 8 data shards"):
        eight.generate(PARAMS, EXAMPLES[:3], jax.random.key(0))


def test_a_rollout_makes_explicit_transfers_only(eight):
    params = jax.device_put(PARAMS, replicated(eight.mesh))
    key = jax.random.key(0)
    with jax.transfer_guard("disallow"):
        generation = eight.generate(params, EXAMPLES, key)
        assert len(eight.texts(generation.rollout)) == 8
