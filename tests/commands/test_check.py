"""`balcap check`: a sound policy passes, and what is broken fails where it is broken."""

import jax
import numpy as np
import pytest
import tiny
import tiny_hf
import tiny_llava
import tiny_parts
from judge_server import JudgeServer

from balcap_jax.commands import check as checking
from balcap_jax.commands.assemble import assemble
from balcap_jax.commands.check import block, check, table
from balcap_jax.commands.checks import lines
from balcap_jax.commands.checks.lines import Line
from balcap_jax.config.commands import AssembleConfig, ModelCheckConfig
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.errors import UserError
from balcap_jax.models import policy as policies

pytest.importorskip("torch", reason="the test extra has torch")
pytestmark = pytest.mark.torch

PROMPT = "describe the image"
COMPARED = ("logits", "greedy", "loss", "gradient")


def qwen_folder(folder):
    tiny_hf.model(tiny.CONFIG).save_pretrained(folder)
    tiny_hf.write_processor(folder)
    return folder


def llava_folder(folder):
    tiny_llava.model(tiny_llava.CONFIG).save_pretrained(folder)
    tiny_llava.write_processor(folder)
    return folder


def dinov2_folder(folder):
    """The pad token ends turns: torch gives its row no gradient if it is not told to."""
    parts = folder.with_name("parts")
    template = tiny_parts.TEXT_TEMPLATE.replace(
        "' : ' + message['content']", "' : ' + message['content'] + ' <pad> <pad>'"
    )
    decoder = tiny_parts.write_decoder(parts / "decoder", "qwen2", template=template)
    config = AssembleConfig(
        out=folder,
        tower=str(tiny_parts.write_dinov2(parts / "tower")),
        decoder=str(decoder),
    )
    assemble(config)
    return folder


FOLDERS = {"qwen2_5_vl": qwen_folder, "llava": llava_folder, "llava dinov2": dinov2_folder}


@pytest.fixture
def cleared():
    """Programs that were compiled of an equal policy are not run in the place of a broken one."""
    jax.clear_caches()
    yield
    jax.clear_caches()


def checked(folder, **settings):
    settings = {"prompt": PROMPT, "tokens": 4, "dtype": "float32"} | settings
    return check(ModelCheckConfig(model=str(folder), **settings))


def by_status(report):
    found = {"pass": set(), "fail": set(), "skipped": set()}
    for entry in report.lines:
        found[entry.status].add(entry.name)
    return found


@pytest.mark.parametrize(
    ("name", "dtypes"),
    [
        ("qwen2_5_vl", ("float32",)),
        pytest.param("llava", ("float32",), marks=pytest.mark.slow),
        pytest.param("llava", ("float32", "bfloat16"), marks=pytest.mark.slow),
        pytest.param("llava dinov2", ("float32",), marks=pytest.mark.slow),
    ],
)
def test_a_random_policy_passes(name, dtypes, tmp_path):
    folder = FOLDERS[name](tmp_path / "policy")
    report = checked(folder, dtype="both" if len(dtypes) == 2 else "float32")
    found = by_status(report)
    print(block(report))
    compared = {f"{what} {dtype}" for what in (*COMPARED, "attention xla") for dtype in dtypes}
    assert found["fail"] == set()
    assert found["pass"] == {"load"} | compared
    assert found["skipped"] == {"judge"} | {
        f"attention {backend} {dtype}" for backend in ("cudnn", "splash") for dtype in dtypes
    }
    assert not report.failed


@pytest.mark.slow
def test_a_wrong_rotary_embedding_fails_beside_transformers_alone(tmp_path, monkeypatch, cleared):
    """Both of our ways compute the same wrong thing: the attention is not to blame."""
    folder = llava_folder(tmp_path / "policy")
    right = policies.rotary_frequencies
    monkeypatch.setattr(policies, "rotary_frequencies", lambda *args: 1.5 * right(*args))
    report = checked(folder)
    assert by_status(report)["fail"] == {f"{what} float32" for what in COMPARED}
    assert "attention xla float32" in by_status(report)["pass"]
    assert report.failed


def test_wrong_positions_of_captions_fail_wherever_captions_are(tmp_path, monkeypatch, cleared):
    """The prompt alone is right: its logits pass, and the shared prompt differs from the plain."""
    folder = qwen_folder(tmp_path / "policy")
    right = policies.text_angles
    monkeypatch.setattr(
        policies, "text_angles", lambda positions, **how: 2.0 * right(positions, **how)
    )
    found = by_status(checked(folder))
    assert found["fail"] == {
        "greedy float32", "loss float32", "gradient float32", "attention xla float32",
    }  # fmt: skip
    assert "logits float32" in found["pass"]


def test_without_torch_the_rest_is_checked(tmp_path, monkeypatch):
    from balcap_jax.commands.checks import theirs

    monkeypatch.setattr(theirs, "find_spec", lambda name: None)
    report = checked(llava_folder(tmp_path / "policy"))
    assert by_status(report)["skipped"] >= {f"{what} float32" for what in COMPARED}
    assert by_status(report)["pass"] == {"load", "attention xla float32"}
    [reason] = {entry.detail for entry in report.lines if entry.name.startswith("logits")}
    assert "torch is not installed" in reason
    assert not report.failed


