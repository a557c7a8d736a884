"""Captions depend on their key, prompt and the parameters; their logprobs are the trainer's."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from balcap_jax.models.inputs import Prompts
from balcap_jax.models.logprobs import completion_logprobs
from balcap_jax.models.qwen2_5_vl.policy import Qwen2_5_VL
from balcap_jax.parallel.sharding import BATCH_AXES, make_mesh, replicate, shard_batch
from balcap_jax.plan.hlo import Program
from balcap_jax.rollout import drawing, sampling
from balcap_jax.rollout.decoding import Decoder, Rollout
from balcap_jax.rollout.drawing import draw, nucleus
from balcap_jax.rollout.sampling import caption_keys, sample

BANNED = (tiny.VISION_START, tiny.VISION_END, tiny.IMAGE, tiny.VIDEO)
STOPS = (tiny.STOP, 7, 8)  # three of 48 words, so that some captions end and some are truncated
LENGTH = 12


POLICY, PARAMS = tiny.policy()
# Jitted once: outside jit the scan over the layers would be compiled at every call.
encode = jax.jit(POLICY.encode_images)
invert_cumulative = jax.jit(drawing.invert_cumulative, static_argnames="block")


def run(prompts: Prompts, keys=None, *, policy=POLICY, by=sample, **options) -> Rollout:
    """Samples with the tiny policy, 4 captions per image."""
    if keys is None:
        keys = caption_keys(jax.random.key(3), np.arange(len(prompts.tokens)), group_size=4)
    defaults = {
        "max_new_tokens": LENGTH,
        "banned_tokens": BANNED,
        "stop_tokens": STOPS,
        "pad_token_id": tiny.PAD,
    }
    features = encode(PARAMS, prompts.images)
    return by(policy, PARAMS, prompts, features, keys, **{**defaults, **options})


def in_chunks(policy, params, prompts, features, keys, *, programs=None, steps=5, **options):
    """`sample` by `begin` and `go_on`."""
    programs = programs or sampling.programs_on("cpu")
    decoder = Decoder(policy, **options)
    state, running = programs.begin(decoder, params, prompts, features, keys, steps=steps)
    while int(running):
        state, running = programs.go_on(decoder, state, steps=steps)
    return state.loop.rollout


@pytest.fixture(scope="module")
def rollout() -> Rollout:
    return run(tiny.prompts(3))


def rows(tree, index):
    return jax.tree.map(lambda x: np.asarray(x)[np.asarray(index)], tree)


def assert_same_captions(a: Rollout, b: Rollout):
    """Tokens, mask and end equal; logprobs to rounding, for shapes decide how matmuls are cut."""
    for name in ("tokens", "mask", "ended"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_those_of_the_update(temperature):
    prompts = tiny.prompts(3)
    rollout = run(prompts, temperature=temperature, top_p=0.9)
    features = encode(PARAMS, prompts.images)
    logprobs, _ = jax.jit(
        partial(completion_logprobs, POLICY, temperature=temperature, banned_tokens=BANNED, chunk=5)
    )(PARAMS, prompts, features, rollout.tokens)
    expected = jnp.where(rollout.mask, logprobs, 0.0)
    assert float(jnp.abs(expected).max()) > 1.0
    np.testing.assert_allclose(rollout.logprobs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("compact", "options"),
    [((9, 3), {}), ((6,), {"greedy": 1, "temperature": 0.7, "top_p": 0.9})],
)
@pytest.mark.one_jax
def test_captions_that_go_on_among_fewer_are_the_same(compact, options):
    """Captions of all lengths, ended ones and truncated ones, of prompts of different lengths."""
    prompts = tiny.prompts(3)
    whole = run(prompts, **options)
    assert len({int(n) for n in whole.mask.sum(axis=-1).ravel()}) > 3
    assert 0 < int(whole.ended.sum()) < whole.ended.size
    assert_same_captions(run(prompts, compact=compact, **options), whole)


def test_each_device_goes_on_with_fewer_of_its_own_captions():
    """Six prompts on three devices, whose captions end at different steps."""
    prompts, options = tiny.prompts(6), {"greedy": 1, "temperature": 0.7, "top_p": 0.9}
    whole = run(prompts, **options)
    ends = np.asarray(whole.mask.sum(axis=-1)).reshape(3, -1)
    assert len({tuple(sorted(own)) for own in ends.tolist()}) == 3
    mesh = make_mesh(devices=jax.devices()[:3])
    keys = caption_keys(jax.random.key(3), np.arange(6), group_size=4)

    def on_devices(policy, params, *arrays, **options):
        with jax.set_mesh(mesh):
            return sample(policy, replicate(mesh, params), *shard_batch(mesh, arrays), **options)

    apart = run(prompts, keys, by=on_devices, compact=(5, 2), **options)
    assert_same_captions(apart, whole)
    assert apart.tokens.sharding.is_equivalent_to(NamedSharding(mesh, P(BATCH_AXES)), 3)


@pytest.mark.one_jax
def test_devices_that_go_on_with_fewer_captions_do_not_wait_for_each_other():
    mesh = make_mesh(devices=jax.devices()[:2])
    prompts, keys = tiny.prompts(4), caption_keys(jax.random.key(3), np.arange(4), group_size=4)
    options = {"max_new_tokens": LENGTH, "stop_tokens": STOPS, "pad_token_id": tiny.PAD}
    given = (*shard_batch(mesh, (prompts, encode(PARAMS, prompts.images), keys)),)
    with jax.set_mesh(mesh):
        params = replicate(mesh, PARAMS)
        together, apart = (
            sample.lower(POLICY, params, *given, **options, compact=compact).compile().as_text()
            for compact in ((), (4,))
        )
    assert "all-reduce" in together  # whether any device has a caption that goes on
    assert "all-reduce" not in apart
    assert "all-gather" not in apart


@pytest.mark.parametrize("steps", [1, 5, LENGTH, 99])
def test_chunks_draw_the_same(rollout, steps):
    assert 0 < int(rollout.ended.sum()) < rollout.ended.size
    chunked = run(tiny.prompts(3), by=partial(in_chunks, steps=steps))
    assert_same_captions(chunked, rollout)
    again = run(tiny.prompts(3), by=partial(in_chunks, steps=steps))
    jax.tree.map(np.testing.assert_array_equal, chunked, again)  # to the bit


def test_chunks_use_up_their_own_arrays_alone():
    """The weights that the policy goes on with are no part of what a chunk takes over."""
    prompts = tiny.prompts(2)
    keys = caption_keys(jax.random.key(0), np.arange(2), group_size=3)
    given = PARAMS, prompts, encode(PARAMS, prompts.images), keys
    decoder = Decoder(POLICY, LENGTH, (), tiny.PAD)
    before, _ = sampling.begin(decoder, *given, steps=3)
    after, running = sampling.go_on(decoder, before, steps=3)
    assert (int(running), int(after.loop.step)) == (6, 6)
    assert all(x.is_deleted() for x in jax.tree.leaves(before.loop.cache))
    kept = jax.tree.leaves((given, after))
    assert not any(x.is_deleted() for x in kept if isinstance(x, jax.Array))


def test_chunks_end_with_the_last_caption():
    """Where every token stops a caption, the first chunk is the last, and one step is made."""
    options = {"max_new_tokens": LENGTH, "stop_tokens": tuple(range(48)), "pad_token_id": tiny.PAD,
               "banned_tokens": BANNED}  # fmt: skip
    prompts = tiny.prompts(2)
    keys = caption_keys(jax.random.key(0), np.arange(2), group_size=3)
    features = encode(PARAMS, prompts.images)
    state, running = sampling.begin(
        Decoder(POLICY, **options), PARAMS, prompts, features, keys, steps=4
    )
    assert (int(running), int(state.loop.step)) == (0, 1)


def test_a_gpu_has_a_program_of_its_own_that_draws_the_same(rollout):
    """By options that every compiler knows; what it makes of them only a GPU shows."""
    by = sampling.programs_on("gpu")
    assert by.sample is not sample
    assert sampling.programs_on("cpu").sample is sampling.programs_on("tpu").sample is sample
    assert_same_captions(run(tiny.prompts(3), by=by.sample), rollout)
    assert_same_captions(run(tiny.prompts(3), by=partial(in_chunks, programs=by)), rollout)


def test_cpus_go_on_with_fewer_captions():
    one, two = make_mesh(devices=jax.devices()[:1]), make_mesh(devices=jax.devices()[:2])
    assert sampling.sizes_of_compaction(64, one) == (32, 16)
    assert sampling.sizes_of_compaction(400, one) == (200, 100, 50)
    assert sampling.sizes_of_compaction(31, one) == ()
    assert sampling.sizes_of_compaction(128, two) == (32, 16)
    for split in ({"data": 1, "fsdp": 2}, {"data": 1, "tensor": 2}):
        shared = make_mesh(devices=jax.devices()[:2], **split)
        assert sampling.sizes_of_compaction(128, shared) == ()


def test_each_token_is_drawn_by_a_number_of_its_own():
    """Word by word, from a sorted list of all words and the number of this caption and step."""
    prompts = tiny.prompts(2)
    keys = caption_keys(jax.random.key(3), np.arange(2), group_size=4)
    options = {"temperature": 0.7, "top_p": 0.9, "stop_tokens": ()}
    tokens = np.asarray(run(prompts, keys, **options).tokens)
    hidden = jax.jit(POLICY.completion_hidden)(
        PARAMS, prompts, encode(PARAMS, prompts.images), tokens
    )
    logits = np.array(POLICY.project(PARAMS, hidden), np.float64) / 0.7
    logits[..., list(BANNED)] = -np.inf
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    found = np.zeros_like(tokens)
    steps = jnp.arange(tokens.shape[-1])
    one = jax.vmap(lambda key, step: jax.random.uniform(jax.random.fold_in(key, step)), (None, 0))
    numbers = np.asarray(jax.jit(jax.vmap(jax.vmap(one, (0, None)), (0, None)))(keys, steps))
    for b, g, step in np.ndindex(tokens.shape):
        own = weights[b, g, step]
        order = np.argsort(-own)
        likelier = np.cumsum(own[order]) - own[order]
        kept = np.zeros_like(own)
        kept[order[likelier < 0.9]] = own[order[likelier < 0.9]]
        number = numbers[b, g, step]
        found[b, g, step] = np.searchsorted(np.cumsum(kept), number * kept.sum(), side="right")
    np.testing.assert_array_equal(tokens, found)


def test_a_caption_ends_at_its_first_stop_token(rollout):
    tokens, mask, ended = map(np.asarray, (rollout.tokens, rollout.mask, rollout.ended))
    assert 0 < ended.sum() < ended.size  # the test sees both kinds
    is_stop = np.isin(tokens, STOPS)
    for b, g in np.ndindex(*ended.shape):
        length = mask[b, g].sum()
        assert length > 0
        assert mask[b, g, :length].all()
        stops = np.flatnonzero(is_stop[b, g, :length])
        assert list(stops) == ([length - 1] if ended[b, g] else [])
        assert ended[b, g] or length == LENGTH
        assert (tokens[b, g, length:] == tiny.PAD).all()
        assert (np.asarray(rollout.logprobs)[b, g, length:] == 0).all()
        assert (np.asarray(rollout.logprobs)[b, g, :length] < 0).all()


@pytest.mark.one_jax
def test_a_stop_token_in_the_last_slot_counts_as_ended(rollout):
    ended = np.asarray(rollout.ended)
    lengths = np.asarray(rollout.mask).sum(-1)
    b, g = np.argwhere(ended & (lengths > 1))[0]
    length = int(lengths[b, g])
    assert run(tiny.prompts(3), max_new_tokens=length).ended[b, g]
    assert not run(tiny.prompts(3), max_new_tokens=length - 1).ended[b, g]


def test_pad_may_be_a_stop_token():
    rollout = run(tiny.prompts(2), stop_tokens=(tiny.PAD, *STOPS))
    last = np.asarray(rollout.mask).sum(-1) - 1
    ends = np.take_along_axis(np.asarray(rollout.tokens), last[..., None], -1)[..., 0]
    np.testing.assert_array_equal(np.isin(ends, (tiny.PAD, *STOPS)), rollout.ended)


def test_same_keys_same_captions_and_other_keys_others(rollout):
    again = run(tiny.prompts(3))
    assert all(map(np.array_equal, again, rollout))
    keys = caption_keys(jax.random.key(4), np.arange(3), group_size=4)
    assert not np.array_equal(run(tiny.prompts(3), keys).tokens, rollout.tokens)
    endless = run(tiny.prompts(3), stop_tokens=())  # short captions may be alike by chance
    assert len(np.unique(np.asarray(endless.tokens)[0], axis=0)) == 4


def test_a_caption_does_not_depend_on_its_batch(rollout):
    prompts = tiny.prompts(3)
    keys = caption_keys(jax.random.key(3), np.arange(3), group_size=4)
    order = [2, 0, 1]
    assert_same_captions(run(rows(prompts, order), keys[np.array(order)]), rows(rollout, order))
    assert_same_captions(run(rows(prompts, [1]), keys[1:2]), rows(rollout, [1]))
    # other neighbours: other prompts, other keys, a longer pad
    neighbours = tiny.prompts(3, seed=9, prefix=prompts.tokens.shape[1] + 5, patches=32)
    own = tiny.prompts(3, prefix=prompts.tokens.shape[1] + 5, patches=32)
    mixed = jax.tree.map(
        lambda n, x: np.concatenate([x[:1], n[1:]]), *jax.device_get((neighbours, own))
    )
    other_keys = caption_keys(jax.random.key(8), np.arange(3), group_size=4)
    mixed_keys = jnp.concatenate([keys[:1], other_keys[1:]])
    assert_same_captions(rows(run(mixed, mixed_keys), [0]), rows(rollout, [0]))


def test_group_size_does_not_change_the_captions_of_a_group(rollout):
    keys = caption_keys(jax.random.key(3), np.arange(3), group_size=2)
    assert_same_captions(run(tiny.prompts(3), keys), jax.tree.map(lambda x: x[:, :2], rollout))


def test_keys_name_the_image_not_its_place():
    keys = caption_keys(jax.random.key(0), np.array([5, 9]), group_size=3)
    again = caption_keys(jax.random.key(0), np.array([9]), group_size=3)
    data = np.asarray(jax.random.key_data(keys)).reshape(6, -1)
    assert len(np.unique(data, axis=0)) == 6
    np.testing.assert_array_equal(data[3:], jax.random.key_data(again)[0])


def test_banned_tokens_are_never_sampled():
    """With all but three words banned and no stop token every slot holds one of the three."""
    allowed = {10, 11, 12}
    banned = tuple(set(range(48)) - allowed)
    rollout = run(tiny.prompts(2), banned_tokens=banned, stop_tokens=())
    assert set(np.unique(rollout.tokens)) == allowed
    assert np.isfinite(rollout.logprobs).all()
    assert not np.asarray(rollout.ended).any()
    greedy = run(tiny.prompts(2), banned_tokens=banned, stop_tokens=(), temperature=0.0)
    assert set(np.unique(greedy.tokens)) <= allowed


def test_greedy_takes_the_likeliest_token_whatever_the_key():
    prompts = tiny.prompts(2)
    rollout = run(prompts, temperature=0.0, stop_tokens=())
    np.testing.assert_array_equal(rollout.tokens[:, 0], rollout.tokens[:, 1])
    features = encode(PARAMS, prompts.images)
    hidden = jax.jit(POLICY.completion_hidden)(PARAMS, prompts, features, rollout.tokens)
    logits = np.array(POLICY.project(PARAMS, hidden))
    logits[..., list(BANNED)] = -np.inf
    np.testing.assert_array_equal(rollout.tokens, logits.argmax(-1))


def test_samples_follow_the_distribution():
    """20,000 draws of 4 tokens: shares within 4 standard errors of the probabilities."""
    probabilities = np.array([0.1, 0.2, 0.3, 0.4])
    count = 20_000
    logprobs = jnp.log(jnp.broadcast_to(probabilities[:, None], (4, count)))
    keys = jax.random.split(jax.random.key(0), count)
    uniform = jax.vmap(jax.random.uniform)(keys)
    for top_p, expected in ((1.0, probabilities), (0.5, np.array([0, 0, 3 / 7, 4 / 7]))):
        tokens, chosen = draw(logprobs - 5, uniform, temperature=1.0, top_p=top_p)
        np.testing.assert_allclose(chosen, np.log(probabilities)[tokens], rtol=1e-5)
        tokens = np.asarray(tokens)
        shares = np.bincount(tokens.ravel(), minlength=4) / count
        assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / count)


def test_the_cumulative_sum_is_inverted_by_hand():
    weights = jnp.array([0.0, 1.0, 0.0, 2.0, 1.0, 0.0])
    uniforms = np.array([0.0, 0.2, 0.25, 0.7, 0.75, 0.999], np.float32)
    every = jnp.broadcast_to(weights[:, None], (6, len(uniforms)))
    for block in (1, 2, 4, 256):
        words = invert_cumulative(every, jnp.asarray(uniforms), block=block)
        np.testing.assert_array_equal(words, [1, 1, 3, 3, 4, 4])


def test_inverting_is_a_cumulative_sum_over_all_words():
    """Many words of very different weights, three of four of them 0."""
    rng = np.random.default_rng(0)
    weights = np.exp(rng.normal(size=(50, 3001), scale=4)) * (rng.random((50, 3001)) < 0.25)
    uniforms = rng.random(50).astype(np.float32)
    weights, uniforms = weights.astype(np.float32), np.append(uniforms[2:], [0.0, 1 - 2**-23])
    words = np.asarray(invert_cumulative(jnp.asarray(weights.T), jnp.float32(uniforms)))
    rows = np.arange(50)
    assert (weights[rows, words] > 0).all()
    ends = np.cumsum(weights, axis=1, dtype=np.float64)
    target, rounding = uniforms * ends[:, -1], 1e-6 * ends[:, -1]
    assert (ends[rows, words] > target - rounding).all()
    assert (ends[rows, words] - weights[rows, words] <= target + rounding).all()


def test_every_device_keeps_its_own_part_of_the_vocabulary():
    # 6 blocks of words are no whole number on each of 4 devices.
    words, captions = 6 * 256, 8
    mesh = make_mesh(fsdp=2, data=1, tensor=4)
    rows = NamedSharding(mesh, P(BATCH_AXES))
    logits = NamedSharding(mesh, P("tensor", BATCH_AXES))
    one = partial(draw, temperature=1.0, top_p=1.0)
    program = jax.jit(one, in_shardings=(logits, rows), out_shardings=rows)
    values = jax.random.normal(jax.random.key(0), (words, captions))
    uniform = jax.random.uniform(jax.random.key(1), captions)
    with jax.set_mesh(mesh):
        text = program.lower(values, uniform).compile().as_text()
        over_devices = program(values, uniform)
    operations = [i for c in Program(text).computations.values() for i in c.instructions]
    gathered = [i for i in operations if i.opcode == "all-gather"]
    part = words // 4 * captions // 2 * 4  # bytes of one device's logits
    assert all(i.bytes < part for i in gathered)
    assert gathered  # the sums of the blocks, so that the test sees what it looks for
    for split, whole in zip(over_devices, one(values, uniform), strict=True):
        np.testing.assert_allclose(split, whole, rtol=1e-6)


def test_nucleus_by_hand():
    probabilities = jnp.array([0.1, 0.5, 0.15, 0.25])

    def kept(top_p):
        return np.isfinite(np.asarray(nucleus(jnp.log(probabilities), top_p=top_p))).tolist()

    # in order: .5 | .75 | .9 | 1.0 ; a token is in while the sum before it is below top_p
    assert kept(0.4) == [False, True, False, False]
    assert kept(0.6) == [False, True, False, True]
    assert kept(0.8) == [False, True, True, True]
    assert kept(0.95) == [True, True, True, True]
    # banned tokens stay out, and what stays keeps its logprob
    logprobs = jnp.log(jnp.array([0.0, 0.6, 0.4]))
    np.testing.assert_allclose(nucleus(logprobs, top_p=0.99), logprobs)


@dataclasses.dataclass(frozen=True)
class CountingPolicy(Qwen2_5_VL):
    """Reports each decode step to the host."""

    def decode_step(self, params, prompt_cache, prompt_mask, cache, tokens, positions, step):
        jax.debug.callback(STEPS.append, step)
        return super().decode_step(
            params, prompt_cache, prompt_mask, cache, tokens, positions, step
        )


STEPS: list = []


def test_the_loop_leaves_when_all_captions_have_ended():
    policy = CountingPolicy(tiny.CONFIG)
    STEPS.clear()
    everything = tuple(range(48))
    rollout = run(tiny.prompts(2), policy=policy, stop_tokens=everything)
    jax.block_until_ready(rollout)
    jax.effects_barrier()
    assert len(STEPS) == 1  # every first token is a stop token
    assert np.asarray(rollout.mask).sum() == 2 * 4
    STEPS.clear()
    rollout = run(tiny.prompts(3), policy=policy)
    jax.block_until_ready(rollout)
    jax.effects_barrier()
    assert len(STEPS) == np.asarray(rollout.mask).sum(-1).max()


def test_pixels_change_the_captions(rollout):
    """A path that drops the image would pass every other test here."""
    prompts = tiny.prompts(3)
    images = prompts.images._replace(pixels=prompts.images.pixels[::-1])
    changed = run(prompts._replace(images=images), stop_tokens=STOPS)
    assert not np.array_equal(changed.tokens[0], rollout.tokens[0])


@pytest.mark.one_jax
def test_greedy_captions_beside_sampled_ones_are_those_of_temperature_0(rollout):
    both = run(tiny.prompts(3), greedy=1)
    # The others draw as if all did.
    np.testing.assert_array_equal(both.tokens[:, :-1], rollout.tokens[:, :-1])
    alone = run(tiny.prompts(3), temperature=0.0)
    np.testing.assert_array_equal(both.tokens[:, -1], alone.tokens[:, -1])
    np.testing.assert_array_equal(both.mask[:, -1], alone.mask[:, -1])
    assert (both.tokens[:, -1] != rollout.tokens[:, -1]).any()
