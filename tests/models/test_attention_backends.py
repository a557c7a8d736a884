"""Every backend computes what plain XLA computes, in values and gradients, and says what it cannot.

cuDNN needs a GPU: here its very calls run with XLA's implementation, so that layouts, masks and
gradients are compared, and they are lowered for CUDA. Splash attention runs in Pallas' interpreter.
"""

import dataclasses
from functools import cache, partial
from types import SimpleNamespace
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tpu_compiler

from balcap_jax.errors import UserError
from balcap_jax.models import policy as policies
from balcap_jax.models.attention.backends import Attention, choose, cpu, cudnn, splash, xla
from balcap_jax.models.attention.plain import KV, join_group, parts_of_group
from balcap_jax.models.logprobs import completion_logprobs
from balcap_jax.models.packing import Packing, Room
from balcap_jax.parallel.sharding import make_mesh

FAST = {
    "cpu": cpu(),
    "cudnn": cudnn(implementation="xla"),
    "splash": splash(interpret=True),
}
fast_backend = pytest.mark.parametrize("name", FAST)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def close(ours, theirs, relative=2e-6):
    """Within this share of the largest number."""
    largest = np.abs(np.asarray(theirs)).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=relative * max(largest, 1e-2))


def check(ours, theirs, arguments, *, real=None):
    """Equal values where `real` marks them, and gradients of a function of those."""

    def run(attend):
        def objective(*arguments):
            out = attend(*arguments)
            masks = jax.tree.map(jnp.ones_like, out) if real is None else real
            out = jax.tree.map(lambda x, m: jnp.where(m, x, 0), out, masks)
            return sum(
                jnp.sum(jnp.sin(x * (i + 2))) for i, x in enumerate(jax.tree.leaves(out))
            ), out

        return jax.jit(jax.grad(objective, range(len(arguments)), has_aux=True))(*arguments)

    (gradient, out), (expected, plain) = run(ours), run(theirs)
    jax.tree.map(close, (gradient, out), (expected, plain))
    assert min(np.abs(np.asarray(x)).max() for x in jax.tree.leaves(gradient)) > 1e-2


def group_in_parts(backend, *, mask):
    """`backend.group` of prompt and completions given apart, and its result in these parts."""

    def attend(q, kv, own_q, own):
        joined = KV(*map(join_group, kv, own))
        out = backend.group(join_group(q, own_q), joined, mask, own_q.shape[1])
        return parts_of_group(out, mask.shape[1], own_q.shape[1])

    return attend


@fast_backend
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_group(name, kv_heads):
    """Odd lengths, a prompt without padding and one with; 150 tokens are two blocks."""
    B, G, P, C, N, H = 2, 3, 131, 7, 4, 8
    mask = jnp.arange(P)[None] < jnp.array([[P], [90]])
    arguments = (
        normal(B, P, N, H),
        KV(normal(B, P, kv_heads, H, seed=1), normal(B, P, kv_heads, H, seed=2)),
        normal(B, G, C, N, H, seed=3),
        KV(normal(B, G, C, kv_heads, H, seed=4), normal(B, G, C, kv_heads, H, seed=5)),
    )

    of = partial(group_in_parts, mask=mask)
    check(of(FAST[name]), of(xla()), arguments, real=(mask[..., None, None], True))


@pytest.mark.parametrize("name", ["xla", *FAST])
@pytest.mark.parametrize("room", [Room(30, 17), Room(30, 26)], ids=["packed prompts", "all slots"])
def test_packed(name, room):
    """Attention of packed tokens is `group` of their slots; a completion is empty, one full."""
    B, G, P, C, N, K, H = 2, 3, 13, 7, 4, 2, 8
    mask = jnp.arange(P)[None] < jnp.array([[P], [4]])
    lengths = jnp.array([[7, 0, 3], [1, 7, 5]])
    live = jnp.arange(C)[None, None] < lengths[..., None]
    packing = Packing.of(room, mask, live, rows=1)
    assert packing.fits
    T = P + G * C
    arguments = normal(B, T, N, H), normal(B, T, K, H, seed=1), normal(B, T, K, H, seed=2)
    backend = {"xla": xla(), **FAST}[name]

    def packed(q, k, v):
        q, k, v = map(packing.pack, (q, k, v))
        return packing.unpack(backend.packed(q, KV(k, v), mask, packing), B)

    def plain(q, k, v):
        return xla().group(q, KV(k, v), mask, G)

    real = jnp.concatenate([mask, live.reshape(B, -1)], axis=1)[..., None, None]
    check(packed, plain, arguments, real=real)