def test_too_little_memory_is_a_reason(tmp_path, monkeypatch):
    from balcap_jax.commands.checks import theirs

    monkeypatch.setattr(theirs, "available_memory", lambda: 10**6)
    monkeypatch.setattr(checking, "device_limit", lambda: 1000)
    report = checked(llava_folder(tmp_path / "policy"), dtype="both")
    details = {entry.name: entry.detail for entry in report.lines if entry.status == "skipped"}
    assert "do not fit on this device" in details["logits float32"]
    assert "needs 2.0 GB of host memory and 0.0 GB are free" in details["logits bfloat16"]
    assert "attention xla bfloat16" in by_status(report)["pass"]


# ---- the judge


def test_the_judge_is_asked_where_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("BALCAP_JUDGE_KEY", "secret-key")
    monkeypatch.setattr(checking, "_BACKENDS", ())
    monkeypatch.setattr(checking._Run, "_once", lambda *_: 1 / 0)  # the policy is another test's
    folder = llava_folder(tmp_path / "policy")
    with JudgeServer() as server:
        judge = JudgeConfig(kind="llm", model="a-judge", base_url=server.url)
        report = checked(folder, judge=judge)
        assert len(server.requests) == 2
    [entry] = [entry for entry in report.lines if entry.name == "judge"]
    # The server judges by arithmetic and sees nothing: its figures, whatever they are.
    assert entry.figure.startswith("precision ")
    text = block(report)
    assert "secret-key" not in text
    assert server.url not in text
    assert str(tmp_path) not in text


def test_a_judge_that_does_not_answer_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(checking, "_BACKENDS", ())
    monkeypatch.setattr(checking._Run, "_once", lambda *_: 1 / 0)
    judge = JudgeConfig(
        kind="llm", model="a-judge", base_url="http://127.0.0.1:9/v1", retries=0, backoff=0
    )
    report = checked(llava_folder(tmp_path / "policy"), judge=judge)
    [entry] = [entry for entry in report.lines if entry.name == "judge"]
    assert entry.status == "fail"
    assert entry.figure == "JudgeFailed"
    # An error of one line is that line's failure: the ZeroDivisionError above as well.
    assert by_status(report)["fail"] == {"judge"} | {f"{what} float32" for what in COMPARED}


# ---- what is printed


def test_the_table_has_80_columns_and_the_block_no_places(tmp_path, capsys):
    from rich.console import Console

    long = Line("greedy float32", "fail", "KeyError", "KeyError: [a] " + "/secret/place " * 9, 1.0)
    report = checking.Report((long, Line("judge", "skipped", detail="no judge")), {"a": "b"})
    console = Console(width=200, record=True)
    console.print(table(report))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "[a]" in text  # no markup
    assert "/secret/place" in text
    pasted = block(report)
    assert "/secret" not in pasted
    assert "balcap check: 0 pass, 1 fail, 1 skipped" in pasted
    assert pasted.count("```") == 2


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        checked(tmp_path / "nothing")
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(UserError, match="--image .* cannot be read"):
        checked("base", image=tmp_path / "a.png")


# ---- comparisons


def test_tokens_may_part_at_a_tie_and_nowhere_else():
    scores = np.array([[0.0, 10, 5, -np.inf], [10.0, 0, 9.999, -np.inf], [0.0, 0, 10, -np.inf]])
    theirs = np.array([1, 0, 2])
    assert lines.compare_tokens(theirs, theirs, scores, bound=0) == (True, "all 3 equal")
    # 10 and 9.999 of a range of 10: 1e-4 apart; after it nothing is compared.
    tie = np.array([1, 2, 0])
    assert lines.compare_tokens(tie, theirs, scores, bound=2e-4)[0]
    assert not lines.compare_tokens(tie, theirs, scores, bound=5e-5)[0]
    other = np.array([2, 0, 2])  # 5 of a range of 10
    assert not lines.compare_tokens(other, theirs, scores, bound=0.4)[0]


def test_differences_are_measured_as_they_are_said():
    theirs = np.array([[0.0, 4.0], [2.0, 1.0]])
    ours = theirs + np.array([[0.0, 0.0], [0.2, 0.0]])
    assert lines.compare_logits(ours, theirs, bound=0.051)[0]  # 0.2 of 4
    assert not lines.compare_logits(ours, theirs, bound=0.049)[0]
    assert lines.compare_number(1.1, 1.0, bound=0.11, relative=True)[0]
    assert not lines.compare_number(11.0, 10.0, bound=0.11)[0]
    nan = float("nan")
    assert not lines.compare_number(nan, 1.0, bound=1.0)[0]
    assert not lines.compare_logits(theirs * nan, theirs, bound=1.0)[0]
    assert not lines.compare_logprobs(theirs * nan, theirs, bound=1.0)[0]
