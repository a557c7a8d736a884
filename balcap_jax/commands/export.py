"""`balcap export`: the policy of a run as a Hugging Face folder."""

import shutil
from pathlib import Path

import jax.numpy as jnp

from balcap_jax.config.commands import ExportConfig
from balcap_jax.errors import UserError
from balcap_jax.models.config import read_json
from balcap_jax.models.hf.adapter_config import CONFIG, WEIGHTS
from balcap_jax.models.hf.adapters import save_adapter
from balcap_jax.models.hf.folders import ADAPTER, POLICY
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained
from balcap_jax.runs.folder import disk_errors, existing_run
from balcap_jax.storage.local import fetched, written_locally
from balcap_jax.training.adapter_run import base_of
from balcap_jax.training.saved_policy import is_finished, saved_policy

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
    if config.adapter or config.merged:
        _check_has_adapter(run)
    finished = not config.checkpoint and is_finished(run)
    if config.adapter:
        return _export_adapter(config, finished=finished)
    if finished:
        source, taken = fetched(run / POLICY), "its finished policy"
        stored = read_json(source / "config.json").get("dtype")
        if stored not in DTYPES:  # several, or nothing that weights are stored as
            stored = "float32"
        policy, params = load_pretrained(source, dtype=stored)
    else:
        saved = saved_policy(run, config.checkpoint)
        source, policy, params = saved.source, saved.policy, saved.params
        assert params is not None
        taken, stored = f"its checkpoint of step {saved.step}", jnp.dtype(policy.dtype).name
    save_pretrained(out, policy, params, dtype=stored, source=source)
    return taken


def _export_adapter(config: ExportConfig, *, finished: bool) -> str:
    """Writes the adapter alone; the base is not read."""
    run, out = config.run, config.out
    if finished:
        folder = fetched(run / ADAPTER)
        out.mkdir(parents=True, exist_ok=True)
        with disk_errors(out):
            for name in (CONFIG, WEIGHTS):
                with written_locally(out / name) as file:
                    shutil.copyfile(folder / name, file)
        return "its finished adapter"
    saved = saved_policy(run, config.checkpoint, adapter_only=True)
    assert saved.adapters is not None
    base, revision = base_of(saved.model, saved.source)
    save_adapter(out, saved.policy, saved.adapters, base=base, revision=revision)
    return f"the adapter of its checkpoint of step {saved.step}"


def _check_has_adapter(run: Path) -> None:
    """Raises a UserError where a run trained no adapter."""
    lora = read_json(existing_run(run, needs="config.json") / "config.json").get("model", {})
    lora = lora.get("lora", {}) if isinstance(lora, dict) else {}
    if not (lora.get("rank") or lora.get("start")):
        raise UserError(
            f"{run} trained whole weights and has no adapter (model.lora.rank=0); leave --adapter "
            "and --merged out."
        )
