"""Names of weights in Hugging Face's files; each family has a table. No tensors here."""

import re
from typing import NamedTuple

# Buffers that older versions of transformers stored; the model computes them from its config.
BUFFERS = re.compile(r"(^|\.)(embeddings\.position_ids|rotary_emb\.inv_freq)$")


class KeyTable(NamedTuple):
    """How a family's weights are called. All names are prefixes; the first that fits counts.

    Attributes:
      published: name in `params`, its parts joined by dots -> name in the published repository.
      modules: name in `params` -> name of the module in transformers >= 5, for adapters.
      other_layouts: name in another layout (transformers v5) -> published name.
      convolution: `params` path of the patch embedding, a convolution in torch.
      patch: its shape in the files after the output axis.
      inner: parts within names of another layout -> published ones.
    """

    published: tuple[tuple[str, str], ...]
    modules: tuple[tuple[str, str], ...]
    other_layouts: tuple[tuple[str, str], ...]
    convolution: str
    patch: tuple[int, ...]
    inner: tuple[tuple[str, str], ...] = ()

    def publish(self, path: str) -> str:
        """The published key of a weight named as in `params`."""
        return _replace_prefix(path, self.published)

    def module(self, path: str) -> str:
        """The module of transformers >= 5 for a layer named as in `params`."""
        return _replace_prefix(path, self.modules)

    def normalise(self, key: str) -> str:
        """The published key for a key in any known layout."""
        key = _replace_prefix(key, self.other_layouts)
        for part, published in self.inner:
            key = key.replace(part, published)
        return key


def _replace_prefix(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for prefix, other in table:
        if name.startswith(prefix):
            return other + name.removeprefix(prefix)
    return name
