"""Every setting and number of a run arrives where it is used.

A short run with hardly a default setting is recorded at its edges: what the sampler drew and from
which parameters, what the judge was given, and the state before and after each update. The tests
compute all of it again by the plain formulas, written down here once more.
"""

import dataclasses
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import tiny_hf
from small_run import small

from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.reward import RewardConfig
from balcap_jax.config.sections import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimConfig,
    RLConfig,
    RolloutConfig,
)
from balcap_jax.config.study import StudyConfig
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained
from balcap_jax.rewards.scene.judge import SceneJudge
from balcap_jax.rewards.verdicts import Assertion, Verdict
from balcap_jax.rl.train_state import TrainState
from balcap_jax.rl.update import Batch
from balcap_jax.rollout import rollout as rollout_room
from balcap_jax.rollout.decoding import Rollout
from balcap_jax.runs.folder import read_jsonl
from balcap_jax.training import programs
from balcap_jax.training.trainer import train

STEPS, UPDATES, B, G, C, HELDOUT = 2, 2, 4, 3, 10, 3
SEED = 5
TEMPERATURE, TOP_P, HELDOUT_TEMPERATURE = 0.7, 0.9, 1.3
CLIP_LOW, CLIP_HIGH, KL = 0.1, 0.3, 0.5
NAMES, WEIGHTS = ("linguistic", "recall"), (0.25, 2.0)
EPS, DDOF, TAU_L, TAU_U = 0.05, 0, 0.1, 0.22
RATE, B1, B2, DECAY, MAX_NORM = 0.02, 0.8, 0.9, 0.1, 0.05
# Some words end a caption, so that there are captions of all lengths.
POLICY, START = tiny.policy(config=tiny.config(stop_tokens=(tiny.STOP, 20, 30, 40)))
BANNED = list(POLICY.config.banned_tokens)


SQUEEZE, CENTRE, NOISE = 0.5, 0.6, 0.05  # of the rewards of training


def settings(start: Path, out: Path, **rollout):
    return small(
        out,
        steps=STEPS,
        seed=SEED,
        prompts_per_step=B,
        sample_every=1,
        model=ModelConfig(path=str(start)),
        data=DataConfig(heldout=HELDOUT),
        rollout=RolloutConfig(
            group_size=G, max_new_tokens=C, temperature=TEMPERATURE, top_p=TOP_P, **rollout
        ),
        judge=JudgeConfig(max_failure_share=0.9),
        reward=RewardConfig(
            names=NAMES,
            weights=WEIGHTS,
            mask_mode="drop",
            length_unit="tokens",
            tau_l=TAU_L,
            tau_u=TAU_U,
        ),
        study=StudyConfig(
            squeeze=(f"{NAMES[1]}={SQUEEZE}",), centre=CENTRE, noise=(f"{NAMES[0]}={NOISE}",)
        ),
        rl=RLConfig(
            eps=EPS,
            ddof=DDOF,
            whiten=False,
            clip_low=CLIP_LOW,
            clip_high=CLIP_HIGH,
            loss_normaliser="grpo",
            kl_coef=KL,
            updates_per_rollout=UPDATES,
            micro_batches=2,
        ),
        optim=OptimConfig(
            learning_rate=RATE,
            warmup_steps=0,
            schedule="linear",
            weight_decay=DECAY,
            b1=B1,
            b2=B2,
            max_grad_norm=MAX_NORM,
        ),
        evaluation=EvaluationConfig(every=1, batch_size=2, temperature=HELDOUT_TEMPERATURE),
    )


# What is recorded ---------------------------------------------------------------------------------


class Sampled(NamedTuple):
    """One call of the sampler."""

    params: dict
    prompts: Any
    features: np.ndarray
    keys: np.ndarray
    rollout: Rollout


class Update(NamedTuple):
    """One call of the update."""

    before: TrainState
    batch: Batch
    after: TrainState
    metrics: dict


class Recorded(NamedTuple):
    """A run: its folder, and what went in and out of its parts, in order."""

    run: Path
    processor: Processor
    trained: list[Sampled]
    heldout: list[Sampled]
    updates: list[Update]
    judged: list[tuple[list, list[str]]]  # (examples, captions) of training

    def first_updates(self) -> list[Update]:
        """Those of each rollout that are on its policy, without overlap."""
        return self.updates[::UPDATES]


