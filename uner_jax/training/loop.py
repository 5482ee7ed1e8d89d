"""A training run, from a config to checkpoints: read it from top to bottom."""

import dataclasses
import json
import math
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from uner_jax.data.batches import Batch, PackedRows, batches
from uner_jax.data.builder import dataset_tokenizer, versions
from uner_jax.mesh import make_mesh, sharding_of
from uner_jax.model.kernels import Attention, choose_attention
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import abstract_model, flatten, tree_shardings
from uner_jax.records import InputError, write_json
from uner_jax.tokenizer import Tokenizer
from uner_jax.training.checkpoint import Checkpoints, DataState
from uner_jax.training.config import TrainConfig
from uner_jax.training.metrics import Metrics
from uner_jax.training.optimizer import make_optimizer, make_schedule
from uner_jax.training.step import StepMetrics, TrainState, make_step
from uner_jax.weights import load_model, load_model_tokenizer
from uner_jax.weights.load import load_config


def train(config: TrainConfig) -> None:
    """Run the recipe to its last step, from the newest checkpoint in its run_dir if there is one."""
    run_dir = Path(config.run_dir)
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    _check_batch(config, mesh)
    rows = PackedRows(Path(config.data.dir), config.data.name, config.data.row_length)
    tokenizer = _matching_tokenizer(config)
    steps = config.steps or math.ceil(config.epochs * len(rows) / config.data.batch_size)
    schedule = make_schedule(config.optimizer, steps)
    optimizer = make_optimizer(config.optimizer, steps)

    with jax.set_mesh(mesh):
        abstract = _abstract_state(config, tokenizer, optimizer, rows, mesh)
        data_state = DataState(rows.fingerprint(), config.seed, config.data.batch_size)
        checkpoints = Checkpoints(run_dir, config.checkpoint, tokenizer, data_state)
        done = checkpoints.latest() or 0
        if done:
            _check_recipe(config, run_dir)
        _describe(config, abstract.model, rows, mesh, steps, done)
        if done >= steps:
            checkpoints.close()
            print(f"{run_dir}: already complete at step {done}", file=sys.stderr)
            return
        _record_config(config, run_dir)
        state = checkpoints.restore(done, abstract, mesh) if done else _initial_state(config, abstract, optimizer, mesh)
        step_fn = make_step(optimizer, config.gradient_accumulation, mesh, abstract)
        data = batches(
            rows, config.seed, config.data.batch_size, done, host=jax.process_index(), hosts=jax.process_count()
        )

        with closing(checkpoints), closing(Metrics(run_dir, done, steps)) as metrics:
            for step in range(done + 1, steps + 1):
                started = time.perf_counter()
                state, measured = step_fn(state, _on_mesh(next(data), mesh))
                row = _row(step, measured, float(schedule(step - 1)))
                metrics.write(row | {"seconds": time.perf_counter() - started})
                if checkpoints.due(step, steps):
                    checkpoints.save(step, state)
    print(f"done: {steps} steps; checkpoint in {run_dir / 'checkpoints' / str(steps)}", file=sys.stderr)


def _check_batch(config: TrainConfig, mesh: Mesh) -> None:
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * config.gradient_accumulation
    if config.data.batch_size % parts:
        raise InputError(
            f"data.batch_size {config.data.batch_size} must be a multiple of mesh.data x mesh.fsdp x "
            f"gradient_accumulation = {mesh.shape['data']} x {mesh.shape['fsdp']} x {config.gradient_accumulation}"
        )


def _matching_tokenizer(config: TrainConfig) -> Tokenizer:
    """The data set's tokenizer; InputError if the model's is another one: its ids would mean other words."""
    tokenizer = dataset_tokenizer(Path(config.data.dir), config.data.name)
    if config.model.source:
        models = load_model_tokenizer(config.model.source)
        if models.fingerprint != tokenizer.fingerprint:
            raise InputError(
                f"the data set {config.data.name} in {config.data.dir} has another tokenizer than "
                f"{config.model.source}; {_matching_version(config, models)}"
            )
    return tokenizer


def _matching_version(config: TrainConfig, tokenizer: Tokenizer) -> str:
    """What to do to get a data set of this tokenizer."""
    directory, name = Path(config.data.dir), config.data.name.partition(":")[0]
    for version in reversed(versions(directory, name)):
        if dataset_tokenizer(directory, f"{name}:{version}").fingerprint == tokenizer.fingerprint:
            return f"set data.name to {name}:{version}, which has it"
    return f"build it with --tokenizer {config.model.source}"


def _check_recipe(config: TrainConfig, run_dir: Path) -> None:
    """InputError if the checkpoints of the run were made with another recipe; what made none may be mended."""
    path = run_dir / "config.json"
    if not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    # these may change between the parts of one run.
    free = ("run_dir", "steps", "epochs", "mesh", "checkpoint", "versions")
    old, new = _flat(before, free), _flat(dataclasses.asdict(config), free)
    # of both: a field that is None has no leaf.
    changed = sorted(name for name in old | new if old.get(name) != new.get(name))
    if changed:
        listed = "; ".join(f"{name} {old.get(name)} -> {new.get(name)}" for name in changed)
        raise InputError(f"{path}: this run was begun with another recipe ({listed}); give another run_dir")


