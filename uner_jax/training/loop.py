"""A training run, from a config to checkpoints: read it from top to bottom."""

import dataclasses
import math
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from uner_jax.data.batches import PackedRows, batches
from uner_jax.data.builder import built_metadata, dataset_tokenizer, versions
from uner_jax.mesh import make_mesh
from uner_jax.model.adapters import split
from uner_jax.model.config import LlamaConfig
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import abstract_model
from uner_jax.records import InputError
from uner_jax.template import SCHEME_NOUN, Noun
from uner_jax.tokenizer import Tokenizer
from uner_jax.training.ahead import compile_ahead
from uner_jax.training.batch import on_mesh
from uner_jax.training.checkpoint import Checkpoints, DataState, restore, saved_steps
from uner_jax.training.config import TrainConfig
from uner_jax.training.console import say
from uner_jax.training.drift import check_data, check_recipe, record_config
from uner_jax.training.flops import Work, rates
from uner_jax.training.initial import first_state
from uner_jax.training.lock import only_run
from uner_jax.training.metrics import Metrics, read_metrics, validation_losses
from uner_jax.training.optimizer import make_optimizer, make_schedule
from uner_jax.training.preemption import Preemption
from uner_jax.training.profile import Profile
from uner_jax.training.shapes import abstract_state, check_architecture, check_batch
from uner_jax.training.skips import Skips
from uner_jax.training.step import StepMetrics, make_step
from uner_jax.training.summary import check_export, complete
from uner_jax.training.validation import Score, Validation
from uner_jax.weights import load_model_tokenizer
from uner_jax.weights.adapter import adapter_metadata
from uner_jax.weights.load import load_config


def train(config: TrainConfig, score: Score | None = None) -> None:
    """Run the recipe to its last step, from the newest checkpoint in its run_dir if there is one.

    `score` gives an F1 of the answers that a model writes, where the recipe asks for one. Raises InputError where
    another run is at work in the same run_dir.
    """
    with only_run(Path(config.run_dir)):
        _train(config, score)


def _train(config: TrainConfig, score: Score | None) -> None:
    run_dir = Path(config.run_dir)
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    check_batch(config, mesh)
    rows = PackedRows(Path(config.data.dir), config.data.name, config.data.row_length)
    tokenizer = _matching_tokenizer(config)
    steps = config.steps or math.ceil(config.epochs * len(rows) / config.data.batch_size)
    check_export(config, steps)
    schedule = make_schedule(config.optimizer, steps)
    optimizer = make_optimizer(config.optimizer, steps)
    validation = Validation(config, tokenizer, mesh, steps, score)

    with jax.set_mesh(mesh), Preemption() as preemption:
        abstract = abstract_state(config, _architecture(config, tokenizer), optimizer, rows, mesh)
        adapter = _adapter_metadata(config)
        base = adapter["fingerprint"] if adapter else ""
        data_state = DataState(rows.fingerprint(), tokenizer.fingerprint, base, config.seed, config.data.batch_size)
        changes = check_recipe(config) if saved_steps(run_dir) else {}
        saved = restore(run_dir, abstract._replace(model=split(abstract.model)[0]), mesh)
        if saved:
            changes |= check_data(config, saved.step, saved.data, data_state)
        done, skipped = (saved.step, saved.skipped) if saved else (0, 0)
        work = Work.of(abstract.model.config, frozen=bool(config.adapter.rank))
        _describe(config, abstract.model, rows, mesh, steps, done, work)
        if done >= steps:
            say(f"{run_dir}: already complete at step {done}")
            complete(config, done)
            return
        record_config(config, done, changes)
        step_fn = make_step(optimizer, config.gradient_accumulation, mesh, abstract, config.seed)
        step_fn = compile_ahead(step_fn, config, abstract, rows, mesh)
        state = first_state(config, abstract, optimizer, mesh, saved)
        losses = validation_losses(read_metrics(run_dir))
        noun = prompt_noun(config)
        checkpoints = Checkpoints(run_dir, config.checkpoint, tokenizer, data_state, noun, adapter, losses)
        data = batches(
            rows, config.seed, config.data.batch_size, done, host=jax.process_index(), hosts=jax.process_count()
        )
        skips = Skips(config, rows, skipped)

        with (
            closing(checkpoints),
            closing(Metrics(config, done, steps)) as metrics,
            closing(Profile(config)) as profile,
        ):
            for step in range(done + 1, steps + 1):
                started = time.perf_counter()
                learning_rate = float(schedule(step - 1 - skips.total))
                with profile.step(step):
                    state, measured = step_fn(state, on_mesh(next(data), mesh))
                    row = _row(step, measured, learning_rate)
                skips.count(step, bool(measured.finite))
                row |= {"skipped": skips.total, "packing": row["tokens"] / (config.data.batch_size * rows.row_length)}
                row |= rates(row, time.perf_counter() - started, work.flops(*_sizes(measured)), mesh)
                stopping = preemption.reached(step)
                saving = step == steps or stopping or (checkpoints.due(step) and not skips.in_a_row)
                if not stopping:  # the time that is left is for the checkpoint
                    row |= validation.measure(step, state.model, saving)
                metrics.write(row)
                skips.check(step)
                if saving:
                    checkpoints.save(step, state, skips.total, row.get("validation_loss"))
                if stopping:
                    break
        del state
    if step < steps:
        say(f"stopped by SIGTERM after step {step} of {steps}, which is saved; the same command goes on")
    else:
        complete(config, steps)


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


