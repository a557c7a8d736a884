"""Where arrays live: the mesh, and one table from parameter path to PartitionSpec.

One device is a 1 x 1 x 1 mesh and runs the same code as a pod. Axes: `data` holds copies of the
parameters, `fsdp` splits the batch and the parameters, `tensor` splits heads, MLP and vocabulary.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Int

from balcap_jax.errors import UserError

BATCH_AXES = ("data", "fsdp")
ALL_AXES = (*BATCH_AXES, "tensor")

# Path of a parameter -> its PartitionSpec. A path must match exactly one pattern, to its end; paths
# of optimizer moments end in the path of their parameter. The first axis of "layers" and "blocks"
# is the stack of layers, which the scan cuts: never sharded.
RULES: tuple[tuple[str, P], ...] = (
    # Into heads and MLP by column, out of them by row: one sum over `tensor` per pair. The layers
    # of the CLIP tower are called as those of the decoder, and their q, k and v are cut alike.
    (r"layers/(self_attn|mlp)/(q|k|v|gate|up)_proj/weight", P(None, "tensor", "fsdp")),
    (r"layers/(self_attn|mlp)/(q|k|v|gate|up)_proj/bias", P(None, "tensor")),
    (r"layers/(self_attn|mlp)/(o|down)_proj/weight", P(None, "fsdp", "tensor")),
    # Biases after the row-wise cut are added to the sum: every device has them whole.
    (r"layers/(self_attn|mlp)/(o|down)_proj/bias", P()),
    (r"layers/(input|post_attention)_layernorm/scale", P()),
    (r"language_model/norm/scale", P()),
    (r"embed_tokens/embedding", P("tensor", "fsdp")),
    (r"lm_head/weight", P("tensor", "fsdp")),
    # q, k and v of the vision tower are one matrix; a cut by columns would not respect its parts.
    (r"blocks/attn/qkv/weight", P(None, None, "fsdp")),
    (r"blocks/attn/proj/weight", P(None, "fsdp", None)),
    (r"blocks/mlp/(gate|up)_proj/weight", P(None, "tensor", "fsdp")),
    (r"blocks/mlp/(gate|up)_proj/bias", P(None, "tensor")),
    (r"blocks/mlp/down_proj/weight", P(None, "fsdp", "tensor")),
    (r"blocks/(attn/qkv|attn/proj|mlp/down_proj)/bias", P()),
    (r"blocks/norm[12]/scale", P()),
    (r"visual/patch_embed/proj/weight", P("fsdp", None)),
    (r"merger/mlp/0/weight", P("tensor", "fsdp")),
    (r"merger/mlp/0/bias", P("tensor")),
    (r"merger/mlp/2/weight", P("fsdp", "tensor")),
    (r"merger/(mlp/2/bias|ln_q/scale)", P()),
    (r"encoder/layers/self_attn/out_proj/weight", P(None, "fsdp", "tensor")),
    # "layer" is what DINOv2 calls its stack.
    (r"encoder/layer/attention/attention/(query|key|value)/weight", P(None, "tensor", "fsdp")),
    (r"encoder/layer/attention/attention/(query|key|value)/bias", P(None, "tensor")),
    (r"encoder/layer/attention/output/dense/weight", P(None, "fsdp", "tensor")),
    (r"encoder/layers?/mlp/fc1/weight", P(None, "tensor", "fsdp")),
    (r"encoder/layers?/mlp/fc1/bias", P(None, "tensor")),
    (r"encoder/layers?/mlp/fc2/weight", P(None, "fsdp", "tensor")),
    (r"encoder/layers/(self_attn/out_proj|mlp/fc2)/bias", P()),
    (r"encoder/layer/(attention/output/dense|mlp/fc2)/bias", P()),
    (r"encoder/layers/layer_norm[12]/(scale|bias)", P()),
    (r"encoder/layer/(norm[12]/(scale|bias)|layer_scale[12]/lambda1)", P()),
    (r"vision_tower/(pre_layrnorm|post_layernorm|layernorm)/(scale|bias)", P()),
    (r"vision_tower/embeddings/(class_embedding|cls_token|mask_token)", P()),
    (r"vision_tower/embeddings/position_embedding/embedding", P(None, "fsdp")),
    (r"vision_tower/embeddings/position_embeddings", P(None, None, "fsdp")),
    (r"vision_tower/embeddings/patch_embedding/weight", P("fsdp", None)),
    (r"vision_tower/embeddings/patch_embeddings/projection/weight", P("fsdp", None)),
    (r"vision_tower/embeddings/patch_embeddings/projection/bias", P()),
    (r"multi_modal_projector/linear_1/weight", P("tensor", "fsdp")),
    (r"multi_modal_projector/linear_1/bias", P("tensor")),
    (r"multi_modal_projector/linear_2/weight", P("fsdp", "tensor")),
    (r"multi_modal_projector/linear_2/bias", P()),
)


def make_mesh(
    *,
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh with axes data, fsdp, tensor over `devices` (default: all).

    Args:
      data, fsdp, tensor: sizes; one of them may be -1 and takes the rest of the devices.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    asked = (data, fsdp, tensor)
    known = math.prod(size for size in asked if size != -1)
    rest = count // known if known > 0 else 0
    sizes = tuple(rest if size == -1 else size for size in asked)
    if min(sizes) < 1 or math.prod(sizes) != count:
        raise UserError(
            f"The mesh data={data}, fsdp={fsdp}, tensor={tensor} does not fit the number of "
            f"devices, {count}; choose sizes whose product is {count}, one of them may be -1 for "
            "the rest."
        )
    # Auto: XLA propagates shardings from the arguments. The default of jax.make_mesh is Explicit.
    types = (AxisType.Auto,) * 3
    try:
        return jax.make_mesh(sizes, ALL_AXES, axis_types=types, devices=devices)
    except NotImplementedError:  # fsdp 32 x tensor 2 on a torus of 8 x 8: a side must be shared
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(grid, ALL_AXES, axis_types=types)


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """In how many parts the mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def mesh_in_context() -> AbstractMesh | None:
    """Inside jit: the mesh of `jax.set_mesh`; None without one, and where each device computes for
    itself (`on_own_rows`).
    """
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or AxisType.Manual in mesh.axis_types else mesh


