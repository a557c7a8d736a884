"""`balcap export`: the policy of a run as a Hugging Face folder."""

from pathlib import Path

import jax
import jax.numpy as jnp

from balcap_jax.config import files as config_files
from balcap_jax.config.commands import ExportConfig
from balcap_jax.errors import UserError
from balcap_jax.models.config import read_json
from balcap_jax.models.decoder.layers import Params
from balcap_jax.models.families import load_config, make_policy
from balcap_jax.models.hf.folders import POLICY, policy_folder
from balcap_jax.models.hf.weights import load_pretrained, save_pretrained
from balcap_jax.models.policy import VisionLanguagePolicy
from balcap_jax.rl.train_state import make_optimizer, state_shapes
from balcap_jax.runs.folder import SUMMARY, RunLock, existing_run
from balcap_jax.training.checkpoint import FOLDER, Checkpoints

DTYPES = ("float32", "bfloat16", "float16")


def export(config: ExportConfig) -> str:
    """Writes the policy of `config.run` to `config.out`, a folder that transformers and vLLM load.

    Returns:
      What was taken: "its finished policy" or "its checkpoint of step N".

    Raises:
      UserError: `out` exists and holds something, `run` is not a run, is being written, or has
        neither a finished policy nor a checkpoint, or the disk refuses.
    """
    run, out = config.run, config.out
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(
            f"{out} already exists and is not an empty folder, and nothing is overwritten; choose "
            "another OUT."
        )
    if _finished(run):
        source, taken = run / POLICY, "its finished policy"
        stored = read_json(source / "config.json").get("dtype")
        if stored not in DTYPES:  # several, or nothing that weights are stored as
            stored = "float32"
        policy, params = load_pretrained(source, dtype=stored)
    else:
        source, policy, params, step = _last_checkpoint(existing_run(run, needs=FOLDER))
        taken, stored = f"its checkpoint of step {step}", jnp.dtype(policy.dtype).name
    save_pretrained(out, policy, params, dtype=stored, source=source)
    return taken


def _finished(run: Path) -> bool:
    """Whether the run wrote its policy at its end and has not been resumed and saved since."""
    written = (run / POLICY / "config.json").is_file()
    if not written or not (run / SUMMARY).is_file():  # a supervised run writes no summary
        return written
    steps = [int(path.name) for path in (run / FOLDER).glob("*") if path.name.isdigit()]
    return max(steps, default=0) <= read_json(run / SUMMARY).get("steps", 0)


def _last_checkpoint(run: Path) -> tuple[Path, VisionLanguagePolicy, Params, int]:
    """The folder that the run started from, and its policy at the last saved step."""
    config = config_files.load_run(run)
    source = policy_folder(config.model.path, revision=config.model.revision)
    policy = make_policy(load_config(source), dtype=config.model.dtype)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))  # float32, as they are trained
    # The settings of an optimizer do not change what its state is made of.
    frozen = () if config.model.train_vision else policy.vision_paths
    state = state_shapes(shapes, make_optimizer(learning_rate=1.0), frozen=frozen)
    # To the host: a state that was spread over devices need not fit on one.
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host), state
    )
    # Opening checkpoints clears away what is half saved: not under a run that is being written.
    with RunLock(run), Checkpoints(run) as checkpoints:
        restored, extra = checkpoints.restore(state)
    return source, policy, restored.params, extra["step"]
