"""A supervised step: the loss curve of transformers and torch, and the same on any split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_hf
import tiny_llava

from balcap_jax.errors import UserError
from balcap_jax.models.hf.weights import load_pretrained
from balcap_jax.models.selection import EVERYTHING, leaf_paths, selects
from balcap_jax.parallel.sharding import make_mesh, shard_batch
from balcap_jax.rl.supervised import Lesson, make_supervised_sums, make_supervised_update
from balcap_jax.rl.train_state import init_state, make_optimizer

STEPS, G, C = 20, 2, 6
RATE, DECAY, NORM = 3e-3, 0.01, 1.0
COUNTS = (1, 2, 1)  # images of the prompts of LLaVA


def texts(batch: int, *, vocabulary: int, first: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [b g c] and what is learned of them: answers of several turns, and shorter ones."""
    rng = np.random.default_rng([seed, 7])
    tokens = rng.integers(first, vocabulary, (batch, G, C)).astype(np.int32)
    mask = np.ones((batch, G, C), bool)
    mask[0, 0, 2:4] = False  # a question between two answers
    mask[1, 1, 4:] = False  # padding
    mask[2, 1] = False  # no second text
    return tokens, mask


class QwenSide:
    tower = "visual"

    def __init__(self, folder):
        self.hf = tiny_hf.model(tiny.CONFIG)
        self.hf.save_pretrained(folder)

    def batch(self, step: int) -> Lesson:
        tokens, mask = texts(3, vocabulary=48, first=tiny.FIRST_TEXT, seed=step)
        return Lesson(tiny.prompts(3, seed=step, prefix=20, patches=28), tokens, mask)

    def logits(self, lesson: Lesson, b: int, text: np.ndarray):
        import torch

        prompts = jax.tree.map(np.asarray, lesson.prompts)
        own = prompts.tokens[b][prompts.mask[b]]
        tokens = torch.tensor([[*own, prompts.last_token[b], *text]]).long()
        return self.hf(
            input_ids=tokens,
            mm_token_type_ids=(tokens == tiny.IMAGE).int(),
            pixel_values=torch.tensor(prompts.images.pixels[b][prompts.images.image_ids[b] >= 0]),
            image_grid_thw=torch.tensor([(1, *tiny.GRIDS[b])]),
        ).logits[0, len(own) : -1]


class LlavaSide:
    tower = "vision_tower"

    def __init__(self, folder):
        self.hf = tiny_llava.model(tiny_llava.CONFIG)
        self.hf.save_pretrained(folder)

    def batch(self, step: int) -> Lesson:
        tokens, mask = texts(3, vocabulary=48, first=tiny_llava.FIRST_TEXT, seed=step)
        return Lesson(tiny_llava.prompts(COUNTS), tokens, mask)

    def logits(self, lesson: Lesson, b: int, text: np.ndarray):
        import torch

        rows, pixels = tiny_llava.rows(COUNTS), tiny_llava.images(COUNTS)
        end = sum(COUNTS[: b + 1])
        out = self.hf(
            input_ids=torch.tensor([[*rows[b], *text]]).long(),
            pixel_values=torch.tensor(pixels[end - COUNTS[b] : end]),
        )
        return out.logits[0, len(rows[b]) - 1 : -1]


def torch_loss(side, lesson: Lesson):
    """Cross entropy over the learned tokens of the whole batch, each text with its own prompt."""
    import torch

    logits, targets = [], []
    for b in range(len(lesson.tokens)):
        for text, learned in zip(lesson.tokens[b], lesson.mask[b], strict=True):
            if learned.any():
                logits.append(side.logits(lesson, b, text)[torch.tensor(learned)])
                targets.append(torch.tensor(text[learned]).long())
    return torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(targets))


@pytest.fixture
def one_thread():
    """Arrays are tiny: more threads of torch only wait for one another."""
    torch = pytest.importorskip("torch", reason="torch is in the test extra")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.torch
