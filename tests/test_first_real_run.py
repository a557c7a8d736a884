"""docs/first_real_run.md: what it shows as code runs, and its config is one."""

import json
import re
from pathlib import Path

from balcap_jax.commands.checks.lines import BOUNDS
from balcap_jax.config.commands import TrainConfig
from balcap_jax.config.files import load_toml
from balcap_jax.models.families import make_policy
from balcap_jax.models.hf.weights import stored_shapes
from balcap_jax.plan.workloads.random_folder import config_of

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "first_real_run.md").read_text(encoding="utf-8")
CONFIG = "qwen2_5_vl_3b_lora_one_card"


def test_own_minus_other_tells_captions_of_the_photo_from_captions_of_all(tmp_path, capsys):
    references = ["a red car on a street", "two dogs on a beach", "a bowl of green apples"]

    def written(name, captions):
        path = tmp_path / f"{name}.jsonl"
        rows = [
            {"caption": caption, "reference": reference, "references": [reference]}
            for caption, reference in zip(captions, references, strict=True)
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    own = written("before", ["A red car.", "Two dogs on a beach.", "A bowl of apples."])
    same = written("after", ["A red car, two dogs, a beach and apples."] * 3)
    [code] = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    for name, path in (("before", own), ("after", same)):
        code = code.replace(f'"runs/NAME/evaluation/{name}.jsonl"', repr(path))
    exec(compile(code, "first_real_run.md", "exec"), {})  # noqa: S102
    before, after = map(float, capsys.readouterr().out.split())
    assert before > 0.5
    assert abs(after) < 0.1


def test_the_bounds_are_those_of_the_code():
    rows = {row.split("|")[1].split(":")[0].strip(): row.split("|")[2:4] for row in
            re.findall(r"^\|.*\|$", TEXT, re.MULTILINE)}  # fmt: skip
    fields = {"logits": "logits", "loss": "loss", "gradient": "gradient", "attention": "logprobs"}
    for name, field in fields.items():
        said = [float(cell) for cell in rows[name]]
        assert said == [getattr(BOUNDS[dtype], field) for dtype in ("float32", "bfloat16")], name


def test_the_sizes_in_the_formulas_are_those_of_the_policy_and_the_config():
    config = load_toml(TrainConfig, Path(CONFIG))
    shapes = stored_shapes(make_policy(config_of("qwen2.5-vl-3b")))
    count = lambda keys: sum(_size(shapes[key]) for key in keys)  # noqa: E731
    assert f"{count(shapes) / 1e9:.3f}e9 x 2" in TEXT
    decoder = [key for key in shapes if not key.startswith("visual.")]
    assert f"{count(decoder) / 1e9:.3f}e9 x 2" in TEXT
    # An adapter of rank 1 has inputs + outputs numbers.
    matmuls = [key for key in decoder if ".layers." in key and len(shapes[key]) == 2]
    assert len(matmuls) == 36 * 7
    assert f"r x {sum(sum(shapes[key]) for key in matmuls):,}" in TEXT
    batch, group = config.prompts_per_step, config.rollout.group_size
    tokens = config.rollout.max_new_tokens
    assert f"B = {batch} photos, G = {group} captions, P = 288 tokens of prompt, C = {tokens}" in (
        TEXT
    )
    assert f"B P + B G C = {batch * 288 + batch * group * tokens:,}" in TEXT
    assert config.rl.micro_batches == batch  # one photo per micro-batch
    assert config.data.max_pixels == 448 * 448  # 256 image tokens, and 32 for the words


def _size(shape):
    size = 1
    for side in shape:
        size *= side
    return size
