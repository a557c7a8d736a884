"""Where arrays live: the mesh, and one table from parameter path to PartitionSpec.

One device is a 1 x 1 x 1 mesh and runs the same code as a pod. Axes: `data` holds copies of the
parameters, `fsdp` splits the batch and the parameters, `tensor` splits heads, MLP and vocabulary.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from balcap_jax.errors import UserError

BATCH_AXES = ("data", "fsdp")

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
    (r"encoder/layers/mlp/fc1/weight", P(None, "tensor", "fsdp")),
    (r"encoder/layers/mlp/fc1/bias", P(None, "tensor")),
    (r"encoder/layers/mlp/fc2/weight", P(None, "fsdp", "tensor")),
    (r"encoder/layers/(self_attn/out_proj|mlp/fc2)/bias", P()),
    (r"encoder/layers/layer_norm[12]/(scale|bias)", P()),
    (r"vision_tower/(pre_layrnorm|post_layernorm)/(scale|bias)", P()),
    (r"vision_tower/embeddings/class_embedding", P()),
    (r"vision_tower/embeddings/position_embedding/embedding", P(None, "fsdp")),
    (r"vision_tower/embeddings/patch_embedding/weight", P("fsdp", None)),
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
    return jax.make_mesh(
        sizes, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices
    )


def batch_shards(mesh: Mesh) -> int:
    """In how many parts the mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def path_name(path: tuple) -> str:
    """`language_model/layers/mlp/up_proj/weight` from the key path of a leaf."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matching_rules(name: str) -> list[P]:
    """The specs of all rules that match the path `name`; one, if the table is right."""
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
        fitting = [
            axis if axis is None or size % mesh.shape[axis] == 0 else None
            for axis, size in zip(rules[0], leaf.shape, strict=False)
        ]
        return NamedSharding(mesh, P(*fitting))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds."""
    return NamedSharding(mesh, P())


def shard_batch(mesh: Mesh, tree: Any) -> Any:
    """Puts arrays on the mesh, their first axis split over the batch axes.

    Raises:
      UserError: the batch does not divide by the number of shards.
    """
    shards = batch_shards(mesh)

    def put(x):
        if x.shape[0] % shards:
            raise UserError(
                f"A batch of {x.shape[0]} prompts cannot be split over {shards} data shards; "
                f"make it a multiple of {shards}, or use fewer devices."
            )
        return jax.device_put(x, NamedSharding(mesh, P(BATCH_AXES)))

    return jax.tree.map(put, tree)


def constrain_batch(tree: Any, *, axis: int = 0) -> Any:
    """Inside jit: the arrays with `axis` split over the batch axes of the mesh in context.

    The mesh is the one of `jax.set_mesh`; without one nothing is asked for.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    spec = P(*[None] * axis, BATCH_AXES)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), tree)