def tensor_shards() -> int:
    """Inside jit: in how many parts the mesh in context splits heads, MLP and vocabulary."""
    mesh = mesh_in_context()
    return 1 if mesh is None else mesh.shape["tensor"]


class BatchRows(NamedTuple):
    """Which rows of a batch are whose, where several processes share a mesh.

    Attributes:
      local_rows: rows on the devices of this process, ascending. Processes that share a copy of the
        policy (`tensor` across hosts) hold the same rows.
      judged_by: by process, the rows that it alone judges and reports.
      process: this one.
    """

    local_rows: Int[np.ndarray, " h"]
    judged_by: tuple[Int[np.ndarray, " _"], ...]
    process: int

    @classmethod
    def of(cls, mesh: Mesh, count: int) -> "BatchRows":
        """Of a batch of `count` rows.

        Raises:
          UserError: the batch does not divide by the number of shards.
        """
        size = _shard_size(mesh, count)
        judged: dict[int, list[int]] = {process: [] for process in range(jax.process_count())}
        for shard, holders in enumerate(_holders(mesh)):
            for place in range(size):  # those who hold the same rows share them out
                judged[holders[place * len(holders) // size]].append(shard * size + place)
        local = [
            row for shard in _held_shards(mesh) for row in range(shard * size, (shard + 1) * size)
        ]
        return cls(
            np.array(local, np.int32),
            tuple(np.array(rows, np.int32) for rows in judged.values()),
            jax.process_index(),
        )

    @property
    def judged_rows(self) -> Int[np.ndarray, " o"]:
        """The rows that this process judges."""
        return self.judged_by[self.process]

    @property
    def judged_places(self) -> Int[np.ndarray, " o"]:
        """Where these are among `local_rows`."""
        return np.searchsorted(self.local_rows, self.judged_rows)


def _holders(mesh: Mesh) -> list[list[int]]:
    """The processes that hold each shard of a batch."""
    assert mesh.axis_names[: len(BATCH_AXES)] == BATCH_AXES
    shards = mesh.devices.reshape(batch_shards(mesh), -1)
    return [sorted({device.process_index for device in devices}) for devices in shards]


def _held_shards(mesh: Mesh) -> list[int]:
    """The shards of a batch on the devices of this process."""
    here = jax.process_index()
    return [shard for shard, holders in enumerate(_holders(mesh)) if here in holders]


def _shard_size(mesh: Mesh, count: int) -> int:
    shards = batch_shards(mesh)
    if count % shards:
        raise UserError(
            f"A batch of {count} prompts cannot be split over {shards} data shards; "
            f"make it a multiple of {shards}, or use fewer devices."
        )
    return count // shards


def path_name(path: tuple) -> str:
    """`language_model/layers/mlp/up_proj/weight` from the key path of a leaf."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matching_rules(name: str) -> list[P]:
    """The specs of all rules that match the path `name`; one, if the table is right.

    An adapter is split as the weight it belongs to: lora_A [r, in] along `in`, lora_B [out, r]
    along `out`, the rank never.
    """
    layer, _, leaf = name.rpartition("/")
    if leaf in ("lora_A", "lora_B"):
        return [
            P(*spec[:-2], *((None, spec[-1]) if leaf == "lora_A" else (spec[-2], None)))
            for spec in matching_rules(f"{layer}/weight")
        ]
    return [spec for pattern, spec in RULES if re.search(rf"(^|/){pattern}$", name)]


def param_shardings(mesh: Mesh, tree: Any) -> Any:
    """The NamedSharding of each leaf of parameters or of a state that holds parameters.

    Args:
      tree: arrays or `jax.eval_shape` results. Scalars (steps, counts) are replicated.

    Returns:
      The tree with a NamedSharding in place of each leaf. A dimension that its mesh axis does not
      divide is replicated.
    """

    def sharding(path, leaf) -> NamedSharding:
        if leaf.ndim == 0:
            return NamedSharding(mesh, P())
        name = path_name(path)
        rules = matching_rules(name)
        assert len(rules) == 1, f"{name} matches {len(rules)} rules of sharding.RULES"
        assert len(rules[0]) <= leaf.ndim, f"{name} {leaf.shape} has no room for {rules[0]}"
        return NamedSharding(mesh, P(*_fitting(mesh, rules[0], leaf.shape)))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds."""
    return NamedSharding(mesh, P())


def replicate(mesh: Mesh, x: Any) -> Any:
    """Puts an array, or a key, on every device; on several hosts, each has the same."""
    sharding = replicated(mesh)
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(
            replicate(mesh, jax.random.key_data(x)), impl=jax.random.key_impl(x)
        )
    host = np.asarray(jax.device_get(x))
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def shard_batch(mesh: Mesh, tree: Any) -> Any:
    """Puts arrays on the mesh, their first axis split over the batch axes.

    Args:
      tree: on several hosts, each gives the rows that it holds (`BatchRows.local_rows`).

    Raises:
      UserError: the batch does not divide by the number of shards.
    """
    sharding = NamedSharding(mesh, P(BATCH_AXES))
    if sharding.is_fully_addressable:

        def put(x):
            _shard_size(mesh, x.shape[0])
            return jax.device_put(x, sharding)

        return jax.tree.map(put, tree)

    held = _held_shards(mesh)

    def put_held(x):
        x = np.asarray(x)
        size = len(x) // len(held)

        def part(index: tuple[slice, ...]):
            place = held.index((index[0].start or 0) // size)
            return x[place * size : (place + 1) * size]

        shape = (size * batch_shards(mesh), *x.shape[1:])
        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(put_held, tree)


def local_rows(mesh: Mesh, tree: Any) -> Any:
    """Numpy arrays of the rows of a batch that this process holds; the inverse of `shard_batch`."""
    sharding = NamedSharding(mesh, P(BATCH_AXES))
    if sharding.is_fully_addressable:
        return jax.device_get(tree)

    def fetch(x):
        if not x.sharding.is_equivalent_to(sharding, x.ndim):
            x = jax.jit(lambda x: x, out_shardings=sharding)(x)
        shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
        return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])

    return jax.tree.map(fetch, tree)


def constrain_batch(tree: Any, *, axis: int = 0) -> Any:
    """Inside jit: the arrays with `axis` split over the batch axes of the mesh in context.

    Without a mesh nothing is asked for.
    """
    if mesh_in_context() is None:
        return tree
    spec = P(*[None] * axis, BATCH_AXES)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), tree)


