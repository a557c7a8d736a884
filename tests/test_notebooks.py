"""Every notebook runs from top to bottom, is stored without outputs, and computes what it says."""

import json
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def values_of(path: Path, *names: str) -> dict:
    """Runs a notebook and returns some of its variables, as JSON shows them."""
    notebook = nbformat.read(path, as_version=4)
    show = "[np.asarray(x).tolist() for x in (" + "".join(f"{name}, " for name in names) + ")]"
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({show}))"))
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
    return dict(zip(names, json.loads(notebook.cells[-1].outputs[-1].text), strict=True))


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    # The kernel is a process of its own: it finds the package even where it is not installed.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # conftest's backend draws without a display, but the kernel's own shows figures inline.
    monkeypatch.delenv("MPLBACKEND", raising=False)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_without_outputs(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_rewards_and_advantages():
    seen = values_of(
        ROOT / "notebooks" / "rewards_and_advantages.ipynb",
        "grpo_change",
        "gdpo_change",
        "constant_advantages",
        "rms",
        "constant_share",
        "masked['zero']",
        "masked['drop']",
    )
    # The scale of a reward matters to GRPO only; eps leaves a trace in GDPO.
    assert seen["grpo_change"] > 0.5
    assert seen["gdpo_change"] < 0.01
    assert seen["constant_advantages"] == [[0.0] * 8]
    # 4 informative groups of 64: amplified by sqrt(64 / 4).
    assert seen["rms"] == pytest.approx(4.0, rel=5e-3)
    assert seen["constant_share"] == pytest.approx([60 / 64] * 3)
    # .8 .85 .9 .75 .8 .85 and two captions masked to 0, or dropped.
    assert seen["masked['zero']"][6:] == pytest.approx([-1.61, -1.61], abs=0.005)
    assert seen["masked['drop']"][6:] == [0.0, 0.0]
    assert max(seen["masked['drop']"]) == pytest.approx(1.43, abs=0.005)
