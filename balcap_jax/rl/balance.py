"""Which prompts share a micro-batch, and on CPUs a device: long ones with short ones.

A row has room for the longest sum of any micro-batch, so sums that are alike leave little padding.
The order of prompts changes no result but for rounding.

Letters: b batch, r rows (parts that the mesh splits the batch in), m prompts of a row.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Shaped

from balcap_jax.parallel.sharding import batch_shards, constrain_batch

AnyArray = Array | np.ndarray


class Parts(NamedTuple):
    """In how many parts the prompts of a batch are computed.

    Attributes:
      rows: in how many the mesh splits the batch.
      micro_batches: in how many a row is split, which run one after the other.
      together: a prompt may go to another row. Between accelerators it would have to be sent.
    """

    rows: int = 1
    micro_batches: int = 1
    together: bool = False

    @classmethod
    def of(cls, mesh: Mesh, micro_batches: int) -> "Parts":
        """On this mesh: together where it is cores of one machine, which share their memory."""
        devices = mesh.devices.flat
        one_memory = {(d.platform, d.process_index) for d in devices} == {
            ("cpu", jax.process_index())
        }
        return cls(batch_shards(mesh), micro_batches, one_memory)

    @property
    def alone(self) -> bool:
        """No prompt could go anywhere else."""
        return self.micro_batches == 1 and (self.rows == 1 or not self.together)

    def order(self, counts: Int[AnyArray, " b"]) -> Int[AnyArray, "r m"]:
        """The prompts of each row, in the order that `split_micro_batches` takes: by their number
        in the batch where rows are `together`, else within their row.

        From the longest to the shortest they are dealt out, forth and back.

        Args:
          counts: tokens of each prompt's completions; of numpy or JAX, and so is the result.
        """
        if not self.together:
            return _dealt(counts.reshape(self.rows, -1), self.micro_batches)
        dealt = _dealt(counts[None], self.rows * self.micro_batches)
        rounds = dealt.reshape(-1, self.rows, self.micro_batches)
        return rounds.swapaxes(0, 1).reshape(self.rows, -1)

    def ordered(self, x: Shaped[AnyArray, "b ..."], order: Int[AnyArray, "r m"]) -> AnyArray:
        """`x` with the prompts in this order; of numpy or JAX."""
        if self.together:
            return x[order.reshape(-1)]
        of_rows = x.reshape(*order.shape, *x.shape[1:])
        if isinstance(x, np.ndarray):
            return np.concatenate([row[at] for row, at in zip(of_rows, order, strict=True)])
        return jax.vmap(lambda row, at: row[at])(of_rows, order).reshape(x.shape)

    def reordered(self, tree: Any, order: Int[Array, "r m"]) -> Any:
        """Inside jit: `ordered`, of all arrays of a tree."""
        return constrain_batch(jax.tree.map(lambda x: self.ordered(x, order), tree))

    def inverse(self, order: Int[Array, "r m"]) -> Int[Array, "r m"]:
        """The order that undoes it."""
        if self.together:
            return order.reshape(-1).argsort().reshape(order.shape)
        return order.argsort(axis=1)


def _dealt(counts: Int[AnyArray, "r m"], hands: int) -> Int[AnyArray, "r m"]:
    """Of each row the numbers of its prompts; each `hands`th of them is for the same hand."""
    xp = counts.__array_namespace__()
    longest_first = xp.argsort(-counts, axis=1, stable=True)
    rounds = longest_first.reshape(len(counts), -1, hands)
    back = (xp.arange(rounds.shape[1]) % 2 == 1)[None, :, None]
    return xp.where(back, rounds[..., ::-1], rounds).reshape(len(counts), -1)
