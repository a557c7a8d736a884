"""How far a policy says yes rather than no to questions that share one prefix."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from balcap_jax.models.inputs import AnyArray, Prompts
from balcap_jax.models.packing import Packing
from balcap_jax.models.policy import VisionLanguagePolicy


def yes_no_logits(
    policy: VisionLanguagePolicy,
    params: dict,
    prompts: Prompts,
    features: Float[Array, "b m d"],
    texts: Int[AnyArray, "b g c"],
    lengths: Int[AnyArray, "b g"],
    *,
    yes: Sequence[int],
    no: Sequence[int],
    packing: Packing | None = None,
) -> Float[Array, "b g"]:
    """log P(yes) - log P(no) of the token behind each text, in nats, float32.

    A probability is that of a set of tokens, the spellings of a word.

    Args:
      texts: questions as tokens, each behind the prefix of its row, as completions are.
      lengths: tokens of each, below C: what stands at and behind `lengths` is not read.
      yes, no: ids, none of which is in both.
      packing: of the tokens that are read, see `read_by`, which alone are computed; NaN everywhere
        where these do not fit into its room.
    """
    hidden = policy.completion_hidden(params, prompts, features, texts, packing)
    at = jnp.asarray(lengths)[..., None]
    if packing is None:
        last = jnp.take_along_axis(hidden, at[..., None], axis=2)[:, :, 0]
    else:
        last = packing.take_own(hidden, at, texts.shape)[:, :, 0]
        last = jnp.where(packing.fits, last, jnp.nan)
    # Only the rows of a few words are multiplied; the sum over all others would cancel out.
    head = policy.head(params)
    ids = np.asarray([*yes, *no])
    logits = policy.project_by(head[ids], last)
    of_yes, of_no = logits[..., : len(yes)], logits[..., len(yes) :]
    return jax.nn.logsumexp(of_yes, axis=-1) - jax.nn.logsumexp(of_no, axis=-1)


def read_by(lengths: Int[AnyArray, "b g"], *, length: int) -> Bool[Array, "b g c"]:
    """The inputs that `yes_no_logits` of texts of these lengths, padded to `length`, depends on: of
    each text one more than it has, its last token among them; none of texts without tokens.
    """
    lengths = jnp.asarray(lengths)[..., None]
    return (jnp.arange(length)[None, None] <= lengths) & (lengths > 0)
