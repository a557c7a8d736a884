"""A step at published sizes, lowered for a GPU: shapes only, nothing is computed."""

import dataclasses

import jax
import pytest
from abstract import MESH, abstract_batch

from balcap_jax.models.attention.backends import cudnn
from balcap_jax.models.families import make_policy
from balcap_jax.plan.workloads.presets import PRESETS
from balcap_jax.rl.train_state import make_optimizer, state_shapes
from balcap_jax.rl.update import make_update
from balcap_jax.rollout.sampling import sample


@pytest.mark.parametrize("name", ["qwen3b", "llava7b"])
def test_a_step_lowers_for_cuda(name, monkeypatch):
    kernels = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    if not hasattr(kernels, "check_cudnn_version"):
        pytest.skip("this JAX asks for cuDNN's version elsewhere")
    monkeypatch.setattr(kernels, "check_cudnn_version", lambda: 91000)
    preset = PRESETS[name]
    policy = make_policy(preset.config, dtype=preset.dtype, remat=preset.remat)
    policy = dataclasses.replace(policy, attention=cudnn())
    optimizer = make_optimizer(learning_rate=1e-6)
    params = jax.eval_shape(policy.init, jax.random.key(0))
    batch = abstract_batch(preset.config, preset.batch, 1040, preset.group, preset.completion, 0)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (preset.batch, preset.group)))
    with jax.set_mesh(MESH):
        update = make_update(policy, optimizer, MESH).__wrapped__
        trained = update.trace(
            state_shapes(params, optimizer, trained=policy.parts["decoder"]), batch
        )
        rollout = sample.trace(
            policy,
            params,
            batch.prompts,
            batch.features,
            keys,
            max_new_tokens=preset.completion,
            stop_tokens=(1,),
            pad_token_id=0,
            banned_tokens=preset.config.banned_tokens,
        )
        for program, kernels in ((trained, "cudnn$fmhaSoftmaxBackward"), (rollout, "cudnn$fmha")):
            assert kernels in program.lower(lowering_platforms=("cuda",)).as_text()
    assert rollout.out_info.tokens.shape == (preset.batch, preset.group, preset.completion)
