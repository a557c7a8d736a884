"""The model against itself: every fast path equals the plain forward; padding changes nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from balcap_jax.models.attention.plain import KV, attend, attend_prompt_and_past
from balcap_jax.models.decoder.layers import Linear
from balcap_jax.models.decoder.matmul import matmul
from balcap_jax.models.geometry import window_ids
from balcap_jax.models.inputs import ImagePatches, Prompts
from balcap_jax.models.qwen2_5_vl.policy import Qwen2_5_VL

B, G, C = 3, 2, 4
LONG = {"prefix": 16, "patches": 32}  # more padding than any of the tiny prompts needs


@pytest.fixture(scope="module")
def policy():
    return tiny.policy()


@pytest.fixture(scope="module")
def prompts():
    """In numpy: each jnp operation on a new shape outside of jit is a program to compile."""
    return jax.tree.map(np.asarray, tiny.prompts(B, **LONG))


@pytest.fixture(scope="module")
def completions():
    return np.asarray(tiny.completions(B, G, C))


@pytest.fixture(scope="module")
def forward(policy):
    """logits(params, prompts, completions), compiled once for all tests."""
    return jax.jit(partial(shared, policy[0]))


def joined(prompts: Prompts, completions):
    """Each prompt with each of its completions as one row [b * g, p + c], without gaps.

    Returns tokens, positions, mask, and where the completion's inputs are in each row.
    """
    tokens, positions, masks, places = [], [], [], []
    P, length = prompts.tokens.shape[1], completions.shape[2]
    for i in range(completions.shape[0]):
        n = int(prompts.mask[i].sum())
        for j in range(completions.shape[1]):
            own = np.concatenate([prompts.last_token[i : i + 1], completions[i, j, :-1]])
            own_positions = np.tile(int(prompts.last_position[i]) + np.arange(length), (3, 1))
            row = np.concatenate([prompts.tokens[i, :n], own])
            row_positions = np.concatenate([prompts.positions[i, :, :n], own_positions], axis=1)
            tokens.append(np.pad(row, (0, P - n), constant_values=tiny.PAD))
            positions.append(np.pad(row_positions, ((0, 0), (0, P - n))))
            masks.append(np.arange(P + length) < n + length)
            places.append(n + np.arange(length))
    return tuple(np.stack(x) for x in (tokens, positions, masks, places))


def shared(model: Qwen2_5_VL, params, prompts, completions, features=None):
    if features is None:
        features = model.encode_images(params, prompts.images)
    return model.project(params, model.completion_hidden(params, prompts, features, completions))


def unshared(model: Qwen2_5_VL, params, rows, features, group: int):
    """The same logits by the plain forward on G copies of each prompt."""
    tokens, positions, mask, places = rows
    features = jnp.repeat(features, group, axis=0)
    logits = model.token_logits(params, tokens, positions, mask, features)
    logits = jnp.take_along_axis(logits, places[..., None], axis=1)
    return logits.reshape(-1, group, *logits.shape[1:])


def loss(logits, completions):
    """A smooth function of all logits, with a different weight for each."""
    logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), completions[..., None], axis=-1)
    weights = jnp.cos(jnp.arange(logprobs.size, dtype=jnp.float32)).reshape(logprobs.shape)
    return jnp.sum(weights * logprobs)


def close(a, b, relative=1e-5):
    a, b = np.asarray(a), np.asarray(b)
    scale = float(np.abs(b).max())
    np.testing.assert_allclose(a, b, rtol=0, atol=relative * max(scale, 1e-3))


# ---- a group shares its prompt


def test_shared_prompt_equals_the_plain_forward_and_gradient(policy, prompts, completions):
    """Also in the gradient of the image features, the sum over the group; also recomputed."""
    plain, params = policy
    remat = Qwen2_5_VL(tiny.CONFIG, remat="full")
    rows = joined(prompts, completions)
    features = np.random.default_rng(0).normal(size=(B, 8, 32)).astype(np.float32)

    @jax.jit
    def both(decoder, features):
        def run(forward):
            def objective(decoder, features):
                logits = forward({"language_model": decoder}, features)
                return loss(logits, completions), logits

            return jax.value_and_grad(objective, (0, 1), has_aux=True)(decoder, features)

        return (
            run(lambda params, x: shared(remat, params, prompts, completions, x)),
            run(lambda params, x: unshared(plain, params, rows, x, G)),
        )

    results = both(params["language_model"], features)
    ((_, logits), gradient), ((_, reference), reference_gradient) = results
    close(logits, reference)
    jax.tree.map(close, gradient, reference_gradient)
    largest = jax.tree.map(lambda x: np.abs(x).max(), gradient)
    assert min(jax.tree.leaves(largest)) > 0  # the comparison is of something, in every weight


def test_project_tied_and_untied():
    hidden = np.ones((2, 32), np.float32)
    tied, params = tiny.policy()
    embedding = np.asarray(params["language_model"]["embed_tokens"]["embedding"])
    close(tied.project(params, jnp.asarray(hidden)), hidden @ embedding.T)
    untied, params = tiny.policy(config=tiny.config(tie_word_embeddings=False))
    head = np.asarray(params["lm_head"]["weight"])
    close(untied.project(params, jnp.asarray(hidden)), hidden @ head.T)


# ---- decoding


def test_decoding_equals_the_full_forward(policy, forward, prompts, completions):
    model, params = policy
    reference = forward(params, prompts, completions)

    @jax.jit
    def start(params):
        prompt_cache = model.prefill(params, prompts, model.encode_images(params, prompts.images))
        # Slots beyond the last step hold garbage: they must never be read.
        cache = jax.tree.map(lambda x: x + 1e3, model.init_cache(B, G, C + 2))
        return model.decode_weights(params), prompt_cache, cache

    @jax.jit
    def step(weights, prompt_cache, cache, tokens, t):
        positions = jnp.broadcast_to(prompts.last_position[:, None] + t, (B, G))
        logits, cache = model.decode_step(
            weights, prompt_cache, prompts.mask, cache, tokens, positions, t
        )
        return logits.T.reshape(B, G, -1), cache

    weights, prompt_cache, cache = start(params)
    tokens = np.broadcast_to(prompts.last_token[:, None], (B, G))
    for t in range(C):
        logits, cache = step(weights, prompt_cache, cache, tokens, np.int32(t))
        close(logits, reference[:, :, t])
        tokens = completions[:, :, t]


# ---- padding and neighbours


def test_alone_and_without_padding_is_the_same(policy, forward, prompts, completions):
    i = 1
    n = int(prompts.mask[i].sum())
    s = int((prompts.images.image_ids[i] >= 0).sum())
    alone = Prompts(
        tokens=prompts.tokens[i : i + 1, :n],
        mask=prompts.mask[i : i + 1, :n],
        positions=prompts.positions[i : i + 1, :, :n],
        last_token=prompts.last_token[i : i + 1],
        last_position=prompts.last_position[i : i + 1],
        images=jax.tree.map(lambda x: x[i : i + 1, :s], prompts.images),
    )
    together = forward(policy[1], prompts, completions)
    close(forward(policy[1], alone, completions[i : i + 1, :1])[0, 0], together[i, 0])


def test_what_stands_in_the_padding_is_not_read(policy, forward, prompts, completions):
    real = prompts.mask
    patch_real = (prompts.images.image_ids >= 0)[..., None]
    noisy = prompts._replace(
        tokens=np.where(real, prompts.tokens, 7),
        positions=np.where(real[:, None], prompts.positions, 11),
        images=prompts.images._replace(
            pixels=np.where(patch_real, prompts.images.pixels, np.float32(1e3)),
            positions=np.where(patch_real, prompts.images.positions, 5),
        ),
    )
    together = forward(policy[1], prompts, completions)
    close(forward(policy[1], noisy, completions), together)


def test_later_tokens_do_not_change_earlier_logits(policy, forward, prompts, completions):
    changed = completions.copy()
    changed[:, :, -2:] = 9
    before = np.asarray(forward(policy[1], prompts, completions))
    after = np.asarray(forward(policy[1], prompts, changed))
    close(after[:, :, : C - 1], before[:, :, : C - 1])
    assert np.abs(after[:, :, C - 1] - before[:, :, C - 1]).max() > 1e-2


def test_image_reaches_its_own_captions_only(policy, forward, prompts, completions):
    pixels = prompts.images.pixels.copy()
    pixels[0, 0] += 1.0  # one patch of the first image
    changed = prompts._replace(images=prompts.images._replace(pixels=pixels))
    before, after = (np.asarray(forward(policy[1], p, completions)) for p in (prompts, changed))
    difference = np.abs(after - before).max(axis=(1, 2, 3))
    assert difference[0] > 1e-3
    assert difference[1:].max() == 0


# ---- vision attention


def padded(images: ImagePatches, length: int = 48) -> ImagePatches:
    """One shape for all, so that the vision tower is compiled once."""

    def pad(x, length, value):
        x = np.asarray(x)
        widths = [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
        return np.pad(x, widths, constant_values=value)

    return ImagePatches(
        pad(images.pixels, length, 0),
        pad(images.positions, length, 0),
        pad(images.image_ids, length, -1),
        pad(images.windows, 6, -1),
    )


def test_windows_equal_explicit_attention_in_each_window():
    """With windowed blocks only, a window's patches give the same alone as in their image."""
    config = tiny.config(vision={"fullatt_block_indexes": ()})
    model, params = tiny.policy(config=config)
    images = tiny.prompts(1, config=config, grids=[(6, 6)]).images
    images = jax.tree.map(np.asarray, images)
    encode = jax.jit(model.encode_images)
    features = np.asarray(encode(params, padded(images))[0])
    sizes = []
    for window in images.windows[0]:
        where = window[window >= 0]
        if len(where) == 0:
            continue
        pixels, positions, ids = (x[:, where] for x in images[:3])
        own = np.where(window < 0, -1, np.cumsum(window >= 0) - 1)[None, None].astype(np.int32)
        alone = encode(params, padded(ImagePatches(pixels, positions, ids, own)))
        close(np.asarray(alone)[0, : len(where) // 4], features[where[::4] // 4])
        sizes.append(len(where))
    assert sizes == [16, 8, 8, 4]  # 3 x 3 merged tokens in windows of 2 x 2


def test_full_attention_joins_the_windows_of_one_image_only(policy):
    model, params = policy
    first, second = (tiny.prompts(1, seed=seed, grids=[(4, 6)]).images for seed in (0, 1))
    both = jax.tree.map(lambda a, b: np.concatenate([a, b], axis=1), first, second)
    both.image_ids[:, 24:] += 1
    both.windows[:, first.windows.shape[1] :][second.windows >= 0] += 24
    encode = jax.jit(model.encode_images)
    alone = [np.asarray(encode(params, padded(images)))[:, :6] for images in (first, second)]
    close(np.asarray(encode(params, both)), np.concatenate(alone, axis=1))
    ids = window_ids((4, 6), merge=2, window=tiny.CONFIG.vision.window)
    apart = first._replace(image_ids=ids[None])
    assert np.abs(np.asarray(encode(params, padded(apart)))[:, :6] - alone[0]).max() > 1e-2


# ---- attention


def test_attention_in_two_parts_equals_one_softmax():
    rng = np.random.default_rng(0)
    N, K, H, P, S = 4, 2, 8, 5, 3

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    q = 30 * normal(B, G, S, N, H)  # sharp: one part often has next to no weight
    prompt, past = KV(normal(B, P, K, H), normal(B, P, K, H)), KV(*normal(2, B, G, S, K, H))
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    causal = np.tril(np.ones((S, S), bool))
    out = np.asarray(jax.jit(attend_prompt_and_past)(q, prompt, mask, past, causal))
    for b in range(B):
        for g in range(G):
            k, v = (
                np.concatenate([shared[b], own[b, g]])[:, np.arange(N) // (N // K)]
                for shared, own in zip(prompt, past, strict=True)
            )
            scores = np.einsum("tnh,snh->nts", q[b, g], k) / np.sqrt(H)
            seen = np.concatenate([np.tile(mask[b], (S, 1)), causal], axis=1)
            scores = np.where(seen, scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            close(out[b, g], np.einsum("nts,snh->tnh", weights, v))


def test_attention_without_any_key_is_finite_also_in_its_gradient():
    @jax.jit
    @jax.value_and_grad
    def total(x):
        out, log_sum = attend(x, x, x, jnp.zeros((1, 2, 2), bool))
        return out.sum() + jax.nn.sigmoid(log_sum).sum()

    value, gradient = total(np.ones((1, 2, 2, 4), np.float32))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


# ---- definition and weights


def test_definition_is_static():
    a, b = Qwen2_5_VL(tiny.CONFIG), Qwen2_5_VL(tiny.config())
    assert a == b
    assert hash(a) == hash(b)
    assert a != Qwen2_5_VL(tiny.CONFIG, dtype=jnp.bfloat16)


def test_init_has_the_distribution_it_says():
    model = Qwen2_5_VL(tiny.config(initializer_range=0.02))
    # One kind of module: compiling the random numbers of all of them takes many seconds.
    stacked = jax.jit(lambda key: model.definitions["visual.patch_embed"].init_stacked(key, 2))
    weight = np.asarray(stacked(jax.random.key(0))["proj"]["weight"])
    assert weight.shape == (2, 16, 96)
    assert weight.std() == pytest.approx(0.02, rel=0.1)
    assert np.abs(weight[0] - weight[1]).max() > 0.02  # the layers differ
    norm = model.definitions["language_model.norm"].init(jax.random.key(0))
    np.testing.assert_array_equal(norm["scale"], np.ones(32, np.float32))


def test_init_has_the_structure_of_the_config():
    def shapes(**top):
        params = jax.eval_shape(Qwen2_5_VL(tiny.config(**top)).init, jax.random.key(0))
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
        return jax.tree.map(jnp.shape, params)

    tied = shapes(tie_word_embeddings=True)
    assert tied["language_model"]["layers"]["self_attn"]["k_proj"] == {
        "weight": (2, 16, 32),
        "bias": (2, 16),
    }
    assert tied["visual"]["merger"]["mlp"]["2"]["weight"] == (32, 64)
    assert shapes(tie_word_embeddings=False) == {**tied, "lm_head": {"weight": (48, 32)}}


def test_params_of_other_names_are_refused(policy):
    model, params = policy
    norm = {"weight": params["language_model"]["norm"]["scale"]}
    with pytest.raises(AssertionError, match="do not fit"):
        model.definitions["language_model.norm"](norm)


def test_bfloat16_computes_near_float32(policy, forward, prompts, completions):
    narrow = Qwen2_5_VL(tiny.CONFIG, dtype=jnp.bfloat16)
    features = jax.ShapeDtypeStruct((B, 8, 32), jnp.bfloat16)
    hidden = jax.eval_shape(
        narrow.completion_hidden, policy[1], prompts, features, jnp.asarray(completions)
    )
    assert hidden.dtype == jnp.float32  # the residual stream
    logits = jax.jit(partial(shared, narrow))(policy[1], prompts, completions)
    assert logits.dtype == jnp.float32
    reference = np.asarray(forward(policy[1], prompts, completions))
    # bfloat16 has 8 bits: a few percent of the range after four blocks, and not more.
    assert 1e-4 < np.abs(logits - reference).max() / np.abs(reference).max() < 0.1


def test_matmul_and_its_gradient():
    """Against numpy."""
    rng = np.random.default_rng(0)
    x, weight, g = (rng.normal(size=shape) for shape in ((7, 6), (5, 6), (7, 5)))
    x, weight, g = (jnp.asarray(a, jnp.float32) for a in (x, weight, g))
    layer = Linear(6, 5, use_bias=True, dtype=jnp.float32, std=0.1, rngs=nnx.Rngs(0))
    layer.weight[...] = weight
    layer.bias[...] = bias = np.arange(5, dtype=np.float32)
    close(layer(x[None]), (x @ weight.T + bias[None])[None])
    out, pull = jax.vjp(matmul, x, weight)
    close(out, x @ weight.T)
    for ours, theirs in zip(pull(g), (g @ weight, g.T @ x), strict=True):
        close(ours, theirs)
