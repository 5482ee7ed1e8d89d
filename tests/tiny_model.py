"""A model of random weights, small enough for every test that only needs one."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from uner_jax.model.config import LlamaConfig
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import abstract_model, flatten, unflatten

# the vocabulary is that of tok512.
CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=512,
)


def random_model(config: LlamaConfig = CONFIG) -> Llama:
    """Weights that are wide, so that answers wander; the same ones every time."""
    model = abstract_model(config)

    def draw(name: str, shape: tuple[int, ...]) -> jax.Array:
        return jnp.asarray(np.random.default_rng(zlib.crc32(name.encode())).normal(0, 0.5, shape), jnp.float32)

    return unflatten(model, {name: draw(name, leaf.shape) for name, leaf in flatten(model).items()})


def blank_model(config: LlamaConfig) -> Llama:
    """A model of zeros, which nobody asks."""
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_model(config))
