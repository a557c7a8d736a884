"""What the entries of a config.json may be: types and ranges, checked before they are used.

A float where a whole number is wanted, "false" for false, a negative or absent size: each computes
another function than the model's, or fails far from its cause.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from balcap_jax.errors import UserError
from balcap_jax.models.json_files import shown


class Rule(NamedTuple):
    """What one entry may be.

    Attributes:
      text: completes "must be".
      fits: whether a value is so.
    """

    text: str
    fits: Callable[[Any], bool]


def whole(low: int, high: int) -> Rule:
    """A whole number within [low, high]; true and 2.0 are none."""
    return Rule(
        f"a whole number from {low} to {high}",
        lambda value: type(value) is int and low <= value <= high,
    )


def number(low: int | float, high: int | float, *, above: bool = False) -> Rule:
    """A number within [low, high], or (low, high] if `above`; NaN is none."""

    def fits(value: Any) -> bool:
        if type(value) not in (int, float):
            return False
        return low <= value <= high and not (above and value == low)

    return Rule(f"a number {'above' if above else 'from'} {low:g} {'up ' * above}to {high:g}", fits)


def several(rule: Rule, *, length: int | None = None, least: int = 0) -> Rule:
    """A list of what fits `rule`: of `length`, or at least `least` of them."""
    count = "" if length is None else f"{length} times "

    def fits(value: Any) -> bool:
        if not isinstance(value, list | tuple) or not all(map(rule.fits, value)):
            return False
        return len(value) >= least if length is None else len(value) == length

    return Rule(f"a list of {count}{rule.text}", fits)


def optional(rule: Rule) -> Rule:
    """What fits `rule`, or null."""
    return Rule(f"{rule.text} or null", lambda value: value is None or rule.fits(value))


def either(first: Rule, second: Rule) -> Rule:
    """What fits one of both."""
    return Rule(
        f"{first.text} or {second.text}", lambda value: first.fits(value) or second.fits(value)
    )


FLAG = Rule("true or false", lambda value: type(value) is bool)
NAME = Rule("a name in quotes", lambda value: isinstance(value, str))
SECTION = Rule("a section in braces", lambda value: isinstance(value, Mapping))
SIZE = whole(1, 2**20)
COUNT = whole(1, 1024)
EPSILON = number(0, 0.1, above=True)
SHARE = number(0, 1)
THETA = number(1, 1e15, above=True)
TOKEN = whole(0, 2**24)
TOKENS = either(optional(TOKEN), several(TOKEN))

# What all families read of text_config; entries that no family reads are not judged.
DECODER = {
    "model_type": NAME,
    "vocab_size": whole(1, 2**24),
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_hidden_layers": COUNT,
    "num_attention_heads": COUNT,
    "num_key_value_heads": optional(COUNT),
    "head_dim": optional(whole(1, 2**14)),
    "max_position_embeddings": whole(1, 2**30),
    "rms_norm_eps": EPSILON,
    "rope_theta": optional(THETA),
    "hidden_act": NAME,
    "initializer_range": number(0, 10),
    "attention_dropout": optional(SHARE),
    "attention_bias": FLAG,
    "mlp_bias": FLAG,
    "use_sliding_window": optional(FLAG),
    "sliding_window": optional(whole(1, 2**30)),
    "max_window_layers": optional(whole(0, 1024)),
    "tie_word_embeddings": optional(FLAG),
    "partial_rotary_factor": optional(SHARE),
    "rope_parameters": optional(SECTION),
    "rope_scaling": optional(SECTION),
    "bos_token_id": optional(TOKEN),
    # -1 of old Llama files is refused with the reason, as outside of the vocabulary.
    "pad_token_id": optional(whole(-1, 2**24)),
    "eos_token_id": TOKENS,
}
ROPE = {
    "rope_type": NAME,
    "type": NAME,
    "rope_theta": optional(THETA),
    "mrope_section": several(whole(0, 2**13), length=3),
    "factor": optional(number(1, 1e6)),
    "original_max_position_embeddings": optional(whole(1, 2**30)),
    "low_freq_factor": number(0, 1e6, above=True),
    "high_freq_factor": number(0, 1e6, above=True),
    "beta_fast": optional(number(0, 1e6, above=True)),
    "beta_slow": optional(number(0, 1e6, above=True)),
    "attention_factor": optional(number(0, 1e6, above=True)),
    "mscale": optional(number(0, 1e6)),
    "mscale_all_dim": optional(number(0, 1e6)),
    "truncate": FLAG,
    "partial_rotary_factor": optional(SHARE),
}
GENERATION = {
    "eos_token_id": TOKENS,
    "pad_token_id": optional(whole(-1, 2**24)),
    "bos_token_id": optional(TOKEN),
}


def check_entries(
    section: str, entries: Any, rules: Mapping[str, Rule], *, file: str = "config.json"
) -> None:
    """What `entries` has of the names in `rules` is as they say.

    Args:
      section: "text_config"; "" for the top level.

    Raises:
      UserError: `entries` is no section, or names the first entry that is not.
    """
    if not SECTION.fits(entries):
        raise UserError(_refusal(section, entries, SECTION, file))
    for name, rule in rules.items():
        if name in entries and not rule.fits(entries[name]):
            raise UserError(
                _refusal(f"{section}.{name}" if section else name, entries[name], rule, file)
            )


def _refusal(name: str, value: Any, rule: Rule, file: str) -> str:
    return (
        f"{name} is {shown(value)} in {file} but must be {rule.text}; take the {file} that was "
        "published with the weights."
    )