def _record_config(config: TrainConfig, run_dir: Path) -> None:
    """Write config.json: the recipe with all overrides, and what runs it."""
    versions = {"jax": jax.__version__, "python": sys.version.split()[0]}
    write_json(run_dir / "config.json", dataclasses.asdict(config) | {"versions": versions})


def _flat(tree: dict[str, Any], without: tuple[str, ...]) -> dict[str, Any]:
    return flatten({name: value for name, value in tree.items() if name not in without})


def _abstract_state(
    config: TrainConfig, tokenizer: Tokenizer, optimizer: Any, rows: PackedRows, mesh: Mesh
) -> TrainState:
    """The shapes of the state: nothing is allocated."""
    if config.model.source:
        architecture = load_config(config.model.source)
    else:
        architecture = config.model.architecture
        if not architecture.vocab_size:
            architecture = dataclasses.replace(architecture, vocab_size=tokenizer.vocab_size)
    if architecture.vocab_size < tokenizer.vocab_size:
        raise InputError(f"the model has {architecture.vocab_size} ids, its tokenizer {tokenizer.vocab_size}")
    if architecture.max_position_embeddings < config.data.row_length:
        raise InputError(
            f"data.row_length {config.data.row_length} exceeds the model's max_position_embeddings "
            f"{architecture.max_position_embeddings}; lower data.row_length"
        )
    dtype = jnp.dtype(config.dtype)
    attention = _attention(config, mesh, rows, architecture.head_dim)
    model = abstract_model(architecture, compute_dtype=dtype, remat=config.model.remat, attention=attention)
    return TrainState(model, jax.eval_shape(optimizer.init, model))


def _attention(config: TrainConfig, mesh: Mesh, rows: PackedRows, head_width: int) -> Attention:
    """The attention for the mesh; where it is not the fused one, that is said or, with strict_kernels, an error."""
    dtype = jnp.dtype(config.dtype)
    attention, why = choose_attention(mesh, config.data.row_length, rows.segments_per_row, head_width, dtype)
    if why and config.model.strict_kernels:
        raise InputError(f"model.strict_kernels: {why}")
    if why:
        print(f"attention  the reference, which is slow and takes memory: {why}", file=sys.stderr, flush=True)
    return attention


def _initial_state(config: TrainConfig, abstract: TrainState, optimizer: Any, mesh: Mesh) -> TrainState:
    """Loaded or random parameters and a new optimizer, each array born where it belongs."""
    shardings = tree_shardings(abstract, mesh)
    shape = abstract.model
    if config.model.source:
        model = load_model(config.model.source, mesh=mesh)
        model.compute_dtype, model.remat, model.attention = shape.compute_dtype, shape.remat, shape.attention
    else:

        def init() -> Llama:
            rngs = nnx.Rngs(jax.random.key(config.seed))
            return Llama(shape.config, rngs, shape.compute_dtype, shape.remat, shape.attention)

        model = jax.jit(init, out_shardings=shardings.model)()
    return TrainState(model, jax.jit(optimizer.init, out_shardings=shardings.optimizer)(model))


def _on_mesh(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows as its part of global arrays."""
    hosts = jax.process_count()

    def place(x: np.ndarray) -> jax.Array:
        shape = (x.shape[0] * hosts, *x.shape[1:])
        return jax.make_array_from_process_local_data(sharding_of(mesh, shape, ("batch", None)), x, shape)

    return {name: place(x) for name, x in batch.items()}


def _row(step: int, measured: StepMetrics, learning_rate: float) -> dict[str, float]:
    values = jax.device_get(measured)
    return {
        "step": step,
        "loss": float(values.loss),
        "answer_tokens": int(values.answer_tokens),
        "tokens": int(values.tokens),
        "learning_rate": learning_rate,
        "grad_norm": float(values.grad_norm),
    }


def _describe(config: TrainConfig, model: Llama, rows: PackedRows, mesh: Mesh, steps: int, done: int) -> None:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model))
    print(
        f"model      {config.model.source or 'random weights'}: {parameters / 1e6:,.1f} M parameters, "
        f"computing in {config.dtype}, remat {config.model.remat}, attention {model.attention.kernel}\n"
        f"mesh       {dict(mesh.shape)} on {jax.device_count()} {mesh.devices.flat[0].platform} device(s)\n"
        f"data       {rows.directory}: {rows.conversations:,} conversations, {rows.lengths.sum():,} tokens in "
        f"{len(rows):,} rows of {config.data.row_length}, {rows.fill:.1%} full\n"
        f"steps      {steps:,} of {config.data.batch_size} rows{f', resuming after step {done}' if done else ''}\n"
        f"run        {config.run_dir}",
        file=sys.stderr,
        flush=True,
    )
