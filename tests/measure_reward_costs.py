"""What a reward asks a model for a caption: calls, tokens, and the price of 1,000 captions.

    python tests/measure_reward_costs.py 0.1 0.4        # of a million prompt and answer tokens

Captions of 200 words and 24 units, of images of 1024 x 768 with 6 criteria; 8 differences from the
reference; three judges of claims. A token is four letters, or 28 x 28 pixels, so the
numbers are good to compare rewards by; what a run really spends it says itself (judge/price).
"""

import json
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from judge_server import JudgeServer, judge
from PIL import Image

from balcap_jax.config.claim_rivals import ClaimsConfig, RubricConfig
from balcap_jax.config.judge import JudgeConfig
from balcap_jax.config.reward import RewardConfig
from balcap_jax.config.rivals import RewardJudgeConfig
from balcap_jax.data.scene_source import SceneSource
from balcap_jax.rewards.callables import Completions, TrainerState
from balcap_jax.rewards.llm.judge import LLMJudge
from balcap_jax.rewards.rivals.claim_questions import SPLIT
from balcap_jax.rewards.rivals.rivals import make_rivals

CAPTIONS, WORDS = 10, 200
IMAGE_TOKENS = 1024 * 768 // 28**2
# What there is to judge in a caption of this length.
UNITS, CRITERIA, DIFFERENCES = 24, 6, 8
JUDGES = ("one", "two", "three")
ERROR = "ERROR_TYPE: color_hallucination\nERROR_DETAIL: the car is not red\nSEVERITY_LEVEL: 2"
DIFFERENCE = f"""[DIFFERENCE {{place}}]
ASPECT: the colour of the car
CAPTION_A_CLAIM: the car is red
CAPTION_B_CLAIM: the car is blue
JUDGMENT: B
CAPTION_A_ERROR:
{ERROR}
CAPTION_B_ERROR:
ERROR_TYPE: NONE
ERROR_DETAIL: NONE
SEVERITY_LEVEL: NA

"""


def marks(count: int) -> str:
    return json.dumps({"marks": [{"id": f"m{i:02d}", "met": 1} for i in range(1, count + 1)]})


def of_claims(body: dict[str, Any]) -> str:
    if body["messages"][0]["content"] == SPLIT.instructions:
        name = zlib.crc32(body["messages"][1]["content"].encode())  # units of this caption alone
        return json.dumps({"units": [f"Car {name} {i} is red." for i in range(UNITS)]})
    return marks(UNITS)


def of_claim_diff(_: dict[str, Any]) -> str:
    told = "".join(DIFFERENCE.format(place=i) for i in range(1, DIFFERENCES + 1))
    return f"{told}[OVERALL_WINNER]\nB"


# By reward, what its judge answers: of a usual length.
ANSWERS: dict[str, Callable[[dict[str, Any]], str]] = {
    "qa_utility": lambda _: "The answer is B.",
    "rubric": lambda _: marks(CRITERIA),
    "claims": of_claims,
    "claim_diff": of_claim_diff,
}


def rubrics(examples: list, folder: Path) -> Path:
    """A file of rubrics of these images."""
    criteria = [{"text": f"Says that the car {i} is red.", "severity": 2} for i in range(CRITERIA)]
    path = folder / "rubrics.jsonl"
    path.write_text(
        "".join(json.dumps({"id": e.id, "criteria": criteria}) + "\n" for e in examples)
    )
    return path


def captioned() -> tuple[list, list[str]]:
    source = SceneSource("train", CAPTIONS)
    photo = Image.new("RGB", (1024, 768))
    examples = [source[i]._replace(image=photo) for i in range(CAPTIONS)]
    texts = [(f"{e.reference} " * 20).split()[:WORDS] for e in examples]
    return examples, [f"{i}. {' '.join(text)}" for i, text in enumerate(texts)]


def tokens(request: dict[str, Any]) -> float:
    """Of the prompt of a call."""
    count = 0.0
    for message in request["messages"]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        count += sum(
            IMAGE_TOKENS if part["type"] == "image_url" else len(part["text"]) / 4 for part in parts
        )
    return count


def row(name: str, server: JudgeServer, answer: float, prices: tuple[float, float]) -> None:
    """Prints what was asked for all captions, for one of them and the price of 1,000.

    Args:
      answer: tokens of all answers.
    """
    prompt = sum(map(tokens, server.requests)) / CAPTIONS
    answer /= CAPTIONS
    price = 1000 * (prices[0] * prompt + prices[1] * answer) / 1e6
    calls = server.calls / CAPTIONS
    print(f"| {name} | {calls:g} | {prompt:,.0f} | {answer:,.0f} | {price:.2f} |")


def main(prices: tuple[float, float]) -> None:
    print("| reward | calls | prompt tokens | answer tokens | price of 1,000 captions |")
    print("|---|---|---|---|---|")
    examples, captions = captioned()
    with tempfile.TemporaryDirectory() as folder:
        with JudgeServer(answer=lambda body: json.dumps(judge(body))) as server:
            settings = JudgeConfig(
                kind="llm", model="m", base_url=server.url, cache=Path(folder) / "judge.sqlite"
            )
            asker = LLMJudge(settings)
            asker(examples, captions)
            spent = asker.lap()
            asker.close()
            row("precision, recall, linguistic", server, spent["completion_tokens"], prices)
        for name, answer in ANSWERS.items():
            with JudgeServer(answer=answer) as server:
                settings = RewardJudgeConfig(
                    kind="llm", model="m", base_url=server.url, temperature=0.6,
                    cache=Path(folder) / f"{name}.sqlite",
                )  # fmt: skip
                own: dict[str, Any] = {}
                if name == "rubric":
                    own = {"rubric": RubricConfig(file=str(rubrics(examples, Path(folder))))}
                if name == "claims":
                    own = {"claims": ClaimsConfig(judges=JUDGES)}
                reward = RewardConfig(names=(), rivals=(name,), judge=settings, **own)
                rivals = make_rivals(reward, seed=0, data=None, example=examples[0])
                state = TrainerState(global_step=0, max_steps=1, epoch=0.0)
                rivals(Completions(examples, captions, [[1]] * CAPTIONS), state)
                spent = rivals.lap()
                rivals.close()
                row(name, server, spent["completion_tokens"], prices)


if __name__ == "__main__":
    main((float(sys.argv[1]), float(sys.argv[2])))
