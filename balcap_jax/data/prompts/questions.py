"""Questions about an image: its prompt up to the question, which all of them share, and what each
adds to it.

A prompt is [image, instruction, question, end of the turn]. All up to the question is one prefix,
so that any number of questions costs one image.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from balcap_jax.config.sections import QUESTION_PROMPT
from balcap_jax.data.examples import Example
from balcap_jax.data.prompts.folder_parts import as_user_error
from balcap_jax.data.prompts.processor import Processor
from balcap_jax.errors import UserError
from balcap_jax.models.inputs import Row

YES, NO = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")
# Stands where a question will; no template has a reason to change it.
_MARK = "[[statement]]"


class AnswerTokens(NamedTuple):
    """The ids that an answer begins with, by what it then says."""

    yes: tuple[int, ...]
    no: tuple[int, ...]


class QuestionEncoder:
    """Questions as tokens, by a policy's tokenizer and chat template."""

    def __init__(self, processor: Processor):
        self._processor = processor

    def row(self, example: Example) -> Row:
        """The prompt of an example up to a question, which stands behind `example.prompt` (by
        default the one that statements are asked with).

        Raises:
          UserError: see `Processor.row`.
        """
        return self._processor.row_of(example, lambda: self._parts(example)[0])

    def ids(self, question: str) -> list[int]:
        """Tokens of a question and of the end of the user's turn; the answer comes next."""
        asked = self._processor.tokenizer(question, add_special_tokens=False)["input_ids"]
        return [*asked, *self.after]

    @cached_property
    def after(self) -> list[int]:
        """What stands between a question and its answer."""
        with as_user_error(
            lambda reason: (
                f"The chat template of the policy takes no question ({reason}); use the one that "
                "was published with the weights."
            )
        ):
            example = Example("question", None, QUESTION_PROMPT, "")  # type: ignore[arg-type]
            behind = self._parts(example)[1]
        return self._processor.tokenizer(behind, add_special_tokens=False)["input_ids"]

    def _parts(self, example: Example) -> tuple[str, str]:
        asked = example._replace(prompt=f"{example.prompt}\n{_MARK}", messages=())
        before, mark, behind = self._processor.rendered(asked).partition(_MARK)
        if not mark:
            raise ValueError("the words of the user are not in what it writes")
        return before, behind

    @cached_property
    def answers(self) -> AnswerTokens:
        """First tokens of yes and of no, in whatever spelling; a token that both begin with tells
        nothing.

        Raises:
          UserError: the tokenizer has none for one of them.
        """
        yes, no = self._first(YES), self._first(NO)
        both = yes & no
        found = AnswerTokens(tuple(sorted(yes - both)), tuple(sorted(no - both)))
        for word, ids in (("yes", found.yes), ("no", found.no)):
            if not ids:
                raise UserError(
                    f"the tokenizer of the judge has no token that {word!r} alone begins with, and "
                    "questions are answered by such tokens; take a model of another tokenizer."
                )
        return found

    def _first(self, words: Sequence[str]) -> set[int]:
        tokenizer = self._processor.tokenizer
        begun = (tokenizer(word, add_special_tokens=False)["input_ids"][:1] for word in words)
        unknown = getattr(tokenizer, "unk_token_id", None)
        return {ids[0] for ids in begun if ids and ids[0] != unknown}
