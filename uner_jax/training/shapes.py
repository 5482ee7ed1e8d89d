"""The shapes of a run, without its arrays: what the loop fills and what `uner plan` compiles for."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from uner_jax.mesh import sharding_of
from uner_jax.model.adapters import adapt, split
from uner_jax.model.config import LlamaConfig
from uner_jax.model.kernels import Attention, choose_attention
from uner_jax.model.parameters import abstract_model, tree_shardings
from uner_jax.records import InputError
from uner_jax.training.config import TrainConfig
from uner_jax.training.console import say
from uner_jax.training.step import TrainState

# B rows, T tokens, A answer tokens of a row


class RowShape(Protocol):
    """What a step must know of its rows: `data.batches.PackedRows` has it."""

    @property
    def segments_per_row(self) -> int: ...  # noqa: D102
    @property
    def answers_per_row(self) -> int: ...  # noqa: D102


def check_batch(config: TrainConfig, mesh: Mesh) -> None:
    """InputError if the rows of a step cannot be dealt out evenly to devices and microbatches."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * config.gradient_accumulation
    if config.data.batch_size % parts:
        raise InputError(
            f"data.batch_size {config.data.batch_size} must be a multiple of mesh.data x mesh.fsdp x "
            f"gradient_accumulation = {mesh.shape['data']} x {mesh.shape['fsdp']} x {config.gradient_accumulation}"
        )
    # the mesh may be of devices that are not here, or this run of several processes.
    hosts = max(jax.process_count(), len({device.process_index for device in mesh.devices.flat}))
    if mesh.shape["data"] * mesh.shape["fsdp"] % hosts:
        raise InputError(f"mesh.data x mesh.fsdp must be a multiple of the {hosts} hosts: each reads rows of its own")


def check_architecture(architecture: LlamaConfig, config: TrainConfig, vocab_size: int) -> LlamaConfig:
    """The architecture, with the tokenizer's vocabulary where it has none of its own; InputError if rows do not fit."""
    if not architecture.vocab_size:
        architecture = dataclasses.replace(architecture, vocab_size=vocab_size)
    if architecture.vocab_size < vocab_size:
        raise InputError(f"the model has {architecture.vocab_size} ids, its tokenizer {vocab_size}")
    if architecture.longest_row < config.data.row_length:
        raise InputError(
            f"data.row_length {config.data.row_length} exceeds the model's {architecture.row_limit}; "
            "lower data.row_length"
        )
    return architecture


def abstract_state(
    config: TrainConfig, architecture: LlamaConfig, optimizer: optax.GradientTransformation, rows: RowShape, mesh: Mesh
) -> TrainState:
    """The shapes of the state: nothing is allocated."""
    attention = _attention(config, mesh, rows, architecture.head_dim)
    dtype = jnp.dtype(config.dtype)
    model = abstract_model(architecture, compute_dtype=dtype, remat=config.model.remat, attention=attention)
    if config.adapter.rank:
        # the key is made within: outside of it, the devices of the mesh would be asked for it, and may not be here.
        model = jax.eval_shape(lambda model: adapt(model, config.adapter, jax.random.key(config.seed)), model)
    return TrainState(model, jax.eval_shape(optimizer.init, split(model)[0]))


def _attention(config: TrainConfig, mesh: Mesh, rows: RowShape, head_width: int) -> Attention:
    """The attention for the mesh; where it is not the fused one, that is said or, with strict_kernels, an error."""
    dtype = jnp.dtype(config.dtype)
    attention, why = choose_attention(mesh, config.data.row_length, rows.segments_per_row, head_width, dtype)
    if why and config.model.strict_kernels:
        raise InputError(f"model.strict_kernels: {why}")
    if why:
        say(f"attention  the reference, which is slow and takes memory: {why}")
    return attention


def placed(state: TrainState, mesh: Mesh) -> TrainState:
    """The shapes of the state, each with where it lies on the mesh: what a step is compiled for."""

    def place(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, state, tree_shardings(state, mesh))


def abstract_batch(config: TrainConfig, rows: RowShape, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a step's batch over all hosts, as `data.batches.PackedRows` fills it."""
    rows_B, tokens_T, answers_A = config.data.batch_size, config.data.row_length, rows.answers_per_row

    def field(length: int, dtype: type = jnp.int32) -> jax.ShapeDtypeStruct:
        shape = (rows_B, length)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding_of(mesh, shape, ("batch", None)))

    per_token = {name: field(tokens_T) for name in ("tokens", "segment_ids", "positions")}
    per_answer = {name: field(answers_A) for name in ("answer_index", "answer_targets")}
    return per_token | per_answer | {"answer_weights": field(answers_A, jnp.float32)}
