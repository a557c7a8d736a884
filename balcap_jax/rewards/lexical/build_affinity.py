"""Makes `assets/lexicon/affinity.npz`, which words a language model expects of each other:

    python -m balcap_jax.rewards.lexical.build_affinity FOLDER OUT

FOLDER holds a causal language model and its tokenizer as Hugging Face saves them (torch and
transformers read it). What ships was made with SmolLM2-135M-Instruct, as
`examples/real_parts/write_parts.py` writes it, in some minutes on a core. The same folder gives the
same numbers up to the rounding of the machine. No caption of a data set is read: the words are
those of WordNet that the model finds likely in photos, and the sentences are the few below.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lemminflect import getInflection

from balcap_jax.rewards.lexical.tables import packed
from balcap_jax.rewards.lexical.wordnet import VISIBLE, Part, categories, frequency, lemmas
from balcap_jax.rewards.lexical.words import AUXILIARIES, PREPOSITIONS

RANK = 48
LIMIT = 4.0  # nats; beyond it a surprise says no more
_TILT = 0.25  # power of its likelihood by which a word counts in what is kept
_BATCH = 64
_LEAST = 1e-3  # a vector of less is none
_SIZES = {"NOUN": 2500, "VERB": 800, "ADJ": 800}

# Where words of a role are likely, of which the likeliest are taken.
_NEUTRAL = {
    "NOUN": (
        "This is a photo of a",
        "In the picture there is a",
        "The man is holding a",
        "The woman stands near the",
        "The dog runs through the",
        "In the background there is a large",
        "A child is playing with a small",
        "On the table there is a",
    ),
    "VERB": (
        "This is a photo of a man who is",
        "The dogs are",
        "In this photo some people are",
        "A girl in a red shirt is",
        "The cars are",
        "A bird is",
    ),
    "ADJ": (
        "This is a photo of a",
        "The man has a",
        "There are some",
        "The woman is wearing a",
        "The house is",
        "A dog with a",
    ),
}


class Relation(NamedTuple):
    """Two roles, and the sentences that a word of the first opens for one of the second."""

    first: str
    second: str
    templates: tuple[str, ...]


_SHOWN = ("This is a photo of {a} {w}",)
_DONE = ("In this photo someone is {w}", "The dog is {w}")
RELATIONS: Mapping[str, Relation] = {
    "ADJ NOUN": Relation("ADJ", "NOUN", (*_SHOWN, "In the picture there is the {w}")),
    "NOUN NOUN": Relation("NOUN", "NOUN", _SHOWN),
    "NOUN PREP": Relation("NOUN", "PREP", _SHOWN),
    "VERB PREP": Relation("VERB", "PREP", _DONE),
    "NOUN VERB": Relation("NOUN", "VERB", (_SHOWN[0] + " that is", "The {w} is")),
    "VERB NOUN": Relation(
        "VERB", "NOUN", ("In this photo someone is {w} a", "The people are {w} the")
    ),
    "PREP NOUN": Relation(
        "PREP",
        "NOUN",
        tuple(
            f"{start} {{w}} {article}"
            for start in ("In this photo someone is", "The man stands")
            for article in ("a", "the")
        ),
    ),
    # Behind a preposition that is not told, each as likely as it is behind the word.
    "VERB . NOUN": Relation(
        "VERB", "NOUN", tuple(f"{_DONE[0]} {p} a" for p in ("in", "on", "with", "at", "near"))
    ),
    "NOUN . NOUN": Relation(
        "NOUN", "NOUN", tuple(f"{_SHOWN[0]} {p} a" for p in ("in", "on", "with"))
    ),
}


class NextWord:
    """How likely words are behind the beginning of a sentence, by a causal language model."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def token(self, word: str) -> int | None:
        """The one token of ` word`, None where it has several or is unknown."""
        ids = self._tokenizer(f" {word}", add_special_tokens=False).input_ids
        return ids[0] if len(ids) == 1 and ids[0] != self._tokenizer.unk_token_id else None

    def __call__(self, starts: Sequence[str], tokens: Sequence[int]) -> np.ndarray:
        """Log-probabilities in nats, (starts, tokens) float32."""
        torch = self._torch
        ids = [self._tokenizer(start).input_ids for start in starts]
        found = np.empty((len(starts), len(tokens)), np.float32)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for at in range(0, len(order), _BATCH):
            rows = order[at : at + _BATCH]
            ends = torch.tensor([len(ids[i]) - 1 for i in rows])
            longest = int(ends.max()) + 1
            # What stands behind its end does not reach a token: attention is causal.
            padded = torch.tensor([ids[i] + [0] * (longest - len(ids[i])) for i in rows])
            with torch.no_grad():
                hidden = self._model.model(padded).last_hidden_state
                logits = self._model.lm_head(hidden[torch.arange(len(rows)), ends])
            found[rows] = torch.log_softmax(logits, -1)[:, list(tokens)].numpy()
        return found