@fast_backend
def test_causal(name):
    mask = jnp.arange(9)[None] < jnp.array([[9], [5]])
    arguments = normal(2, 9, 4, 8), normal(2, 9, 2, 8, seed=1), normal(2, 9, 2, 8, seed=2)

    def of(backend):
        return lambda q, k, v: backend.causal(q, k, v, mask)

    check(of(FAST[name]), of(xla()), arguments, real=mask[..., None, None])


@fast_backend
@pytest.mark.parametrize("images", [1, 2])
def test_segments(name, images):
    """One image in each prompt, or two in the second; odd length and padding."""
    ids = np.full((2, 135), -1, np.int32)
    ids[0, :130] = 0
    ids[1, :40] = 0
    ids[1, 40:100] = images - 1
    arguments = tuple(normal(2, 135, 2, 8, seed=seed) for seed in range(3))

    def of(backend):
        return lambda q, k, v: backend.segments(q, k, v, jnp.asarray(ids))

    check(of(FAST[name]), of(xla()), arguments, real=(ids >= 0)[..., None, None])


@fast_backend
@pytest.mark.parametrize("length", [16, 130])
def test_rows(name, length):
    """Windows with empty slots and an empty one; rows of more than a block."""
    sizes = jnp.array([length, 5, 0], jnp.int32)
    arguments = tuple(normal(3, length, 2, 8, seed=seed) for seed in range(3))

    def of(backend):
        return lambda q, k, v: backend.rows(q, k, v, sizes)

    real = (jnp.arange(length)[None] < sizes[:, None])[..., None, None]
    check(of(FAST[name]), of(xla()), arguments, real=real)


@cache
def gradient_and_logprobs(name):
    """Of the tiny policy with this attention; the plain one is computed once."""
    model, params = tiny.policy(attention=FAST.get(name, xla()))
    prompts, completions = tiny.prompts(2, prefix=18, patches=28), tiny.completions(2)

    def objective(params):
        features = model.encode_images(params, prompts.images)
        logprobs, _ = completion_logprobs(model, params, prompts, features, completions)
        return jnp.sum(jnp.sin(logprobs)), logprobs

    return jax.device_get(jax.jit(jax.grad(objective, has_aux=True))(params))


@fast_backend
def test_logprobs_and_gradients_of_a_policy(name):
    """From pixels to logprobs: windows, full attention, prefix and completions in one program."""
    expected, plain = gradient_and_logprobs("xla")
    gradient, logprobs = gradient_and_logprobs(name)
    close(logprobs, plain, 1e-5)
    jax.tree.map(partial(close, relative=2e-5), gradient, expected)


@pytest.mark.slow
def test_layers_that_are_compiled_one_by_one_compute_what_a_loop_does(monkeypatch):
    """On CPUs, where they are few and nothing is computed twice."""
    model, params = tiny.policy()
    prompts, completions = tiny.prompts(2, prefix=18, patches=28), tiny.completions(2)
    features = model.encode_images(params, prompts.images)

    def of(model):
        def objective(params):
            logprobs, _ = completion_logprobs(model, params, prompts, features, completions)
            return jnp.sum(jnp.sin(logprobs)), logprobs

        return jax.jit(jax.grad(objective, has_aux=True)).lower(params)

    def loops(model) -> int:
        return of(model).as_text().count("stablehlo.while")

    remat, elsewhere = (
        dataclasses.replace(model, **other) for other in ({"remat": "full"}, {"attention": xla()})
    )
    expected, plain = of(model).compile()(params)
    those_of_a_loop = [loops(m) for m in (model, remat, elsewhere)]
    monkeypatch.setattr(policies, "MOST_BY_LAYER", 8)
    gradient, logprobs = of(model).compile()(params)
    close(logprobs, plain, 1e-5)
    jax.tree.map(partial(close, relative=2e-5), gradient, expected)
    # Forwards and backwards; what is computed again, and other devices, keep theirs.
    assert [loops(m) for m in (model, remat, elsewhere)] == [
        those_of_a_loop[0] - 2, *those_of_a_loop[1:]
    ]  # fmt: skip
    monkeypatch.setattr(policies, "MOST_BY_LAYER", 1)
    assert loops(model) == those_of_a_loop[0]


