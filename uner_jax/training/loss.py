"""The loss: cross-entropy of the answer tokens, and of nothing else."""

import jax
import jax.numpy as jnp

from uner_jax.mesh import constrain
from uner_jax.model.llama import Llama

# B rows, T tokens, A answer tokens of a row, D model width, V vocabulary


def answer_loss_sum(model: Llama, batch: dict[str, jax.Array]) -> jax.Array:
    """The sum, in nats, of the losses of the answer tokens of a batch (its fields: `data.batches.PackedRows`).

    Only the places that are scored reach the vocabulary: 10 to 20 % of the tokens. A sum, because
    batches differ in how many answers they hold: the mean is taken over the whole step.
    """
    hidden_BTD = model.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
    scored_BAD = jnp.take_along_axis(hidden_BTD, batch["answer_index"][:, :, None], axis=1)
    logits_BAV = constrain(model.logits(constrain(scored_BAD, "batch", None, None)), "batch", None, "vocab")
    losses_BA = jax.nn.logsumexp(logits_BAV, axis=-1) - pick(logits_BAV, batch["answer_targets"])
    return jnp.sum(losses_BA * batch["answer_weights"])


def pick(logits_BAV: jax.Array, targets_BA: jax.Array) -> jax.Array:
    """The logit of each target: by comparison, since a gather would collect a vocabulary that is cut over devices."""
    chosen_BAV = targets_BA[:, :, None] == jnp.arange(logits_BAV.shape[-1], dtype=targets_BA.dtype)
    return jnp.sum(jnp.where(chosen_BAV, logits_BAV, jnp.zeros_like(logits_BAV)), axis=-1)