def build(model: NextWord) -> dict[str, np.ndarray]:
    """The arrays as `affinity.py` reads them."""
    words = {role: _likeliest(model, role) for role in _SIZES}
    words["PREP"] = [p for p in sorted(PREPOSITIONS) if model.token(p) is not None]
    logprobs = {
        name: [
            model(
                [template.format(a=_article(w), w=_shown(w, first)) for w in words[first]],
                [_token(model, w, second) for w in words[second]],
            )
            for template in templates
        ]
        for name, (first, second, templates) in RELATIONS.items()
    }
    arrays = {f"words {role}": packed(found) for role, found in words.items()}
    for name, (first, _, templates) in RELATIONS.items():
        found = logprobs[name]
        shares = np.full(len(found), -np.log(len(found)))[:, None]
        if "." in name:
            shares = _shares(logprobs[f"{first} PREP"], words["PREP"], templates)
        mixed = np.logaddexp.reduce(np.stack(found) + shares[:, :, None], axis=0)
        for part, array in _vectors(mixed).items():
            arrays[f"{part} {name}"] = array
    return arrays


def _shares(
    found: Sequence[np.ndarray], prepositions: Sequence[str], templates: Sequence[str]
) -> np.ndarray:
    """Log-probabilities of each template's preposition behind each word, (templates, words)."""
    places = [prepositions.index(template.split()[-2]) for template in templates]
    told = np.logaddexp.reduce(np.stack(found), axis=0)[:, places].T
    return told - np.logaddexp.reduce(told, axis=0)


def _vectors(logprobs: np.ndarray) -> dict[str, np.ndarray]:
    """What is left of each word where how likely the second is behind any first is taken away, as
    two vectors whose product it is: the best ones of their length, likely words before others.
    """
    behind_any = np.logaddexp.reduce(logprobs, axis=0) - np.log(len(logprobs))
    surprise = np.clip(logprobs - behind_any, -LIMIT, LIMIT)
    mean = surprise.mean()
    # Words are in the order of their likelihood; the first of 2500 is some e^4 times the last.
    rows = np.exp(-4 * _TILT * np.arange(len(logprobs)) / len(logprobs))[:, None]
    columns = np.exp(_TILT * behind_any)
    left, sizes, right = np.linalg.svd((surprise - mean) * rows * columns, full_matrices=False)
    rank = min(RANK, len(sizes))
    root = np.sqrt(sizes[:rank])
    pair = {
        "left": left[:, :rank] * root / rows,
        "right": (right[:rank].T * root) / columns[:, None],
    }
    arrays = {"mean": np.float32(mean)}
    for side, vectors in pair.items():
        scale = np.abs(vectors).max(axis=1, keepdims=True).clip(min=_LEAST) / 127
        arrays[side] = np.round(vectors / scale).astype(np.int8)
        arrays[f"{side}_scale"] = scale.astype(np.float16)
    return arrays


def _likeliest(model: NextWord, role: str) -> list[str]:
    """Words of a role, the likeliest in photos first."""
    able = [w for w in _candidates(role) if _token(model, w, role) is not None]
    logprobs = model(_NEUTRAL[role], [_token(model, w, role) for w in able])
    shares = np.exp(logprobs - np.logaddexp.reduce(logprobs, axis=1, keepdims=True)).mean(axis=0)
    return [able[at] for at in np.argsort(-shares, kind="stable")[: _SIZES[role]]]


def _candidates(role: str) -> list[str]:
    """Words of WordNet that are of this part of speech more often than of one that is easily taken
    for it.
    """
    part, other = _PARTS[role]
    kept = []
    for word in lemmas(part):
        able = word.isalpha() and len(word) > 1 and word not in PREPOSITIONS
        if role == "NOUN":
            able = able and not VISIBLE.isdisjoint(categories(word, "n")[:3])
        if able and frequency(word, part) >= frequency(word, other):
            kept.append(word)
    return [w for w in kept if w not in _EMPTY] if role == "VERB" else kept


_PARTS: Mapping[str, tuple[Part, Part]] = {
    "NOUN": ("n", "a"),
    "VERB": ("v", "v"),
    "ADJ": ("a", "r"),
}
_EMPTY = AUXILIARIES | {"be", "will"}


def _shown(word: str, role: str) -> str:
    """As it stands in the sentences: verbs as what is going on."""
    return next(iter(getInflection(word, tag="VBG")), word) if role == "VERB" else word


def _token(model: NextWord, word: str, role: str) -> int | None:
    return model.token(_shown(word, role))


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def main() -> None:
    """Reads argv[1], writes argv[2]."""
    folder, out = map(Path, sys.argv[1:])
    with out.open("wb") as file:
        np.savez_compressed(file, **build(NextWord(folder)))


if __name__ == "__main__":
    main()