@fast_backend
def test_prefill(name):
    model, params = tiny.policy(attention=xla())
    prompts = tiny.prompts(2)
    features = normal(2, 8, 32)
    fast = dataclasses.replace(model, attention=FAST[name])
    ours, theirs = (
        jax.device_get(jax.jit(p.prefill)(params, prompts, features)) for p in (fast, model)
    )
    mask = np.asarray(prompts.mask)
    for a, b in zip(ours, theirs, strict=True):
        close(a.k.transpose(0, 3, 1, 2)[mask], b.k.transpose(0, 3, 1, 2)[mask], 1e-5)
        close(a.v.swapaxes(1, 2)[mask], b.v.swapaxes(1, 2)[mask], 1e-5)


@pytest.mark.parametrize(
    ("fsdp", "tensor"), [(2, 2), (1, 4)], ids=["own key-value heads", "shared key-value heads"]
)
def test_splash_on_eight_devices_equals_one(fsdp, tensor):
    """The kernel runs on each device's prompts and heads, in values and gradients."""
    B, G, P, C, N, H = 4, 2, 10, 3, 4, 8
    mask = jnp.arange(P)[None] < jnp.array([[10], [6], [3], [10]])
    arguments = (
        normal(B, P, N, H),
        KV(normal(B, P, 2, H, seed=1), normal(B, P, 2, H, seed=2)),
        normal(B, G, C, N, H, seed=3),
        KV(normal(B, G, C, 2, H, seed=4), normal(B, G, C, 2, H, seed=5)),
    )

    def gradient(backend):
        def objective(*arguments):
            prompt, own = group_in_parts(backend, mask=mask)(*arguments)
            real = jnp.where(mask[..., None, None], prompt, 0.0)
            return jnp.sum(jnp.sin(real)) + jnp.sum(jnp.sin(own))

        return jax.jit(jax.grad(objective, 1))(*arguments)

    plain = jax.jit(group_in_parts(xla(), mask=mask))(*arguments)
    expected = gradient(xla())
    with jax.set_mesh(make_mesh(data=2, fsdp=fsdp, tensor=tensor)):
        out = jax.jit(group_in_parts(splash(interpret=True), mask=mask))(*arguments)
        ours = gradient(splash(interpret=True))
    close(out[0][mask], plain[0][mask])
    close(out[1], plain[1])
    assert out[0].sharding.shard_shape(out[0].shape) == (B // 2 // fsdp, P, N // tensor, H)
    for a, b in zip(ours, expected, strict=True):
        close(a[mask], b[mask], 2e-5)


def test_shared_prompt_mask_by_hand():
    """Prefix of 2, two completions of 2, padding of 2."""
    from balcap_jax.models.attention.splash import shared_prompt_mask

    expected = [
        "1.......",
        "11......",
        "111.....",
        "1111....",
        "11..1...",
        "11..11..",
        "......1.",
        "......11",
    ]
    ours = ["".join(".1"[int(x)] for x in row) for row in shared_prompt_mask(2, 2, 2, 8)]
    assert ours == expected


# ---- the choice


def device(platform, *, capability=None):
    fake = Mock(spec=jax.Device, platform=platform, device_kind="Model X")
    fake.client = SimpleNamespace(platform_version="cuda 13" if capability else "")
    fake.compute_capability = capability
    return fake


CPU, TPU, H100 = device("cpu"), device("tpu"), device("gpu", capability="9.0")
A100, T4, MI300 = device("gpu", capability="8.0"), device("gpu", capability="7.5"), device("gpu")


def kind_of(backend: Attention) -> str:
    causal = backend.causal
    return getattr(causal, "func", causal).__module__.rpartition(".")[2]


@pytest.mark.parametrize(
    ("where", "dtype", "expected"),
    [
        (CPU, "bfloat16", "plain"),
        (TPU, "bfloat16", "splash"),
        (TPU, "float32", "splash"),
        (H100, "bfloat16", "cudnn"),
        (H100, "float32", "plain"),
        (A100, "float16", "cudnn"),
        (T4, "float16", "plain"),
        (MI300, "bfloat16", "plain"),
    ],
)
def test_auto_takes_what_fits(where, dtype, expected):
    assert kind_of(choose("auto", dtype=dtype, head_dims=(128, 80), device=where)) == expected


@pytest.mark.parametrize(
    ("name", "where", "dtype", "heads", "message"),
    [
        ("cudnn", CPU, "bfloat16", (128,), "'cudnn' runs on NVIDIA GPUs and not on cpu .Model X.;"),
        ("cudnn", MI300, "bfloat16", (128,), "runs on NVIDIA GPUs and not on gpu"),
        ("cudnn", T4, "bfloat16", (128,), "compute capability 8.0"),
        ("cudnn", H100, "float32", (128,), "bfloat16 or float16 and not in float32; set it to"),
        ("cudnn", A100, "bfloat16", (128, 160), "multiples of 8 up to 128 and not 160"),
        ("cudnn", H100, "bfloat16", (36,), "multiples of 8 up to 256 and not 36"),
        ("splash", H100, "bfloat16", (128,), "runs on TPUs and not on gpu"),
        ("flash", TPU, "bfloat16", (128,), "'flash' must be one of auto, xla, cudnn, splash"),
    ],
)
def test_what_cannot_run_is_named(name, where, dtype, heads, message):
    with pytest.raises(UserError, match=message):
        choose(name, dtype=dtype, head_dims=heads, device=where)


def test_policy_refuses_at_once():
    with pytest.raises(UserError, match="'cudnn' runs on NVIDIA GPUs"):
        tiny.policy(attention="cudnn", dtype=jnp.bfloat16)


# ---- programs for other machines


@pytest.mark.parametrize("packed", [False, True])
def test_cudnn_lowers_for_cuda(monkeypatch, packed):
    """What the compiler for a GPU is given: fused kernels forward and backward for each call."""
    kernels = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    if not hasattr(kernels, "check_cudnn_version"):
        pytest.skip("this JAX asks for cuDNN's version elsewhere")
    monkeypatch.setattr(kernels, "check_cudnn_version", lambda: 91000)
    model, params = tiny.policy(attention=cudnn(), dtype=jnp.bfloat16)
    prompts, completions = tiny.prompts(2), tiny.completions(2)

    mask = jnp.ones(completions.shape, bool)

    def objective(params):
        features = model.encode_images(params, prompts.images)
        inputs = params, prompts, features, completions
        packing = Packing.of(Room(32, 32), prompts.mask, mask, rows=1) if packed else None
        return jnp.sum(completion_logprobs(model, *inputs, packing=packing)[0])

    text = jax.jit(jax.grad(objective)).trace(params).lower(lowering_platforms=("cuda",)).as_text()
    # Prefix, completions, windows, images by lengths; completions and images by mask have a bias.
    assert "__cudnn$fmhaSoftmax(" in text
    assert "__cudnn$fmhaScaleBiasSoftmax(" in text
    assert "__cudnn$fmhaSoftmaxBackward(" in text
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward(" in text


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_splash_compiles_for_tpu(packed):
    """Loss and gradient of a policy with heads of 128, in its tower of 80, by the real compiler."""
    config = tiny.config(
        text={"hidden_size": 512, "num_attention_heads": 4, "mrope_section": (16, 24, 24)},
        vision={"hidden_size": 160, "num_heads": 2},
    )
    assert config.text.head_dim == 128
    assert config.vision.head_dim == 80
    model, params = tiny.policy(config=config, attention=splash(), dtype=jnp.bfloat16)
    prompts = tiny.prompts(2, config=config, prefix=200, patches=256)
    arguments = jax.eval_shape(lambda: (params, prompts, tiny.completions(2, length=40)))
    chip = tpu_compiler.chip()
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip), arguments
    )

    def objective(params, prompts, completions):
        features = model.encode_images(params, prompts.images)
        mask = jnp.ones(completions.shape, bool)
        packing = Packing.of(Room(256, 320), prompts.mask, mask, rows=1) if packed else None
        inputs = params, prompts, features, completions
        return jnp.sum(completion_logprobs(model, *inputs, packing=packing)[0])

    with jax.default_matmul_precision("default"):  # the kernel takes no other with bfloat16
        compiled = jax.jit(jax.value_and_grad(objective)).lower(*arguments).compile()
    text = compiled.as_text()
    for kernel in ("splash_mha_fwd", "splash_mha_dq", "splash_mha_dkv"):
        assert kernel in text
