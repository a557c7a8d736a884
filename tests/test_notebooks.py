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
    last = f"import json\nimport numpy as np\nprint(json.dumps({show}))"
    notebook.cells.append(nbformat.v4.new_code_cell(last))
    executed(notebook)
    return dict(zip(names, json.loads(notebook.cells[-1].outputs[-1].text), strict=True))


def executed(notebook):
    """`notebook` with the outputs of its cells."""
    resources = {"metadata": {"path": str(ROOT)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
    return notebook


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


def ran(name: str, *, until: str = ""):
    """A notebook for Colab with its outputs here; `COLAB_RELEASE_TAG` is set there alone.

    `until`: what the last cell to run has; default: all run.
    """
    path = ROOT / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    cells = notebook.cells
    assert f"{path.stem}.ipynb)" in cells[0].source  # the badge opens this one
    assert "**Runtime**" in cells[0].source
    assert "%pip install" in cells[1].source
    assert "drive.mount" in cells[2].source
    if until:
        last = next(i for i, cell in enumerate(cells) if until in cell.source)
        notebook.cells = cells[: last + 1]
    return executed(notebook)


@pytest.fixture
def small(tmp_path, monkeypatch) -> Path:
    """The folder that a notebook writes to, with a few steps only."""
    monkeypatch.setenv("BALCAP_STEPS", "2")
    monkeypatch.setenv("BALCAP_OUT", str(tmp_path))
    return tmp_path


def printed(notebook) -> list[str]:
    """What each cell of code wrote."""
    return [
        "".join(out.get("text", "") for out in cell.outputs if out.output_type == "stream")
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def shown(notebook, kind: str) -> int:
    """How many outputs of this MIME type the cells have."""
    return sum(
        kind in out.get("data", {})
        for cell in notebook.cells
        if cell.cell_type == "code"
        for out in cell.outputs
    )


def steps_of(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]


@pytest.mark.slow
def test_quickstart(small, monkeypatch):
    notebook = ran("quickstart")
    run = small / "quickstart"
    assert steps_of(run) == [1, 2]
    assert any("b_capscore" in text and "->" in text for text in printed(notebook))
    assert shown(notebook, "image/png") == 3  # curves, lengths, a scene
    assert shown(notebook, "text/html") >= 1
    assert (small / "quickstart-policy" / "model.safetensors").exists()
    # After a disconnect cells are run again: nothing is trained twice, nothing is refused.
    ran("quickstart", until="trainer.train()")
    assert steps_of(run) == [1, 2]


@pytest.mark.slow
@pytest.mark.long
def test_evaluate_and_compare(small, monkeypatch):
    monkeypatch.setenv("BALCAP_IMAGES", "6")
    notebook = ran("evaluate_and_compare")
    said = printed(notebook)
    intervals = next(text for text in said if "95 % from" in text)
    assert intervals.count("6 images") == 3
    for name in ("base", "trained"):
        scores = [json.loads(line) for line in (small / f"compared-{name}-scores.jsonl").open()]
        assert len(scores) == 6
        assert all(0 <= row["precision"] <= 1 for row in scores)
    assert "reference:" in said[-1]
    assert "trained:" in said[-1]


@pytest.mark.long
@pytest.mark.slow
def test_train_with_your_own_reward(small):
    notebook = ran("train_with_your_own_reward")
    rows = [json.loads(line) for line in (small / "brief" / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all({"reward/brief/mean", "brief/over", "heldout/brief"} <= set(row) for row in rows)
    said = printed(notebook)
    assert any("b_capscore" in text and "->" in text for text in said)
    # rich's bar is a widget in a notebook.
    widgets = json.dumps(notebook.metadata["widgets"])
    assert "2/2" in widgets
    assert "b-CapScore" in widgets
    # Errors speak of settings, as Python calls them.
    (mistake,) = [text for text in said if "num_generations" in text]
    assert "rollout.group_size" in mistake
    assert "--" not in mistake


@pytest.mark.slow
@pytest.mark.long
def test_lora_on_one_card(small, monkeypatch):
    monkeypatch.setenv("BALCAP_MODEL", "base")
    notebook = ran("lora_on_one_card")
    run = small / "lora"
    assert steps_of(run) == [1, 2]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)  # adapters begin as nothing
    assert rows[1]["kl"] > 0
    said = printed(notebook)
    assert any("'peft_type': 'LORA', 'r': 8" in text for text in said)
    assert "caption:" in said[-1]
    sizes = {
        name: sum(file.stat().st_size for file in (run / name).iterdir())
        for name in ("adapter", "policy")
    }
    assert 0 < sizes["adapter"] < sizes["policy"] / 4
