"""What of the forward pass is kept for the backward pass, from the trace of one device's part of the model."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from uner_jax.model.adapters import adapt, join, split, with_dropout
from uner_jax.model.config import LlamaConfig
from uner_jax.model.kernels import Attention
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import abstract_model
from uner_jax.training.config import TrainConfig

# B rows of a microbatch on one device, T tokens

Kept = list[jax.ShapeDtypeStruct]


def kept_activations(
    config: TrainConfig, architecture: LlamaConfig, attention: Attention, rows_a_device: int, tensor: int
) -> Kept:
    """The arrays that one device's forward pass keeps for its backward pass, other than its arguments.

    Asked of JAX, which decides it by the remat policy before any compiler sees the program: of the blocks, the
    embedding and the last norm, for one microbatch. Not among them: what lies in the host's memory ("offload"), and
    what the loss keeps, gradients only. A device's part under `tensor` is a model with fewer heads and a narrower MLP.
    """
    model = _abstract(config, _part(architecture, tensor), attention)
    trained, frozen = split(model)
    row = jax.ShapeDtypeStruct((rows_a_device, config.data.row_length), jnp.int32)

    def kept(trained: Llama, frozen: Llama, *inputs_BT: jax.Array) -> list[jax.Array]:
        def hidden(trained: Llama) -> jax.Array:
            return with_dropout(join(trained, frozen), jax.random.key(0)).hidden(*inputs_BT)

        return jax.tree.leaves(jax.vjp(hidden, trained)[1])

    jaxpr = jax.make_jaxpr(kept)(trained, frozen, row, row, row).jaxpr
    known = {id(variable) for variable in (*jaxpr.invars, *jaxpr.constvars)}
    made = {id(out): out.aval for out in jaxpr.outvars if not isinstance(out, Literal) and id(out) not in known}
    return [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in made.values() if not _on_host(aval)]


def activation_bytes(kept: Kept) -> int:
    """What the arrays take together."""
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in kept)


def _abstract(config: TrainConfig, architecture: LlamaConfig, attention: Attention) -> Llama:
    dtype = jnp.dtype(config.dtype)
    model = abstract_model(architecture, compute_dtype=dtype, remat=config.model.remat, attention=attention)
    if not config.adapter.rank:
        return model
    return jax.eval_shape(lambda model: adapt(model, config.adapter, jax.random.key(config.seed)), model)


def _part(architecture: LlamaConfig, tensor: int) -> LlamaConfig:
    """The architecture that a device sees where heads and MLP are cut; what does not divide is whole, as on a mesh."""

    def cut(size: int) -> int:
        return size // tensor if size % tensor == 0 else size

    return dataclasses.replace(
        architecture,
        num_attention_heads=cut(architecture.num_attention_heads),
        num_key_value_heads=cut(architecture.num_key_value_heads),
        intermediate_size=cut(architecture.intermediate_size),
        head_dim=architecture.head_dim,
    )


def _on_host(aval: jax.core.AbstractValue) -> bool:
    return getattr(aval, "memory_space", None) == jax.memory.Space.Host