def constrain(x: Any, *axes: str | tuple[str, ...] | None) -> Any:
    """Inside jit: `x` split as `axes` say, one entry per dimension, the rest of them whole.

    An axis that does not divide its dimension is left out: so key-value heads that are fewer than
    `tensor` are whole on every device. Nothing is asked for on one device.
    """
    mesh = mesh_in_context()
    if mesh is None or mesh.size == 1:
        return x
    return jax.lax.with_sharding_constraint(x, P(*_fitting(mesh, axes, x.shape)))


def constrain_stream(x: jax.Array) -> jax.Array:
    """The residual stream [b ...] at the border of a block: every prompt where it belongs."""
    return constrain(x, BATCH_AXES)


def constrain_heads(x: jax.Array) -> jax.Array:
    """Queries, keys, values or a cache of them [b ... heads size]: heads over `tensor`."""
    return constrain(x, BATCH_AXES, *[None] * (x.ndim - 3), "tensor")


def image_axes(batch: int) -> tuple[str, ...]:
    """The axes that images are spread over: all, if their number allows.

    The tower is small and images know nothing of each other, so that splitting its matmuls over
    `tensor` would cost more than it gives.
    """
    mesh = mesh_in_context()
    return ALL_AXES if mesh is not None and batch % mesh.size == 0 else BATCH_AXES


def constrain_images(tree: Any) -> Any:
    """Inside jit: arrays [b ...] of the vision tower, spread as `image_axes` says."""
    return jax.tree.map(lambda x: constrain(x, image_axes(x.shape[0])), tree)


