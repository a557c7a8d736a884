"""Words for anything: true of every photo, so that saying them says nothing."""

from functools import lru_cache

from balcap_jax.rewards.lexical.vocabulary import ANYTHING, PERSONS
from balcap_jax.rewards.lexical.wordnet import category, photo_senses

# Words of WordNet's highest level that people name what they see with.
_PLAIN = PERSONS | frozenset("animal plant food fauna flora beast creature life shape".split())


@lru_cache(maxsize=1 << 16)
def is_anything(noun: str) -> bool:
    """Whether `noun` names anything at all ("something", "object", "someone", "organism")."""
    if noun in ANYTHING:
        return True
    found = photo_senses(noun)
    return bool(found) and noun not in _PLAIN and category(found[0], "n") == "noun.Tops"
