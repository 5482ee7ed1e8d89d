"""One training step: gradients over all microbatches, one update."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from uner_jax.model.adapters import join, split, with_dropout
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import tree_shardings
from uner_jax.training.loss import answer_loss_sum


class TrainState(NamedTuple):
    """What a step changes: float32 parameters (and a frozen base, where adapters are trained) and the moments."""

    model: Llama
    optimizer: optax.OptState


class StepMetrics(NamedTuple):
    """Scalars of a step: mean loss in nats an answer token, the number of those, norm of the unclipped gradient.

    `tokens` are those that are no padding, `pairs` the pairs of them that attend to each other.

    Where `finite` is false the loss or the norm is not, and the step has left the state as it was.
    """

    loss: jax.Array
    answer_tokens: jax.Array
    tokens: jax.Array
    pairs: jax.Array
    grad_norm: jax.Array
    finite: jax.Array


# of the trained part, rows, and the number of their microbatch
LossSum = Callable[[Llama, dict[str, jax.Array], jax.Array | int], jax.Array]
Step = Callable[[TrainState, dict[str, jax.Array]], tuple[TrainState, StepMetrics]]


def make_step(
    optimizer: optax.GradientTransformation, accumulation: int, mesh: Mesh, state: TrainState, seed: int = 0
) -> Step:
    """The jitted step for states like `state` (shapes are enough); it takes over the memory of its argument.

    The seed is that of dropout: what is dropped depends on it and on the number of updates made.
    """

    def step(state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, StepMetrics]:
        trained, frozen = split(state.model)
        key = jax.random.fold_in(jax.random.key(seed), _updates(state.optimizer))

        def loss_sum(trained: Llama, part: dict[str, jax.Array], number: jax.Array | int) -> jax.Array:
            return answer_loss_sum(with_dropout(join(trained, frozen), jax.random.fold_in(key, number)), part)

        loss, gradients, answers = _mean_gradients(loss_sum, trained, batch, accumulation)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, trained)
        norm = optax.tree.norm(gradients)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        after = TrainState(join(optax.apply_updates(trained, updates), frozen), optimizer_state)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state)
        return kept, StepMetrics(loss, answers, *_sizes(batch), norm, finite)

    return jax.jit(step, donate_argnums=0, out_shardings=(tree_shardings(state, mesh), None))


def _sizes(batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The tokens that are no padding, and with how many tokens each attends, itself too, in all."""
    is_token_BT = batch["segment_ids"] > 0
    # in float32: the pairs of a large batch of long rows exceed an int32.
    attended_BT = jnp.where(is_token_BT, batch["positions"] + 1, 0).astype(jnp.float32)
    return jnp.sum(is_token_BT), jnp.sum(attended_BT)


def _updates(optimizer_state: optax.OptState) -> jax.Array | int:
    """How many updates the optimizer has made; every part of it that counts has the same number."""
    counts = optax.tree.get_all_with_path(optimizer_state, "count")
    return counts[0][1] if counts else 0


def _mean_gradients(
    loss_sum: LossSum, trained: Llama, batch: dict[str, jax.Array], accumulation: int
) -> tuple[jax.Array, Llama, jax.Array]:
    """Mean loss and its gradients, normalised by the answer tokens of the whole step, not by a mean of means."""
    answers = jnp.sum(batch["answer_weights"])
    if accumulation == 1:
        loss, gradients = jax.value_and_grad(loss_sum)(trained, batch, 0)
    else:
        loss, gradients = _accumulate(loss_sum, trained, batch, accumulation)
    scale = 1.0 / jnp.maximum(answers, 1.0)
    return loss * scale, jax.tree.map(lambda gradient: gradient * scale, gradients), answers


def _accumulate(
    loss_sum: LossSum, trained: Llama, batch: dict[str, jax.Array], accumulation: int
) -> tuple[jax.Array, Llama]:
    def microbatches(x: jax.Array) -> jax.Array:
        # strided, so that every device finds its own rows in each microbatch.
        return x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:]).swapaxes(0, 1)

    def add(total: tuple[jax.Array, Llama], microbatch: tuple[dict[str, jax.Array], jax.Array]):
        return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_sum)(trained, *microbatch)), None

    zeros = (jnp.zeros((), jnp.float32), jax.tree.map(jnp.zeros_like, trained))
    numbered = jax.tree.map(microbatches, batch), jnp.arange(accumulation)
    total, _ = jax.lax.scan(add, zeros, numbered)
    return total
