"""The weights and inputs of tests/golden/hf_answers.npz: numpy's random numbers, so the same on
any machine and with any version of JAX or torch.
"""

from typing import Any

import numpy as np
import tiny
import tiny_llava


def case(family: str) -> tuple[Any, dict, dict[str, np.ndarray]]:
    """A tiny policy of a family, its weights, and the arrays that a processor would give.

    Three prompts, padded on the left, with two images, one image and none.
    """
    if family == "llava":
        counts = (2, 1, 0)
        tokens, mask = tiny.pad(tiny_llava.rows(counts))
        inputs = {"input_ids": tokens, "attention_mask": mask}
        return *tiny_llava.policy(), inputs | {"pixel_values": tiny_llava.images(counts)}
    assert family == "qwen2_5_vl", family
    return *tiny.policy(), tiny.processor_inputs((tiny.GRIDS[:2], tiny.GRIDS[2:3], ()))