@pytest.mark.parametrize("kind", [pytest.param(QwenSide, marks=pytest.mark.slow), LlavaSide])
def test_loss_curve_is_that_of_transformers_and_torch(kind, tmp_path, one_thread):
    """20 steps of AdamW with weight decay and clipping, all parameters trained: 1e-4."""
    torch = pytest.importorskip("torch", reason="torch is in the test extra")
    side = kind(tmp_path)
    policy, params = load_pretrained(tmp_path)
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = make_optimizer(learning_rate=RATE, weight_decay=DECAY, max_grad_norm=NORM)
    state = init_state(mesh, params, optimizer, trained=EVERYTHING)
    update = make_supervised_update(policy, optimizer, mesh, trained=EVERYTHING)
    named = dict(side.hf.named_parameters())
    plain = {n for n, p in named.items() if p.ndim < 2 and "class_embedding" not in n}
    theirs = torch.optim.AdamW(
        [
            {"params": [p for n, p in named.items() if n not in plain], "weight_decay": DECAY},
            {"params": [named[n] for n in plain], "weight_decay": 0.0},
        ],
        lr=RATE,
    )
    ours_curve, their_curve = [], []
    for step in range(STEPS):
        lesson = side.batch(step % 5)
        theirs.zero_grad()
        loss = torch_loss(side, lesson)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(side.hf.parameters(), NORM)
        theirs.step()
        their_curve.append(loss.item())
        state, metrics = update(state, shard_batch(mesh, lesson))
        ours_curve.append(metrics["loss"].item())
        assert metrics["tokens"].item() == lesson.mask.sum()
    np.testing.assert_allclose(ours_curve, their_curve, rtol=1e-4)
    assert ours_curve[-1] < ours_curve[0] - 1  # it is a curve


def lesson_of(batch: int) -> Lesson:
    tokens, mask = texts(batch, vocabulary=48, first=tiny.FIRST_TEXT, seed=0)
    return Lesson(tiny.prompts(batch), tokens, mask)


def stepped(mesh, *, micro_batches: int = 1, trained=EVERYTHING, lesson: Lesson | None = None):
    policy, params = tiny.policy()
    # eps is large for Adam: at 1e-8 a gradient of rounding errors makes a step of full size.
    optimizer = make_optimizer(learning_rate=1e-2, eps=1e-3)
    state = init_state(mesh, params, optimizer, trained=trained)
    update = make_supervised_update(
        policy, optimizer, mesh, micro_batches=micro_batches, trained=trained
    )
    state, metrics = update(state, shard_batch(mesh, lesson or lesson_of(8)))
    return jax.device_get(state.params), jax.device_get(metrics)


def assert_same(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), one, other)


@pytest.fixture(scope="module")
def plain():
    return stepped(make_mesh(devices=jax.devices()[:1]))


def test_micro_batches_are_one(plain):
    """Though the micro-batches have different numbers of learned tokens."""
    assert_same(plain, stepped(make_mesh(devices=jax.devices()[:1]), micro_batches=4))


def test_eight_devices_are_one(plain):
    assert_same(plain, stepped(make_mesh(data=2, fsdp=2, tensor=2), micro_batches=2))


def test_only_what_is_trained_moves_and_only_learned_tokens_count():
    mesh = make_mesh(devices=jax.devices()[:1])
    policy, before = tiny.policy()
    patterns = policy.parts["projector"]
    lesson = lesson_of(2 + 1)
    after, metrics = stepped(mesh, trained=patterns, lesson=lesson)
    moved = {
        path: bool((np.asarray(a) != np.asarray(b)).any())
        for path, a, b in zip(
            leaf_paths(before), jax.tree.leaves(before), jax.tree.leaves(after), strict=True
        )
    }
    assert any(moved.values())
    assert not any(move for path, move in moved.items() if not selects(patterns, path))

    # What is not learned and stands behind all that is may be anything.
    tokens = lesson.tokens.copy()
    tokens[1, 1, 4:], tokens[2, 1] = 9, 9
    other, _ = stepped(mesh, trained=patterns, lesson=lesson._replace(tokens=tokens))
    jax.tree.map(np.testing.assert_array_equal, after, other)
    sums = make_supervised_sums(policy, mesh)(before, shard_batch(mesh, lesson))
    assert float(sums.loss / sums.tokens) == pytest.approx(float(metrics["loss"]), rel=1e-5)


def test_nothing_to_learn_changes_nothing():
    mesh = make_mesh(devices=jax.devices()[:1])
    lesson = lesson_of(3)
    empty = lesson._replace(mask=np.zeros_like(lesson.mask))
    after, metrics = stepped(mesh, lesson=empty)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(tiny.policy()[1]), after)
    assert metrics["skipped"] == 1
    assert metrics["loss"] == 0.0
    assert jnp.isfinite(metrics["grad_norm"])


def test_a_batch_that_does_not_divide_is_one_sentence():
    with pytest.raises(UserError, match="3 prompts cannot be split into 2 micro-batches"):
        stepped(make_mesh(devices=jax.devices()[:1]), micro_batches=2, lesson=lesson_of(3))
