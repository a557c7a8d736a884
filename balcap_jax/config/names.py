"""What to write in place of a name that is not known."""

import difflib
from collections.abc import Callable, Iterable

from balcap_jax.config import foreign_names

# Names that are less alike than this are different words: `beta` is no slip of the pen for `data`.
ALIKE = 0.7
_MOST = 3  # settings of one name in several rooms that are all offered


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The entry of `known` that `name` is a misspelling of; None where none is like it."""
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=ALIKE)
    return found[0] if found else None


def did_you_mean(name: str, known: Iterable[str], form: str = "{}") -> str:
    """The end of a sentence on `name`: "; did you mean X?", or "." where nothing is like it.

    Args:
      form: how a suggestion is written, such as "`balcap {}`".
    """
    like = nearest(name, known)
    return f"; did you mean {form.format(like)}?" if like else "."


def advice(name: str, known: Iterable[str], *, spelled: Callable[[str], str] = str) -> str:
    """The end of a sentence on the unknown setting `name`: ", ...", "; ..." or ": ...".

    Args:
      name: dotted, as "rollout.gropu_size", or as another framework calls it, as "beta".
      known: dotted names of the settings there are.
      spelled: how a dotted name is written where the message is read, such as a flag.
    """
    known = set(known)
    name = name.replace("-", "_")
    elsewhere = [setting for setting in foreign_names.exact(name) if setting in known]
    without_room = sorted(setting for setting in known if setting.rpartition(".")[2] == name)
    if not elsewhere and not without_room:
        elsewhere = [setting for setting in foreign_names.ending(name) if setting in known]
    if elsewhere:
        note = foreign_names.NOTES.get(elsewhere[0])
        return f", which is {spelled(elsewhere[0])} here{f' ({note})' if note else ''}."
    if without_room:
        return f"; did you mean {' or '.join(map(spelled, without_room[:_MOST]))}?"
    if sentence := foreign_names.why_not(name):
        return f": {sentence}."
    # A name without a room is compared with names without theirs, of which the highest is meant.
    deepest_first = sorted(known, key=lambda setting: (-setting.count("."), setting))
    short = {s.rpartition(".")[2]: s for s in deepest_first} if "." not in name else {}
    like = nearest(name, known | short.keys())
    return f"; did you mean {spelled(short.get(like, like))}?" if like else "."
