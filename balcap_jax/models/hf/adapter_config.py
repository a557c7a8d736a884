"""adapter_config.json of PEFT: what it says of an adapter, and what is refused."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from balcap_jax.errors import UserError
from balcap_jax.models.decoder.lora import Lora
from balcap_jax.models.hf.declarations import ADAPTERS
from balcap_jax.models.hf.hub import is_hub_name, snapshot
from balcap_jax.models.json_files import read_json, shown

CONFIG, WEIGHTS, PICKLE = ADAPTERS

# Entries that change what an adapter computes, and the values that change nothing.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    # Others (pissa, olora, loftq ...) change the base's weights as well.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
_REFUSED = (
    *("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "fan_in_fan_out"),
    *("layers_to_transform", "layer_replication", "lora_bias", "trainable_token_indices"),
    *("target_parameters", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config"),
    *("megatron_config", "velora_config", "monteclora_config", "kasa_config"),
)


class PeftConfig(NamedTuple):
    """What adapter_config.json says.

    Attributes:
      base: base_model_name_or_path, "" where it names none.
      revision: branch, tag or commit of a base on the hub; None: its main branch.
    """

    rank: int
    lora: Lora
    base: str
    revision: str | None = None


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds a PEFT adapter and no whole policy."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter_config(folder: Path) -> PeftConfig:
    """The settings of the adapter in `folder`.

    Raises:
      UserError: there is no readable adapter_config.json, or it asks for more than LoRA.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(
            f"{folder} has no {CONFIG}; give the folder of an adapter that PEFT wrote, or that "
            "`balcap export --adapter` did."
        )
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise UserError(
            f"{path} has peft_type {shown(config.get('peft_type'))}, and LORA alone is read; give "
            "a LoRA adapter, or merge this one into its base (merge_and_unload of peft)."
        )
    more = [name for name in _REFUSED if config.get(name)]
    more += [n for n, plain in _PLAIN.items() if n in config and config[n] not in plain]
    if more:
        raise UserError(
            f"{path} has {more[0]}={shown(config[more[0]])}, which is more than LoRA on linear "
            "layers and is not read; merge the adapter into its base (merge_and_unload of peft) "
            "and give that folder."
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    for name, value in (("r", rank), ("lora_alpha", alpha)):
        number = isinstance(value, int if name == "r" else int | float)
        if not number or isinstance(value, bool) or value <= 0:
            raise UserError(
                f"{path} has {name}={shown(value)}, which must be a number above 0; take the file "
                "that was written with the adapter's weights."
            )
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    return PeftConfig(
        rank=rank,
        lora=Lora(alpha=float(alpha), rslora=config.get("use_rslora") is True),
        base=base if isinstance(base, str) else "",
        revision=revision if isinstance(revision, str) and revision else None,
    )


def base_folder(folder: Path) -> Path:
    """The folder with the policy that the adapter in `folder` is for; `folder` itself where it
    holds no adapter.

    Raises:
      UserError: the adapter names no base, or one that is neither a folder nor on the hub.
    """
    if not is_adapter(folder):
        return folder
    config = read_adapter_config(folder)
    named = config.base
    for candidate in (Path(named), folder / named):
        if named and (candidate / "config.json").is_file():
            return candidate
    if is_hub_name(named):
        return snapshot(named, revision=config.revision)
    raise UserError(
        f"{folder / CONFIG} has base_model_name_or_path {named!r}, which is neither a folder here "
        "nor a name on the hub; write the path of its base there, or give the base as "
        "--model.path and this folder as --model.lora.start."
    )


def config_of(
    *,
    rank: int,
    lora: Lora,
    base: str,
    revision: str | None,
    target_modules: str | Sequence[str],
) -> Mapping[str, Any]:
    """The content of adapter_config.json, as PEFT and vLLM read it."""
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "use_dora": False,
        "target_modules": target_modules if isinstance(target_modules, str) else [*target_modules],
        "exclude_modules": None,
        "modules_to_save": None,
        "layers_to_transform": None,
        "layers_pattern": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "revision": revision,
    }
