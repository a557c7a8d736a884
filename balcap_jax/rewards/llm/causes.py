"""Why a call brings no verdict: one table of what is done then, what it counts as, what is said."""

from enum import Enum
from typing import NamedTuple


class Retry(Enum):
    """How a question is asked again."""

    NEVER = "it would fail again"
    LATER = "the same after a wait that doubles, or when the server said"
    DIFFERENTLY = "at once, with another seed and a higher temperature"
    LONGER = "at once, with twice the limit of tokens"
    PLAINER = "at once, without the field that the server does not know; no failed try"


class Cause(NamedTuple):
    """One kind of failure.

    Attributes:
      retry: how the question is asked again.
      counted: as what in the ledger: ERROR, or BAD_ANSWER for a call that was answered.
      say: the reason, in which `{}` is the place of details.
    """

    retry: Retry
    counted: str
    say: str


ERROR = "errors"
BAD_ANSWER = "bad_answers"

# Nobody answered.
TIMEOUT = Cause(Retry.LATER, ERROR, "timeout")
NO_CONNECTION = Cause(Retry.LATER, ERROR, "no connection, or a broken one")
CLIENT = Cause(Retry.LATER, ERROR, "a failed call ({})")
# The server answered with an error, whatever the status of the reply.
BUSY = Cause(Retry.LATER, ERROR, "{}")
REFUSED = Cause(Retry.NEVER, ERROR, "{}")
UNKNOWN_FIELD = Cause(Retry.PLAINER, ERROR, "{}")
TOO_LARGE = Cause(Retry.LATER, ERROR, "a reply of more than {}")
NO_COMPLETION = Cause(Retry.LATER, ERROR, "a reply that is no chat completion{}")
# The model answered, and that is no verdict.
CUT = Cause(Retry.LONGER, BAD_ANSWER, "longer than judge.max_tokens")
NO_TEXT = Cause(Retry.DIFFERENTLY, BAD_ANSWER, "a reply without a text{}")
DECLINED = Cause(Retry.DIFFERENTLY, BAD_ANSWER, "the model refused to answer{}")
FILTERED = Cause(Retry.DIFFERENTLY, BAD_ANSWER, "stopped by the server's content filter")
CALLED_TOOL = Cause(Retry.DIFFERENTLY, BAD_ANSWER, "the model called a tool in place of an answer")
UNUSABLE = Cause(Retry.DIFFERENTLY, BAD_ANSWER, "an unusable answer: {}")

# What a server's error means, by its HTTP status or the code in its error object.
_BUSY_STATUS = (408, 409, 425, 429)  # and all from 500 on
EXPLAINED_STATUS = (
    200,
    400,
    402,
    404,
    405,
    410,
    413,
    422,
)  # where the server's words help to fix the request
_HOPELESS = (  # in codes and types of error objects: no wait helps
    "insufficient_quota", "billing", "api_key", "authentication", "permission", "not_found",
    "invalid_request", "context_length", "unsupported",
)  # fmt: skip


def of_error(status: int, code: str) -> Cause:
    """The cause of an error.

    Args:
      status: of HTTP; 200 where an error came with it and names no status of its own.
      code: what the error object says of its kind, "" for nothing.
    """
    if status in (200, 429) and any(word in code.lower() for word in _HOPELESS):
        return REFUSED
    return BUSY if status == 200 or status in _BUSY_STATUS or status >= 500 else REFUSED


class Trouble(Exception):  # noqa: N818
    """One call failed.

    Attributes:
      cause: which row of the table.
      pause: the seconds that the server asked to wait, None where it asked for none.
      tokens: what it took all the same, of the prompt and of the answer.
    """

    def __init__(
        self,
        cause: Cause,
        details: str = "",
        *,
        pause: float | None = None,
        tokens: tuple[int, int] = (0, 0),
    ):
        super().__init__(cause.say.format(details))
        self.cause, self.pause, self.tokens = cause, pause, tokens
