"""The loss: cross-entropy of the answer tokens, and of nothing else."""

import jax
import jax.numpy as jnp

from uner_jax.mesh import constrain
from uner_jax.model.llama import Llama
from uner_jax.training.cross_entropy import cross_entropy_sum

# B rows, T tokens, A answer tokens of a row, D model width


def answer_loss_sum(model: Llama, batch: dict[str, jax.Array]) -> jax.Array:
    """The sum, in nats, of the losses of the answer tokens of a batch (its fields: `data.batches.PackedRows`).

    Only the places that are scored reach the vocabulary: 10 to 20 % of the tokens. A sum, because
    batches differ in how many answers they hold: the mean is taken over the whole step.
    """
    hidden_BTD = model.hidden(batch["tokens"], batch["positions"], batch["segment_ids"])
    scored_BAD = jnp.take_along_axis(hidden_BTD, batch["answer_index"][:, :, None], axis=1)
    scored_BAD = constrain(scored_BAD, "batch", None, None)
    return cross_entropy_sum(scored_BAD, model.output_table, batch["answer_targets"], batch["answer_weights"])
