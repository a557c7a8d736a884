"""The fields of a request, in the form that an endpoint understands.

Servers differ in a few fields. Where one refuses a field by name, the next form of it is tried;
what worked is remembered.
"""

import re
from typing import Any, NamedTuple, Self

from balcap_jax.rewards.llm.prompts import response_format
from balcap_jax.rewards.llm.questions import Part

# By field: its forms from the best on ("": left out), and how a refusal names it.
_FORMS = {
    "structured": (
        ("json_schema", "json_object", "none"),
        re.compile(
            r"response.?format|json.?schema|json.?object|structured|guided|grammar|schema", re.I
        ),
    ),
    "limit": (
        ("max_completion_tokens", "max_tokens", ""),
        re.compile(r"max_(completion_)?tokens"),
    ),
    "seed": (("seed", ""), re.compile(r"\bseed\b", re.I)),
    "temperature": (("temperature", ""), re.compile(r"\btemperature\b", re.I)),
    "top_p": (("top_p", ""), re.compile(r"\btop_p\b", re.I)),
}
# A refused value of the limit, not a refused name.
_OF_VALUE = re.compile(r"too (large|big|long|many|high)|at most|at least|maximum|exceed|context")
_REFUSING_STATUS = (200, 400, 415, 422, 501)


class Sampling(NamedTuple):
    """How an answer is to be sampled, where not by the settings of the judge.

    Attributes:
      max_tokens: of the answer.
      top_p, seed: None: the field is not sent.
    """

    temperature: float
    max_tokens: int
    top_p: float | None = None
    seed: int | None = None


class RequestForm(NamedTuple):
    """The form of each field, by its place among those it can have."""

    structured: int = 0
    limit: int = 0
    seed: int = 0
    temperature: int = 0
    top_p: int = 0

    @classmethod
    def of(cls, structured: str) -> Self:
        """The form to begin with; `structured` is the setting."""
        return cls(structured=_FORMS["structured"][0].index(structured))

    def fields(
        self,
        part: Part,
        *,
        limit: int,
        temperature: float,
        seed: int | None,
        top_p: float | None = None,
    ) -> dict[str, Any]:
        """The fields of a request beside model and messages; what is None is left out."""
        values = {"limit": limit, "seed": seed, "temperature": temperature, "top_p": top_p}
        found = {self.name(field): value for field, value in values.items() if value is not None}
        found["response_format"] = response_format(part, structured=self.name("structured"))
        return {name: value for name, value in found.items() if name and value is not None}

    def name(self, field: str) -> str:
        """The form of a field in words."""
        return _FORMS[field][0][getattr(self, field)]

    def plainer(self, other: Self) -> Self:
        """The plainer of two forms, field by field."""
        return type(self)(*map(max, self, other))

    def refused(self, words: str, *, param: str, status: int, seeded: bool) -> Self | None:
        """The next form for a server that refused this one; None where it names no field.

        Args:
          words: the server's.
          param: the field that it says it is about, "" for none.
          seeded: whether the request held a seed.
        """
        if status not in _REFUSING_STATUS:
            return None
        for text in (param, words) if param else (words,):
            for field, (forms, named) in _FORMS.items():
                place = getattr(self, field)
                if not named.search(text) or place + 1 == len(forms):
                    continue
                if field == "limit" and _OF_VALUE.search(words):
                    continue
                if field != "seed" or seeded:
                    return self._replace(**{field: place + 1})
        return None

    def changes(self, before: Self) -> list[str]:
        """What differs from an earlier form, in words."""
        return [
            f"{_FORMS[field][0][then]} refused, {self.name(field) or 'nothing'} in its place"
            for field, then, now in zip(self._fields, before, self, strict=True)
            if then != now
        ]
