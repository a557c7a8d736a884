"""The other side of a check: transformers on torch, in float32, on the CPU.

There the accelerator's memory is ours alone, and float32 is float32.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from balcap_jax.commands.checks.lines import SkipLine
from balcap_jax.commands.checks.ours import ADVANTAGES, joined_inputs
from balcap_jax.models.config import PolicyConfig
from balcap_jax.models.families import family_of
from balcap_jax.runs.stopwatch import available_memory

_GB = 1e9
_ROOM = 2e9  # beside the weights: activations, the two interpreters


class Theirs:
    """transformers' model of a folder and one prompt; read when it is first needed.

    Args:
      parameters: numbers in the weights.
      inputs: as Hugging Face's processor returns them, one row.
    """

    def __init__(
        self,
        folder: Path,
        config: PolicyConfig,
        parameters: int,
        inputs: Mapping[str, np.ndarray],
    ) -> None:
        self.folder, self.config, self.parameters = folder, config, parameters
        self.inputs = dict(inputs)
        self._model: Any = None

    def logits(self) -> Float[np.ndarray, "t v"]:
        """At all positions of the prompt.

        Raises:
          SkipLine: no torch, or not enough memory.
        """
        torch, model = self._loaded(copies=1)
        with torch.no_grad():
            return model(**self._tensors(self.inputs)).logits[0].float().numpy()

    def greedy(self, count: int) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n v"]]:
        """The likeliest `count` tokens, and the logits that each was chosen by.

        Raises:
          SkipLine: see `logits`.
        """
        torch, model = self._loaded(copies=1)
        given = model.generation_config.eos_token_id
        model.generation_config.eos_token_id = None  # whether the caption ends or not
        try:
            with torch.no_grad():
                out = model.generate(
                    **self._tensors(self.inputs),
                    max_new_tokens=count,
                    do_sample=False,
                    num_beams=1,
                    repetition_penalty=1.0,
                    suppress_tokens=list(self.config.banned_tokens),
                    output_scores=True,
                    return_dict_in_generate=True,
                )
        finally:
            model.generation_config.eos_token_id = given
        tokens = out.sequences[0, self.inputs["input_ids"].shape[1] :].numpy()
        return tokens, torch.cat(out.scores).float().numpy()

    def logprobs(self, captions: Int[np.ndarray, "g c"]) -> Float[np.ndarray, "g c"]:
        """Of the tokens of captions behind the prompt.

        Raises:
          SkipLine: see `logits`.
        """
        torch, _ = self._loaded(copies=1)
        with torch.no_grad():
            return np.stack([self._logprobs(caption).numpy() for caption in captions])

    def update(
        self, captions: Int[np.ndarray, "g c"], old_logprobs: Float[np.ndarray, "g c"]
    ) -> tuple[float, float]:
        """Clipped loss over all tokens alike and norm of its gradient, tower and projector frozen.

        Raises:
          SkipLine: see `logits`; the gradient takes as much memory as the weights.
        """
        torch, model = self._loaded(copies=2)
        vision = family_of(self.config).vision_paths
        for name, parameter in model.named_parameters():
            parameter.requires_grad = not any(part in name for part in vision)
        loss = 0.0
        for caption, old, advantage in zip(captions, old_logprobs, ADVANTAGES, strict=True):
            ratio = torch.exp(self._logprobs(caption) - torch.from_numpy(old))
            part = -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum()
            (part / captions.size).backward()
            loss += part.item() / captions.size
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norm = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
        )
        model.zero_grad(set_to_none=True)
        return loss, norm.item()

    def _logprobs(self, caption: Int[np.ndarray, " c"]) -> Any:
        torch, model = self._loaded(copies=1)
        keep = len(caption) + 1
        inputs = self._tensors(joined_inputs(self.inputs, caption))
        logits = model(**inputs, logits_to_keep=keep, use_cache=False).logits[0, :-1].float()
        # What we never sample has no probability on our side.
        banned = torch.tensor(self.config.banned_tokens)
        logits = logits.index_fill(1, banned, -torch.inf)
        tokens = torch.from_numpy(np.asarray(caption, np.int64))
        return torch.log_softmax(logits, dim=-1)[torch.arange(len(tokens)), tokens]

    def _tensors(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        import torch

        tensors = {name: torch.from_numpy(np.asarray(x)) for name, x in inputs.items()}
        if "image_grid_thw" in tensors:
            ids = tensors["input_ids"]
            tensors["mm_token_type_ids"] = (ids == self.config.image_token_id).int()
        return tensors

    def _loaded(self, *, copies: int) -> tuple[Any, Any]:
        if find_spec("torch") is None:
            raise SkipLine("torch is not installed; pip install torch for it")
        self._check_memory(copies if self._model is None else copies - 1)
        import torch

        if self._model is None:
            from transformers import AutoModelForImageTextToText

            self._model = AutoModelForImageTextToText.from_pretrained(
                self.folder,
                dtype=torch.float32,
                attn_implementation="eager",
                local_files_only=True,
                trust_remote_code=False,
            ).eval()
            for module in self._model.modules():
                # Else the row of the pad token has no gradient of the inputs, also where that token
                # is a word of the prompt: the end of a turn often pads as well.
                if isinstance(module, torch.nn.Embedding):
                    module.padding_idx = None
        return torch, self._model

    def _check_memory(self, copies: int) -> None:
        free, needed = available_memory(), copies * 4 * self.parameters + _ROOM * (copies > 0)
        if copies and free is not None and free < needed:
            raise SkipLine(
                f"transformers in float32 needs {needed / _GB:.1f} GB of host memory and "
                f"{free / _GB:.1f} GB are free"
            )