def gather_for_decoding(params: Any) -> Any:
    """Inside jit: the decoder's weights in the layout of the rollout, split over `tensor` alone.

    A step of decoding reads every weight for a few tokens. Parts over `fsdp` would have to be
    brought together in every step; so they are once, before the loop.

    Args:
      params: under their paths; of a stack either all or one layer without the axis of layers, of
        which a gather leaves no copy of the whole stack behind.
    """

    def gathered(path, leaf):
        axes = _axes_of(path_name(path), leaf)
        return constrain(leaf, *(None if axis == "fsdp" else axis for axis in axes))

    return jax.tree_util.tree_map_with_path(gathered, params)


def gather_for_update(params: Any, *, dtype: DTypeLike) -> Any:
    """Inside jit: parameters whose matrices of decoder layers are whole over `fsdp`, in `dtype`.

    A step that computes with them several times (forward, again for the backward pass, and in each
    micro-batch) sends them once, for the memory of a copy split over `tensor` alone.

    Args:
      dtype: of matmuls, to which each of them would round its matrix all the same.
    """

    def gathered(path, leaf):
        name = path_name(path)
        if not re.fullmatch(r"language_model/layers/.*/weight", name):
            return leaf
        axes = (None if axis == "fsdp" else axis for axis in _axes_of(name, leaf))
        return constrain(leaf.astype(dtype), *axes)

    return jax.tree_util.tree_map_with_path(gathered, params)


def scatter_gradients(layer: Any) -> Any:
    """Inside jit: the weights of one layer of the decoder; their gradients are spread over the mesh
    as the weights are, layer by layer: sums over `fsdp` keep on each device its part of the sum.
    """

    def scattered(path, leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):  # the key of an adapter's dropout
            return leaf
        return _scattered(leaf, tuple(_axes_of(f"layers/{path_name(path)}", leaf)))

    return jax.tree_util.tree_map_with_path(scattered, layer)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _scattered(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    return x


_scattered.defvjp(
    lambda x, axes: (x, None), lambda axes, _, gradient: (constrain(gradient, *axes),)
)


def _axes_of(name: str, leaf: Any) -> tuple[Any, ...]:
    """The axes of a parameter's dimensions; of one layer of a stack those without the stack."""
    (spec,) = matching_rules(name)
    return tuple(spec)[-leaf.ndim :] if leaf.ndim else ()


def on_own_rows(function: Callable) -> Callable:
    """Inside jit: `function(params, *arrays)` of [b ...] arrays and results, which each device of
    the mesh in context computes for its own rows, with no other in between: a loop takes as many
    steps as they need. The parameters are brought to every device.
    """
    mesh = mesh_in_context()
    if mesh is None or mesh.size == 1:
        return function
    rows = P(BATCH_AXES)

    def call(params: Any, *arrays: Any) -> Any:
        return jax.shard_map(
            function,
            in_specs=(P(), *[rows] * len(arrays)),
            out_specs=rows,
            check_vma=False,  # loops begin with constants, which no device owns
        )(params, *arrays)

    return call


def over_batch(function: Callable, *, dtype: DTypeLike) -> Callable:
    """Inside jit: `function(weight, *arrays)`, every device with its own prompts and the weight
    [out, size] brought together over `fsdp` once, its gradient spread again once.

    The arrays and the results are [b ...]; `tensor` is left to XLA within.

    Args:
      dtype: that `function` computes with the weight in, and so the one it travels in; its gradient
        is summed in the weight's own on each device.
    """

    def call(weight: jax.Array, *arrays: jax.Array) -> Any:
        mesh = mesh_in_context()
        shards = 1 if mesh is None else batch_shards(mesh)
        if shards == 1 or len(arrays[0]) % shards:
            return function(weight, *arrays)

        def local(own: jax.Array, *arrays: jax.Array) -> Any:
            return function(own[0].astype(weight.dtype), *arrays)

        # A copy each, of which XLA makes a gather, and a sum over the copies going back, of which
        # it makes a scatter. The collectives of shard_map itself would lose the split of the other
        # dimension over `tensor`, or bring the whole gradient to every device.
        copies = jnp.broadcast_to(weight.astype(dtype)[None], (shards, *weight.shape))
        rows = P(BATCH_AXES)
        return jax.shard_map(
            local,
            in_specs=(rows, *[rows] * len(arrays)),
            out_specs=rows,
            axis_names=set(BATCH_AXES),
        )(constrain(copies, BATCH_AXES, "tensor"), *arrays)

    return call


def _fitting(mesh: Any, axes: Iterable[Any], shape: Sequence[int]) -> list[Any]:
    """`axes` without those that do not divide their dimension."""

    def parts(axis: Any) -> int:
        names = axis if isinstance(axis, tuple) else (axis,)
        return math.prod(mesh.shape[name] for name in names if name is not None)

    return [
        axis if size % parts(axis) == 0 else None for axis, size in zip(axes, shape, strict=False)
    ]