def prompt_noun(config: TrainConfig) -> Noun:
    """What the prompts of the data set call the passage."""
    built = built_metadata(Path(config.data.dir), config.data.name) or {}
    return SCHEME_NOUN[built.get("scheme", "whole")]


def _architecture(config: TrainConfig, tokenizer: Tokenizer) -> LlamaConfig:
    chosen = load_config(config.model.source) if config.model.source else config.model.architecture
    return check_architecture(chosen, config, tokenizer.vocab_size)


def _adapter_metadata(config: TrainConfig) -> dict[str, Any] | None:
    """What checkpoints note of the base of adapters; None where all weights are trained."""
    if not config.adapter.rank:
        return None
    if not config.model.source:
        raise InputError("adapter.rank: adapters need a model to adapt; set model.source")
    return adapter_metadata(config.adapter, config.model.source)


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


def _sizes(measured: StepMetrics) -> tuple[float, float, float]:
    """Tokens, attending pairs and answer tokens of a step."""
    return float(measured.tokens), float(measured.pairs), float(measured.answer_tokens)


def _describe(
    config: TrainConfig, model: Llama, rows: PackedRows, mesh: Mesh, steps: int, done: int, work: Work
) -> None:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(abstract_model(model.config)))
    tokens = rows.lengths.sum()
    flops = work.flops(tokens, (rows.lengths * (rows.lengths + 1) / 2).sum(), rows.answers) / tokens
    say(
        f"model      {config.model.source or 'random weights'}: {parameters / 1e6:,.1f} M parameters, "
        f"computing in {config.dtype}, remat {config.model.remat}, attention {model.attention.kernel}\n"
        f"{_adapter_line(config, model) if config.adapter.rank else ''}"
        f"mesh       {dict(mesh.shape)} on {jax.device_count()} {mesh.devices.flat[0].device_kind} device(s)\n"
        f"data       {rows.directory}: {rows.conversations:,} conversations, {tokens:,} tokens ({rows.answers:,} of "
        f"answers) in {len(rows):,} rows of {config.data.row_length}, {rows.fill:.1%} full\n"
        f"steps      {steps:,} of {config.data.batch_size} rows, {flops / 1e9:,.2f} GFLOP a token"
        f"{f', resuming after step {done}' if done else ''}\n"
        f"run        {config.run_dir}"
    )


def _adapter_line(config: TrainConfig, model: Llama) -> str:
    trained = sum(leaf.size for leaf in jax.tree.leaves(split(model)[0]))
    return (
        f"adapter    LoRA of rank {config.adapter.rank} on {', '.join(config.adapter.targets)}: "
        f"{trained / 1e6:,.1f} M parameters are trained; frozen kernels in {config.adapter.base}\n"
    )
