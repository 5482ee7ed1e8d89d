"""The state that a run begins or goes on with, each array born where it belongs."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from uner_jax.model.adapters import adapt, join, split
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import tree_shardings
from uner_jax.training.checkpoint import Restored
from uner_jax.training.config import TrainConfig
from uner_jax.training.step import TrainState
from uner_jax.weights import load_model


def first_state(
    config: TrainConfig,
    abstract: TrainState,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    saved: Restored | None,
) -> TrainState:
    """The state of the checkpoint, or a new one; `abstract` gives its shapes.

    No checkpoint holds the frozen base of adapters: it comes from its source again.
    """
    if saved and not config.adapter.rank:
        return saved.state
    model = _new_model(config, abstract.model, mesh)
    trained, frozen = split(model)
    if saved:
        return TrainState(join(saved.state.model, frozen), saved.state.optimizer)
    init = jax.jit(optimizer.init, out_shardings=tree_shardings(abstract.optimizer, mesh))
    return TrainState(model, init(trained))


def _new_model(config: TrainConfig, shape: Llama, mesh: Mesh) -> Llama:
    """Loaded parameters, with new adapters if the recipe has them, or random ones."""
    if config.model.source:
        # a base in the dtype of its file: in float32 it might not fit where it does in few bits.
        model = load_model(config.model.source, None if config.adapter.rank else jnp.float32, mesh)
        model.compute_dtype, model.remat, model.attention = shape.compute_dtype, shape.remat, shape.attention
        return adapt(model, config.adapter, jax.random.key(config.seed)) if config.adapter.rank else model

    def init() -> Llama:
        rngs = nnx.Rngs(jax.random.key(config.seed))
        return Llama(shape.config, rngs, shape.compute_dtype, shape.remat, shape.attention)

    return jax.jit(init, out_shardings=tree_shardings(shape, mesh))()
