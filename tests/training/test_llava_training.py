"""The training step on a small LLaVA: what is frozen stays bit for bit, what is trained moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llava

from balcap_jax.models.hf.weights import load_pretrained, save_pretrained
from balcap_jax.models.selection import EVERYTHING
from balcap_jax.parallel.sharding import make_mesh, shard_batch
from balcap_jax.rl.train_state import init_state, make_optimizer
from balcap_jax.rl.update import Batch, make_update
from balcap_jax.rollout.sampling import caption_keys, sample

COUNTS = (1, 2)
FROZEN = ("vision_tower", "multi_modal_projector")


@pytest.mark.parametrize(
    # That frozen parts stay is seen in a run by test_train_folders.py.
    "train_vision",
    [
        pytest.param(False, marks=[pytest.mark.slow, pytest.mark.long]),
        pytest.param(True, marks=pytest.mark.slow),
    ],
)
def test_one_update_of_a_rollout(train_vision, tmp_path):
    """Sampled, updated on two devices, exported and read again."""
    policy, params = tiny_llava.policy()
    banned = policy.config.banned_tokens
    prompts = tiny_llava.prompts(COUNTS)
    features = jax.jit(policy.encode_images)(params, prompts.images)
    rollout = sample(
        policy,
        params,
        prompts,
        features,
        caption_keys(jax.random.key(0), np.arange(2), group_size=2),
        max_new_tokens=3,
        stop_tokens=policy.config.stop_tokens,
        pad_token_id=tiny_llava.PAD,
        banned_tokens=banned,
    )
    batch = Batch(
        prompts=prompts,
        tokens=rollout.tokens,
        mask=rollout.mask,
        old_logprobs=rollout.logprobs,
        advantages=jnp.array([[1.0, -1.0], [0.5, -0.5]]),
        valid=jnp.ones((2, 2), bool),
        features=None if train_vision else features,
    )
    mesh = make_mesh(devices=jax.devices()[:2])
    optimizer = make_optimizer(learning_rate=1e-2)
    trained = EVERYTHING if train_vision else policy.parts["decoder"]
    state = init_state(mesh, params, optimizer, trained=trained)
    update = make_update(policy, optimizer, mesh, banned_tokens=banned, trained=trained)
    state, metrics = update(state, shard_batch(mesh, batch))
    # On the first update the trainer's logprobs are the sampler's, the ban included.
    assert metrics["logprob_gap"] < 1e-4
    assert metrics["skipped"] == 0
    assert metrics["grad_norm"] > 1e-3

    save_pretrained(tmp_path / "policy", policy, state.params)
    _, trained = load_pretrained(tmp_path / "policy")
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), trained, params)
    assert all(jax.tree.leaves(moved["language_model"]["layers"]))
    for name in FROZEN:
        # The last layer and the norm behind it are not read: no gradient reaches them.
        assert any(jax.tree.leaves(moved[name])) == train_vision, name
