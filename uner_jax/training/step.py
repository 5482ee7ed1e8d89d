"""One training step: gradients over all microbatches, one update."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from uner_jax.model.llama import Llama
from uner_jax.model.parameters import tree_shardings
from uner_jax.training.loss import answer_loss_sum


class TrainState(NamedTuple):
    """What a step changes: float32 parameters and the optimizer's moments."""

    model: Llama
    optimizer: optax.OptState


class StepMetrics(NamedTuple):
    """Scalars of a step: mean loss in nats an answer token, the number of those, norm of the unclipped gradient.

    Where `finite` is false the loss or the norm is not, and the step has left the state as it was.
    """

    loss: jax.Array
    answer_tokens: jax.Array
    tokens: jax.Array
    grad_norm: jax.Array
    finite: jax.Array


Step = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, StepMetrics]]


def make_step(optimizer: optax.GradientTransformation, accumulation: int, mesh: Mesh, state: TrainState) -> Step:
    """The jitted step for states like `state` (shapes are enough); it takes over the memory of its argument."""

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, StepMetrics]:
        loss, gradients, answers = _mean_gradients(state.model, batch, accumulation)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.model)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        after = TrainState(optax.apply_updates(state.model, updates), optimizer_state)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
        return kept, StepMetrics(loss, answers, jnp.sum(batch["segment_ids"] > 0), norm, finite)

    return jax.jit(step, donate_argnums=0, out_shardings=(tree_shardings(state, mesh), None))


def _mean_gradients(model: Llama, batch: dict[str, jax.Array], accumulation: int) -> tuple[jax.Array, Llama, jax.Array]:
    """Mean loss and its gradients, normalised by the answer tokens of the whole step, not by a mean of means."""
    answers = jnp.sum(batch["answer_weights"])
    if accumulation == 1:
        loss, gradients = jax.value_and_grad(answer_loss_sum)(model, batch)
    else:
        loss, gradients = _accumulate(model, batch, accumulation)
    scale = 1.0 / jnp.maximum(answers, 1.0)
    return loss * scale, jax.tree.map(lambda gradient: gradient * scale, gradients), answers


def _accumulate(model: Llama, batch: dict[str, jax.Array], accumulation: int) -> tuple[jax.Array, Llama]:
    def microbatches(x: jax.Array) -> jax.Array:
        # strided, so that every device finds its own rows in each microbatch.
        return x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:]).swapaxes(0, 1)

    def add(total: tuple[jax.Array, Llama], microbatch: dict[str, jax.Array]):
        return jax.tree.map(jnp.add, total, jax.value_and_grad(answer_loss_sum)(model, microbatch)), None

    zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, model))
    total, _ = jax.lax.scan(add, zeros, jax.tree.map(microbatches, batch))
    return total
