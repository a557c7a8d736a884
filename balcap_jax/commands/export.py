"""`balcap export`: the policy of a run as a Hugging Face folder."""

from pathlib import Path

import jax.numpy as jnp

from balcap_jax.config.commands import ExportConfig
from balcap_jax.errors import UserError
from balcap_jax.models.config import read_json
from balcap_jax.models.hf.folders import POLICY
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained
from balcap_jax.runs.folder import SUMMARY
from balcap_jax.training.checkpoint import latest_step_of
from balcap_jax.training.saved_policy import saved_policy

DTYPES = ("float32", "bfloat16", "float16")


def export(config: ExportConfig) -> str:
    """Writes the policy of `config.run` to `config.out`, a folder that transformers and vLLM load.

    Returns:
      What was taken: "its finished policy" or "its checkpoint of step N".

    Raises:
      UserError: `out` exists and holds something, `run` is not a run, is being written, or has
        neither a finished policy nor the checkpoint, or the disk refuses.
    """
    run, out = config.run, config.out
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(
            f"{out} already exists and is not an empty folder, and nothing is overwritten; choose "
            "another OUT."
        )
    if not config.checkpoint and _finished(run):
        source, taken = run / POLICY, "its finished policy"
        stored = read_json(source / "config.json").get("dtype")
        if stored not in DTYPES:  # several, or nothing that weights are stored as
            stored = "float32"
        policy, params = load_pretrained(source, dtype=stored)
    else:
        source, policy, params, step = saved_policy(run, config.checkpoint)
        taken, stored = f"its checkpoint of step {step}", jnp.dtype(policy.dtype).name
    save_pretrained(out, policy, params, dtype=stored, source=source)
    return taken


def _finished(run: Path) -> bool:
    """Whether the run wrote its policy at its end and has not been resumed and saved since."""
    written = (run / POLICY / "config.json").is_file()
    if not written or not (run / SUMMARY).is_file():  # supervised runs wrote none once
        return written
    return latest_step_of(run) <= read_json(run / SUMMARY).get("steps", 0)