def units_of(name: str) -> tuple[str, ...]:
    """Some images have no units and so no recall."""
    return ("one", "two", "three") if zlib.crc32(name.encode()) % 2 else ()


def verdict_of(name: str, caption: str) -> Verdict | None:
    """Of a judge without sense whose rewards differ from caption to caption; some have none."""
    rng = np.random.default_rng(zlib.crc32(f"{name}: {caption}".encode()))
    if rng.random() < 0.15:
        return None
    quality = float(rng.random())
    covered = tuple(bool(x) for x in rng.random(len(units_of(name))) < 0.5)
    right = bool(rng.random() < 0.5)
    return Verdict((Assertion("a thing", right, right),), covered, quality, quality, quality)


def record(tmp: Path, **rollout) -> Recorded:
    """Trains with these settings of the rollout and writes down what passes by."""
    start = tmp / "start"
    tiny_hf.write_processor(start, config=POLICY.config)
    save_pretrained(start, POLICY, START, dtype="float32")
    sampled, updates, judged = [], [], []

    class Scripted(SceneJudge):
        def __call__(self, examples, captions):
            judged.append((list(examples), list(captions)))
            return [verdict_of(e.id, c) for e, c in zip(examples, captions, strict=True)]

        def reference_units(self, example):
            return units_of(example.id)

    programs_on, make_update = rollout_room.programs_on, programs.make_update

    def recording_programs_on(platform):
        sample = programs_on(platform).sample

        def recording_sample(policy, params, prompts, features, keys, **options):
            made = sample(policy, params, prompts, features, keys, **options)
            seen = params, prompts, features, jax.random.key_data(keys), made
            sampled.append(Sampled(*jax.device_get(seen)))
            return made

        return programs_on(platform)._replace(sample=recording_sample)

    def make_recording_update(*args, **options):
        update = make_update(*args, **options)

        def recording_update(state, batch, room):
            before = jax.device_get(state)
            after, metrics = update(state, batch, room)
            updates.append(Update(before, *jax.device_get((batch, after, metrics))))
            return after, metrics

        return recording_update

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("balcap_jax.rewards.judges.SceneJudge", Scripted)
        patch.setattr(rollout_room, "programs_on", recording_programs_on)
        patch.setattr(programs, "make_update", make_recording_update)
        run = train(settings(start, tmp, **rollout))
    return Recorded(
        run,
        Processor.load(start),
        [call for call in sampled if call.keys.shape[1] == G],
        [call for call in sampled if call.keys.shape[1] == 1],
        updates,
        [call for call in judged if len(call[1]) == B * G],
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Recorded:
    return record(tmp_path_factory.mktemp("wiring"))


# The plain formulas -------------------------------------------------------------------------------


@jax.jit
def plain_logits(params, prompts, features, tokens):
    hidden = POLICY.completion_hidden(params, prompts, features, tokens)
    return POLICY.project(params, hidden)


def plain_logprobs(params, call: Sampled | Batch, tokens, *, temperature: float):
    """Of all words [b g c v], with all logits at once."""
    logits = plain_logits(params, call.prompts, call.features, tokens) / temperature
    return jax.nn.log_softmax(logits.at[..., jnp.array(BANNED)].set(-jnp.inf))


def chosen(logprobs, tokens):
    return jnp.take_along_axis(logprobs, jnp.asarray(tokens)[..., None], axis=-1)[..., 0]


@jax.jit
def plain_gradient(language_model, frozen, batch: Batch, reference):
    """The objective of rl.loss_normaliser="grpo", differentiated; `reference` are logprobs."""

    def objective(language_model):
        params = {**frozen, "language_model": language_model}
        logprobs = chosen(
            plain_logprobs(params, batch, batch.tokens, temperature=TEMPERATURE), batch.tokens
        )
        live = batch.mask & batch.valid[..., None]
        difference = jnp.where(live, reference - logprobs, 0.0)
        ratio = jnp.exp(jnp.where(live, logprobs - batch.old_logprobs, 0.0))
        advantage = batch.advantages[..., None]
        bounded = jnp.clip(ratio, 1 - CLIP_LOW, 1 + CLIP_HIGH)
        loss = -jnp.minimum(ratio * advantage, bounded * advantage)
        loss = loss + KL * (jnp.exp(difference) - 1 - difference)
        lengths = jnp.sum(live, axis=-1)
        of_captions = jnp.sum(jnp.where(live, loss, 0.0), axis=-1) / jnp.maximum(lengths, 1)
        return jnp.sum(of_captions) / jnp.sum(lengths > 0)

    return jax.value_and_grad(objective)(language_model)


def nucleus_before(logprobs, tokens) -> np.ndarray:
    """The probability of all words that are likelier than the one taken."""
    own = chosen(logprobs, tokens)[..., None]
    return np.asarray(jnp.sum(jnp.where(logprobs > own, jnp.exp(logprobs), 0.0), axis=-1))


def assert_close(ours: Any, expected: Any, *, within: float, what: str) -> None:
    """By the norm of the whole tree: single entries may be nothing but rounding."""
    error = optax.tree.norm(jax.tree.map(jnp.subtract, ours, expected))
    assert error <= within * optax.tree.norm(expected), what


def moments(state: TrainState, name: str) -> dict:
    return optax.tree.get(state.opt_state, name)


def language(params: dict) -> dict:
    return {"language_model": params["language_model"]}


# Sampling -----------------------------------------------------------------------------------------


def test_captions_are_sampled_from_the_policy_at_its_temperature(run):
    assert len(run.trained) == STEPS
    for step, call in enumerate(run.trained):
        tiny.assert_equal_trees(call.params, run.updates[step * UPDATES].before.params)
        tokens, mask = call.rollout.tokens, call.rollout.mask
        logprobs = plain_logprobs(call.params, call, tokens, temperature=TEMPERATURE)
        np.testing.assert_allclose(
            call.rollout.logprobs[mask], chosen(logprobs, tokens)[mask], atol=1e-4
        )
        # top_p: no word that it cuts off, and some that half of it would have cut off.
        before = nucleus_before(logprobs, tokens)[mask]
        assert before.max() < TOP_P + 1e-4
        assert before.max() > TOP_P / 2


def test_the_sampler_never_repeats_a_key(run):
    """Of no caption, in no step, and none of training in the evaluation."""
    keys = [call.keys.reshape(-1, call.keys.shape[-1]) for call in run.trained]
    assert len(np.unique(np.concatenate(keys), axis=0)) == STEPS * B * G
    heldout = run.heldout[0].keys.reshape(-1, keys[0].shape[-1])
    both = np.concatenate([*keys, heldout])
    assert len(np.unique(both, axis=0)) == len(both)


def test_keys_are_those_of_seed_step_image_and_place(run):
    for step, call in enumerate(run.trained):
        of_step = jax.random.fold_in(jax.random.key(SEED), step)
        for image, place in np.ndindex(B, G):
            key = jax.random.fold_in(jax.random.fold_in(of_step, image), place)
            np.testing.assert_array_equal(call.keys[image, place], jax.random.key_data(key))


def test_every_evaluation_draws_by_the_same_keys_at_its_own_temperature(run):
    calls_each = -(-HELDOUT // 2)
    evaluations = [run.heldout[i : i + calls_each] for i in range(0, len(run.heldout), calls_each)]
    # Before the run, and after each of its steps; after the last one perhaps once more.
    assert len(evaluations) >= 1 + STEPS
    ends = [
        run.updates[0].before,
        *(update.after for update in run.updates[UPDATES - 1 :: UPDATES]),
    ]
    outside = []
    for number, calls in enumerate(evaluations):
        for call, first in zip(calls, evaluations[0], strict=True):
            np.testing.assert_array_equal(call.keys, first.keys)
            tiny.assert_equal_trees(call.params, ends[min(number, STEPS)].params)
            tokens, mask = call.rollout.tokens, call.rollout.mask
            logprobs = plain_logprobs(call.params, call, tokens, temperature=HELDOUT_TEMPERATURE)
            np.testing.assert_allclose(
                call.rollout.logprobs[mask], chosen(logprobs, tokens)[mask], atol=1e-4
            )
            outside.append(nucleus_before(logprobs, tokens)[mask] > TOP_P)
    assert np.concatenate(outside).any()  # top_p is of training alone
    tokens = [np.concatenate([call.rollout.tokens for call in calls]) for calls in evaluations]
    assert (tokens[0] != tokens[1]).any()  # the policy has moved


def test_a_rollout_ahead_is_sampled_with_the_parameters_its_step_starts_from(tmp_path):
    ahead = record(tmp_path, overlap_steps=2)
    starts = [update.before.params for update in ahead.first_updates()]
    # The first three are sampled before the first update, the fourth before the second step's. No
    # step of this run learns from the last two.
    for call, start in zip(ahead.trained, [*[starts[0]] * 3, starts[1]], strict=True):
        tiny.assert_equal_trees(call.params, start)
    for update, call in zip(ahead.first_updates(), ahead.trained, strict=False):
        np.testing.assert_array_equal(update.batch.tokens, call.rollout.tokens)
        np.testing.assert_array_equal(update.batch.old_logprobs, call.rollout.logprobs)
        np.testing.assert_allclose(
            update.batch.features, POLICY.encode_images(START, update.batch.prompts.images),
            atol=1e-5,
        )  # fmt: skip
    assert ahead.first_updates()[0].metrics["logprob_gap"] < 1e-4
    assert ahead.first_updates()[1].metrics["logprob_gap"] > 1e-3


# From captions to what is learned from -----------------------------------------------------------


def test_each_row_is_one_image_from_its_prompt_to_its_caption(run):
    assert len(run.judged) == STEPS
    for update, call, (examples, captions) in zip(
        run.first_updates(), run.trained, run.judged, strict=True
    ):
        batch = update.batch
        tiny.assert_equal_trees(batch.prompts, call.prompts)
        tiny.assert_equal_trees(
            (batch.tokens, batch.mask, batch.old_logprobs), tuple(call.rollout)[:3]
        )
        for row in range(B):
            of_image = slice(row * G, (row + 1) * G)
            assert {example.id for example in examples[of_image]} == {examples[row * G].id}
            assert captions[of_image] == run.processor.decode(batch.tokens[row])
        prompts = run.processor.prompts(examples[::G])
        tiny.assert_equal_trees(jax.tree.map(np.asarray, prompts), batch.prompts)
        np.testing.assert_allclose(
            batch.features, POLICY.encode_images(START, batch.prompts.images), atol=1e-5
        )
    steps = [{example.id for example in examples} for examples, _ in run.judged]
    assert not steps[0] & steps[1]  # no image twice in so few steps


def plain_rewards(run: Recorded, step: int) -> tuple[np.ndarray, np.ndarray]:
    """(rewards [b g k] after the length control, rho [b g]), by hand."""
    examples, captions = run.judged[step]
    mask = run.trained[step].rollout.mask
    rewards, rhos = np.full((B, G, 2), np.nan), np.zeros((B, G))
    for row, place in np.ndindex(B, G):
        example, caption = examples[row * G + place], captions[row * G + place]
        words = run.processor.tokenizer(example.reference)["input_ids"]
        rho = rhos[row, place] = mask[row, place].sum() / len(words)
        verdict = verdict_of(example.id, caption)
        if verdict is None:
            continue
        if TAU_L <= rho <= TAU_U:
            drawn = np.random.default_rng([SEED, step, row]).normal(size=(G, 2))
            rewards[row, place, 0] = verdict.clarity + NOISE * drawn[place, 0]
        if verdict.covered:
            rewards[row, place, 1] = CENTRE + SQUEEZE * (np.mean(verdict.covered) - CENTRE)
    return rewards, rhos


def test_rewards_become_advantages_by_the_settings(run):
    dropped, kept = 0, 0
    for step, update in enumerate(run.first_updates()):
        rewards, _ = plain_rewards(run, step)
        expected = np.zeros((B, G))
        for group, row in zip(rewards, expected, strict=True):
            for k, weight in enumerate(WEIGHTS):
                has = ~np.isnan(group[:, k])
                if has.any():
                    z = group[has, k] - group[has, k].mean()
                    row[has] += weight * z / (group[has, k].std(ddof=DDOF) + EPS)
        np.testing.assert_allclose(update.batch.advantages, expected, atol=1e-5)
        # A caption whose only reward the length control dropped teaches nothing.
        valid = ~np.isnan(rewards).all(axis=-1)
        np.testing.assert_array_equal(update.batch.valid, valid)
        verdicts = [verdict_of(e.id, c) for e, c in zip(*run.judged[step], strict=True)]
        judged = np.array([verdict is not None for verdict in verdicts]).reshape(B, G)
        dropped += (judged & ~valid).sum()
        kept += valid.sum()
    assert dropped > 0  # the run shows what the test is about
    assert kept > B


def test_lengths_are_compared_in_tokens_with_the_reference_of_the_image(run):
    samples = read_jsonl(run.run / "samples.jsonl")
    rows = read_jsonl(run.run / "metrics.jsonl")
    for step in range(STEPS):
        _, rhos = plain_rewards(run, step)
        assert (rhos < TAU_L).any() or (rhos > TAU_U).any()
        assert rows[step]["rho/mean"] == pytest.approx(rhos.mean(), rel=1e-5)
        examples, captions = run.judged[step]
        of_step = [row for row in samples if row["step"] == step + 1]
        assert len(of_step) == 2 * G  # two images of a step are written down
        for place, row in enumerate(of_step):
            assert (row["id"], row["caption"]) == (examples[place].id, captions[place])
            assert row["reference"] == examples[place].reference
            assert row["rho"] == pytest.approx(rhos.reshape(-1)[place], rel=1e-5)


def test_metrics_are_those_of_the_last_update_of_a_step(run):
    for step, row in enumerate(read_jsonl(run.run / "metrics.jsonl")):
        for name, value in run.updates[(step + 1) * UPDATES - 1].metrics.items():
            assert row[name] == pytest.approx(float(value), rel=1e-6), name
        batch = run.updates[step * UPDATES].batch
        assert row["no_signal"] == pytest.approx((~batch.valid).mean())
        assert row["truncated"] == pytest.approx((~run.trained[step].rollout.ended).mean())


# The update ---------------------------------------------------------------------------------------


def test_a_rollout_is_learned_from_as_often_as_asked(run):
    assert len(run.updates) == STEPS * UPDATES
    for number, update in enumerate(run.updates):
        assert update.after.step == number + 1
        tiny.assert_equal_trees(update.batch, run.updates[number // UPDATES * UPDATES].batch)
        if number:
            tiny.assert_equal_trees(update.before, run.updates[number - 1].after)
        gap = float(update.metrics["logprob_gap"])
        # On the policy that sampled, the trainer computes the sampler's logprobs again.
        assert gap < 1e-4 if number % UPDATES == 0 else gap > 1e-3
    last = [update.metrics for update in run.updates[1::UPDATES]]
    assert any(metrics["clip_low"] > 0 for metrics in last)  # the bounds have a part in it
    assert any(metrics["clip_high"] > 0 for metrics in last)


def test_the_reference_policy_is_the_start_and_stays_it(run):
    for update in run.updates:
        batch = update.batch
        logprobs = plain_logprobs(START, batch, batch.tokens, temperature=TEMPERATURE)
        live = batch.mask & batch.valid[..., None]
        np.testing.assert_allclose(
            batch.reference_logprobs[live], chosen(logprobs, batch.tokens)[live], atol=1e-4
        )
    assert run.updates[0].metrics["kl"] == pytest.approx(0.0, abs=1e-6)
    assert min(update.metrics["kl"] for update in run.updates[1:]) > 1e-4


def test_each_gradient_is_that_of_the_plain_objective(run):
    for number, update in enumerate(run.updates):
        before, batch = update.before.params, update.batch
        reference = chosen(
            plain_logprobs(START, batch, batch.tokens, temperature=TEMPERATURE), batch.tokens
        )
        frozen = {name: before[name] for name in POLICY.vision_paths}
        loss, gradient = plain_gradient(before["language_model"], frozen, batch, reference)
        norm = optax.tree.norm(gradient)
        what = f"update {number}"
        np.testing.assert_allclose(update.metrics["loss"], loss, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(update.metrics["grad_norm"], norm, rtol=1e-3, err_msg=what)
        assert norm > MAX_NORM  # so that it is scaled down
        # The first moment holds the gradient itself, with its scale.
        scale = (1 - B1) * MAX_NORM / norm
        expected = jax.tree.map(
            lambda old, g, scale=scale: B1 * old + scale * g,
            moments(update.before, "mu"),
            {"language_model": gradient},
        )
        assert_close(moments(update.after, "mu"), expected, within=1e-3, what=what)


def test_each_step_of_the_parameters_is_that_of_adamw(run):
    for number, update in enumerate(run.updates):
        count = number + 1
        rate = RATE * (1 - number / (STEPS * UPDATES))  # 0 after all updates of all steps
        gradient = jax.tree.map(
            lambda new, old: (new - B1 * old) / (1 - B1),
            moments(update.after, "mu"),
            moments(update.before, "mu"),
        )
        second = jax.tree.map(
            lambda old, g: B2 * old + (1 - B2) * g**2, moments(update.before, "nu"), gradient
        )
        assert_close(moments(update.after, "nu"), second, within=1e-3, what=f"update {number}")

        def stepped(path, old, mu, nu, count=count, rate=rate):
            step = (mu / (1 - B1**count)) / (np.sqrt(nu / (1 - B2**count)) + 1e-8)
            decay = DECAY if path[-1].key in ("weight", "embedding") else 0.0
            return old - rate * (step + decay * old)

        expected = jax.tree_util.tree_map_with_path(
            stepped,
            language(update.before.params),
            moments(update.after, "mu"),
            moments(update.after, "nu"),
        )
        jax.tree.map(
            lambda new, plain: np.testing.assert_allclose(new, plain, atol=1e-5),
            language(update.after.params),
            expected,
        )
        for name in POLICY.vision_paths:
            tiny.assert_equal_trees(update.after.params[name], START[name])


def test_the_learning_rate_rises_and_falls_over_updates_not_steps(tmp_path):
    config = settings(tmp_path, tmp_path)
    optim = dataclasses.replace(config.optim, warmup_steps=2)
    optimizer = programs.optimizer_of(dataclasses.replace(config, steps=3, optim=optim), POLICY)
    # With always the same gradient Adam's step is the rate itself; norms do not decay.
    params = {"norm": {"scale": jnp.zeros(())}}
    state, rates = optimizer.init(params), []
    for _ in range(3 * UPDATES):
        step, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        rates.append(-float(step["norm"]["scale"]) / RATE)
    np.testing.assert_allclose(rates, [0.5, 1, 1, 0.75, 0.5, 0.25], rtol=1e-4)


# What is left -------------------------------------------------------------------------------------


def test_the_policy_of_the_run_is_the_last_one(run):
    _, written = load_pretrained(run.run / "policy")
    tiny.assert_equal_trees(jax.device_get(written), run.updates[-1].after.params)


def test_held_out_captions_are_written_beside_their_own_image(run):
    ids = set()
    for when in ("before", "step_000001", "after"):
        for row in read_jsonl(run.run / "evaluation" / f"{when}.jsonl"):
            verdict = verdict_of(row["id"], row["caption"])
            assert (row["verdict"] is None) == (verdict is None)
            if verdict is not None:
                assert row["rewards"]["linguistic"] == pytest.approx(verdict.clarity, rel=1e-6)
            words = len(row["caption"].split()) / len(row["reference"].split())
            assert row["rho"] == pytest.approx(words)
            ids.add(row["id"])
    assert len(ids) == HELDOUT
    assert not ids & {example.id for examples, _ in run.judged for example in examples}


def test_a_rate_for_what_does_not_train_is_refused():
    config = TrainConfig(optim=OptimConfig(rates=("projector=1e-3",)))
    with pytest.raises(UserError, match="a rate for 'projector', which is not trained"):
        programs.rates_of(config, POLICY)
    config = dataclasses.replace(config, model=ModelConfig(train=("projector",)))
    assert programs.rates_of(config, POLICY) == ((("visual/merger",), 1e-3),)
    assert programs.trained_of(config, POLICY) == ("visual/merger",)
