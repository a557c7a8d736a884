"""Answers as tokens, and which of these are to be learned: the words of the answers and the stop
token behind each, never what the user says or what a chat template writes.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from balcap_jax.data.examples import Example
from balcap_jax.data.prompts.folder_parts import as_user_error
from balcap_jax.data.prompts.processor import Processor, conversation
from balcap_jax.data.prompts.questions import QuestionEncoder
from balcap_jax.errors import UserError
from balcap_jax.models.padding import round_up


class Text(NamedTuple):
    """What goes on from a prompt.

    Attributes:
      ids: its tokens.
      learned: of each, whether it is to be learned.
    """

    ids: list[int]
    learned: list[bool]


class AnswerEncoder:
    """Texts to learn as tokens, by a policy's tokenizer and chat template.

    Args:
      length: a longer text is cut there, and so does not learn to end.
    """

    def __init__(self, processor: Processor, *, length: int):
        self._processor, self._length = processor, length
        self._tokenizer = processor.tokenizer
        self.questions = QuestionEncoder(processor)
        # Lengths are padded to multiples of a quarter of the longest: four programs at most.
        self._step = round_up(-(-length // 4), 8)

    def check(self, example: Example) -> None:
        """Refuses a system turn that the chat template does not show.

        Raises:
          UserError: it leaves the words out.
        """
        for message in example.messages:
            if message["role"] != "system":
                continue
            words = _words(message)
            if words not in self._rendered(example, conversation(example), answer=True):
                raise UserError(
                    f"Example {example.id!r} has a system turn ({words[:40]!r}), which the chat "
                    "template of the policy leaves out; remove the system turns or take a policy "
                    "whose template has them."
                )

    def texts(self, example: Example, answers: Sequence[str]) -> list[Text]:
        """The texts to learn of an example: each answer, or the whole conversation where it has
        more turns, which the first of `answers` then begins.

        Raises:
          UserError: an answer is empty or holds a special token, or the chat template does not take
            the conversation.
        """
        if not answers or not all(answer.strip() for answer in answers):
            raise UserError(
                f"Example {example.id!r} has no answer to learn; give it a caption or remove it."
            )
        if example.questions:
            return [self._cut(self._question(example, *asked)) for asked in example.questions]
        if example.turns:
            return [self._cut(self._conversation(example))]
        return [self._cut(self._answer(example, answer)) for answer in answers]

    def pad(
        self, groups: Sequence[Sequence[Text]], *, sizes: Sequence[int] | None = None
    ) -> tuple[Int[np.ndarray, "b g c"], Bool[np.ndarray, "b g c"]]:
        """(tokens, mask) of the texts of each example; where one has fewer, nothing is learned.

        Args:
          sizes: [G, C] to pad to; default: `sizes` of these.
        """
        count, length = self.sizes(groups) if sizes is None else sizes
        tokens = np.full((len(groups), count, length), self._processor.pad_token_id, np.int32)
        mask = np.zeros(tokens.shape, bool)
        for b, group in enumerate(groups):
            for g, text in enumerate(group):
                tokens[b, g, : len(text.ids)] = text.ids
                mask[b, g, : len(text.ids)] = text.learned
        return tokens, mask

    def sizes(self, groups: Sequence[Sequence[Text]]) -> list[int]:
        """[texts of an example, tokens of a text] that these are padded to."""
        longest = max(len(text.ids) for group in groups for text in group)
        return [max(map(len, groups)), min(round_up(longest, self._step), self._length)]

    # ---- one text

    def _answer(self, example: Example, answer: str) -> Text:
        ids = [*self._ids(example, answer), self._processor.stop_tokens[0]]
        return Text(ids, [True] * len(ids))

    def _question(self, example: Example, question: str, answer: str) -> Text:
        asked, text = self.questions.ids(question), self._answer(example, answer)
        return Text([*asked, *text.ids], [*([False] * len(asked)), *text.learned])

    def _conversation(self, example: Example) -> Text:
        """All turns behind the prompt: what the template writes between two answers is tokenized by
        itself, as a sampler that goes on from there would have it.
        """
        messages = conversation(example)
        said = self._rendered(example, messages, answer=True)
        ids: list[int] = []
        learned: list[bool] = []
        answer = example.reference
        for question, following in example.turns:
            text = self._answer(example, answer)
            messages = [*messages, _message("assistant", answer), _message("user", question)]
            longer = self._rendered(example, messages, answer=True)
            end = longer.find(answer, len(said)) if longer.startswith(said) else -1
            if end < 0:
                raise UserError(
                    f"Example {example.id!r} has several turns, of which the chat template of the "
                    "policy does not show all; give conversations of one turn, or a policy whose "
                    "template has more."
                )
            between, stop = longer[end + len(answer) :], text.ids[-1]
            for marker, token in self._stops:  # the template's own mark of an end is the stop token
                if between.startswith(marker):
                    between, stop = between.removeprefix(marker), token
                    break
            text.ids[-1] = stop
            asked = self._tokenizer(between.lstrip(" "), add_special_tokens=False)["input_ids"]
            ids += [*text.ids, *asked]
            learned += [*text.learned, *([False] * len(asked))]
            said, answer = longer, following
        last = self._answer(example, answer)
        return Text([*ids, *last.ids], [*learned, *last.learned])

    def _ids(self, example: Example, answer: str) -> list[int]:
        ids = self._tokenizer(answer, add_special_tokens=False)["input_ids"]
        if special := self._special.intersection(ids):
            name = self._tokenizer.convert_ids_to_tokens(min(special))
            raise UserError(
                f"Example {example.id!r} has an answer with {name}, a special token that must not "
                "be learned; fix it or remove the row."
            )
        return ids

    def _cut(self, text: Text) -> Text:
        return Text(text.ids[: self._length], text.learned[: self._length])

    def _rendered(
        self, example: Example, messages: Sequence[Mapping[str, Any]], *, answer: bool
    ) -> str:
        with as_user_error(
            lambda reason: (
                f"Example {example.id!r} has a conversation that the chat template of the policy "
                f"does not take ({reason}); change its turns or remove it."
            )
        ):
            return self._tokenizer.apply_chat_template(
                list(messages),
                chat_template=self._processor.chat_template,
                tokenize=False,
                add_generation_prompt=answer,
            )

    @cached_property
    def _special(self) -> frozenset[int]:
        config = self._processor.config
        return frozenset(
            [*self._tokenizer.all_special_ids, *config.stop_tokens, config.image_token_id]
        )

    @cached_property
    def _stops(self) -> list[tuple[str, int]]:
        """(text, id) of the stop tokens."""
        return [
            (self._tokenizer.convert_ids_to_tokens(token), token)
            for token in self._processor.stop_tokens
        ]


def _message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _words(message: Mapping[str, Any]) -> str:
    content = message["content"]
    if isinstance(content, str):
        return content.strip()
    return "".join(part.get("text") or "" for part in content).strip()
