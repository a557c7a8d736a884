"""Hugging Face's side of `balcap bench step`: the same work in transformers on torch.

As TRL's GRPO trainer runs it: each of the B G sequences has its own prompt and image, in `generate`
and in the forward of the loss. Logits are made at the positions of the captions only.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from balcap_jax.errors import UserError
from balcap_jax.models.families import family_of
from balcap_jax.models.hf.weights import save_pretrained
from balcap_jax.plan.workloads.presets import LEARNING_RATE, Preset
from balcap_jax.runs.cores import usable_cores

Arrays = dict[str, np.ndarray]
WEIGHTS, CAPTIONS, PROMPTS = "policy", "captions.npz", "prompts.npz"


def check_installed(*more: str, flag: str = "hf") -> None:
    """Raises a UserError without torch and the other packages; `flag` is what asks for them."""
    missing = [name for name in ("torch", *more) if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--against {flag} runs on torch, and {missing[0]} is not installed; pip "
            "install 'balcap_jax[test]' or drop the flag."
        )


class HuggingFace:
    """The model and inputs that `write_inputs` wrote, its tower frozen, and the two halves of a
    training step. `rollout` and `update` run one each and wait for it.
    """

    name = "hf"

    def __init__(self, preset: Preset, folder: Path, *, lora: int = 0) -> None:
        """
        Args:
          lora: rank of adapters of peft on the decoder; 0: whole weights are trained.
        """
        import torch
        from transformers import AutoModelForImageTextToText

        if not torch.cuda.is_available():
            torch.set_num_threads(usable_cores())
        self.torch, self.preset = torch, preset
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = AutoModelForImageTextToText.from_pretrained(
            folder / WEIGHTS,
            dtype=getattr(torch, preset.dtype),
            attn_implementation="sdpa",
            local_files_only=True,
            trust_remote_code=False,
        ).to(self.device)
        vision = family_of(preset.config).vision_paths
        for name, parameter in self.model.named_parameters():
            # Out of the mapped file into memory of its own, as after a first step of training.
            parameter.data = parameter.data.clone()
            parameter.requires_grad = not any(part in name for part in vision)
        if lora:
            self.model = with_peft(self.model, lora)
        self.at_once = preset.torch_sequences or preset.batch * preset.group
        if self.at_once < preset.batch * preset.group:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.model.generation_config.eos_token_id = None  # all captions have C tokens
        self.model.generation_config.pad_token_id = preset.config.pad_token_id
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trainable, lr=LEARNING_RATE, eps=1e-8, weight_decay=0.0, fused=True
        )
        self.inputs = {
            name: torch.from_numpy(x).to(self.device)
            for name, x in each_group_times(_read(folder / PROMPTS), preset).items()
        }
        self.inputs["pixel_values"] = self.inputs["pixel_values"].to(self.model.dtype)
        captions = _read(folder / CAPTIONS)
        self.captions = {
            name: torch.from_numpy(x).flatten(0, 1).to(self.device) for name, x in captions.items()
        }

    def rollout(self) -> None:
        """B G captions of C tokens by `generate`: temperature 1, all tokens."""
        torch = self.torch
        self.model.eval()
        with torch.no_grad():
            out = self.model.generate(
                **self.inputs,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=self.preset.completion,
                min_new_tokens=self.preset.completion,
            )
        self._wait()
        assert out.shape[1] == self.inputs["input_ids"].shape[1] + self.preset.completion

    def update(self) -> float:
        """Forward, clipped loss, backward, clipped gradients, AdamW; the loss before the step."""
        torch = self.torch
        self.model.train()
        count, loss = self.preset.batch * self.preset.group, 0.0
        for start in range(0, count, self.at_once):
            rows = slice(start, min(start + self.at_once, count))
            part = self.loss(rows) / (count * self.preset.completion)
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._wait()
        return loss

    def loss(self, rows: slice) -> Any:
        """The clipped objective of some sequences, summed over their tokens."""
        torch = self.torch
        ratio = torch.exp(self.logprobs(rows) - self.captions["old_logprobs"][rows])
        advantages = self.captions["advantages"][rows, None]
        return -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).sum()

    def logprobs(self, rows: slice) -> Any:
        """[sequences, c] of the captions, float32."""
        torch, tokens = self.torch, self.captions["tokens"][rows]
        own = rows_of(self.inputs, rows, self.preset)
        ids = torch.cat([own.pop("input_ids"), tokens], dim=1)
        if "mm_token_type_ids" in own:
            own["mm_token_type_ids"] = (ids == self.preset.config.image_token_id).int()
        own["attention_mask"] = torch.ones_like(ids)
        keep = tokens.shape[1] + 1
        logits = self.model(input_ids=ids, **own, logits_to_keep=keep, use_cache=False).logits
        logits = logits[:, :-1].float()
        # Tokens that we never sample have no probability on our side.
        logits[..., list(self.preset.config.banned_tokens)] = -torch.inf
        chosen = logits.gather(-1, tokens[..., None])[..., 0]
        return chosen - torch.logsumexp(logits, dim=-1)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()


def with_peft(model: Any, rank: int) -> Any:
    """The model with adapters on the matmuls of its decoder, which alone are trained."""
    from peft import get_peft_model

    return get_peft_model(model, peft_config(rank))


def peft_config(rank: int) -> Any:
    """peft's settings of such adapters."""
    from peft import LoraConfig

    targets = r".*language_model\.layers\.\d+\.[a-z_]+\.[a-z]+_proj"
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)


def _read(path: Path) -> Arrays:
    with np.load(path) as arrays:
        return dict(arrays)


def each_group_times(arrays: Arrays, preset: Preset) -> Arrays:
    """The inputs of B G sequences: each prompt and each image G times, neighbours."""
    repeated = {}
    for name, x in arrays.items():
        each = x.reshape(preset.batch, -1, *x.shape[1:])
        repeated[name] = np.repeat(each, preset.group, axis=0).reshape(-1, *x.shape[1:])
    if "image_grid_thw" in arrays:
        tokens = repeated["input_ids"]
        repeated["mm_token_type_ids"] = (tokens == preset.config.image_token_id).astype(np.int32)
    return repeated


def rows_of(inputs: dict[str, Any], rows: slice, preset: Preset) -> dict[str, Any]:
    """The inputs of some of the sequences; each has an equal share of the patches."""
    count = preset.batch * preset.group
    part = {}
    for name, x in inputs.items():
        each = x.shape[0] // count
        part[name] = x[rows.start * each : rows.stop * each]
    return part


def write_inputs(side: Any, folder: Path) -> None:
    """The weights, prompts and captions of `side`, an `Ours`, for `HuggingFace(preset, folder)`."""
    import jax

    params = jax.device_get(side.state.params)
    save_pretrained(folder / WEIGHTS, side.policy, params, dtype=side.preset.dtype)
    batch = jax.device_get(side.batch)
    np.savez(
        folder / CAPTIONS,
        tokens=np.asarray(batch.tokens, np.int64),
        old_logprobs=batch.old_logprobs,
        advantages=batch.advantages,
    )
    np.savez(folder / PROMPTS, **side.processor.hf_arrays)
