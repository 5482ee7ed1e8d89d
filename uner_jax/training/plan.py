"""Whether a recipe fits a slice, and what of it would, from the compiler instead of from the slice."""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from uner_jax.data.batches import PackedRows
from uner_jax.data.builder import dataset_directory, dataset_tokenizer
from uner_jax.model.config import LlamaConfig
from uner_jax.model.parameters import abstract_model, flatten
from uner_jax.records import InputError
from uner_jax.training.compiled import Compiled, compile_step
from uner_jax.training.config import TrainConfig
from uner_jax.training.hlo import GIB, Buffer
from uner_jax.training.shapes import check_architecture
from uner_jax.training.topologies import Topology
from uner_jax.weights.load import load_config

# Where the data set is not here: 10 to 20 % of the tokens have a loss, and the fullest row has more; a conversation
# has about 500 tokens, and the row of the shortest ones many.
ASSUMED_ANSWERS = 1 / 4
ASSUMED_SEGMENT = 64

# Values by dotted name of a config's fields.
Settings = dict[str, Any]
Compile = Callable[[TrainConfig, LlamaConfig, "Rows", Topology], Compiled]


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a step must know of its rows, and how many there are; None if that is not known."""

    segments_per_row: int
    answers_per_row: int
    vocab_size: int = 0
    count: int | None = None


class Trial(NamedTuple):
    """Settings that were tried because the recipe's own do not fit, and what came of them."""

    settings: str
    compiled: Compiled | None
    refusal: str = ""

    @property
    def fits(self) -> bool:
        """Whether they are for the topology, and fit."""
        return self.compiled is not None and self.compiled.fits


@dataclasses.dataclass(frozen=True)
class Plan:
    """A recipe on a topology; without `compiled`, `refusal` says why it is none for it."""

    topology: Topology
    compiled: Compiled | None
    refusal: str = ""
    trials: tuple[Trial, ...] = ()


def rows_of(config: TrainConfig) -> Rows:
    """The rows of the recipe's data set, or the usual ones if it is not on this machine."""
    directory, length = Path(config.data.dir), config.data.row_length
    if not (dataset_directory(directory, config.data.name) / "dataset_info.json").is_file():
        return Rows(max(1, length // ASSUMED_SEGMENT), max(1, int(length * ASSUMED_ANSWERS)))
    rows = PackedRows(directory, config.data.name, length)
    vocab_size = dataset_tokenizer(directory, config.data.name).vocab_size
    return Rows(rows.segments_per_row, rows.answers_per_row, vocab_size, len(rows))


def architecture_of(config: TrainConfig, rows: Rows) -> LlamaConfig:
    """The architecture of the recipe's model: of its weights, or where they are not here, as the recipe has it."""
    source = config.model.source
    if source and Path(source).exists():
        chosen = load_config(source)
    elif not source or config.model.architecture.vocab_size:
        chosen = config.model.architecture
    else:
        raise InputError(f"{source}: no such model here, and the recipe has no model.architecture to plan with")
    if not chosen.vocab_size and not rows.vocab_size:
        raise InputError(
            "the model takes its vocabulary from the data set, which is not here; set model.architecture.vocab-size"
        )
    return check_architecture(chosen, config, rows.vocab_size)


def make_plans(
    config: TrainConfig,
    architecture: LlamaConfig,
    rows: Rows,
    topologies: Sequence[Topology],
    compile: Compile = compile_step,
) -> Iterator[Plan]:
    """A plan for each topology; where the recipe is not for it or does not fit, with trials of what might."""
    for topology in topologies:

        def attempt(settings: Settings, topology: Topology = topology) -> Trial:
            shown = flags(settings)
            print(f"compiling for {topology.name}, {shown or 'the recipe as it is'} ...", file=sys.stderr, flush=True)
            try:
                return Trial(shown, compile(with_settings(config, settings), architecture, rows, topology))
            except InputError as error:
                return Trial(shown, None, str(error))

        first = attempt({})
        refused = first.compiled is None
        trials = () if first.fits else tuple(_trials(config, topology.count, refused, attempt))
        yield Plan(topology, first.compiled, first.refusal, trials)


def with_settings(config: TrainConfig, settings: Settings) -> TrainConfig:
    """The config with other values of fields of it and of its parts, by dotted name."""
    for name, value in settings.items():
        part, _, field = name.rpartition(".")
        if part:
            value = dataclasses.replace(getattr(config, part), **{field: value})
        config = dataclasses.replace(config, **{part or field: value})
    return config


def flags(settings: Settings) -> str:
    """The settings as they are given on the command line."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())


def _trials(config: TrainConfig, devices: int, refused: bool, attempt: Callable[[Settings], Trial]) -> Iterator[Trial]:
    """Each saving by itself; if none is enough, all of them; then with more and more of the model cut by tensor.

    Where the batch could not be dealt out, memory is not the question: only how it is dealt out is tried.
    """
    savings = [saving for saving in _savings(config, devices) if not refused or "gradient_accumulation" in saving]
    savings = [saving for saving in savings if with_settings(config, saving) != config]
    trials = [attempt(saving) for saving in savings]
    yield from trials
    if any(trial.fits for trial in trials):
        return
    together = {name: value for saving in savings for name, value in saving.items()}
    finer = [tensor for tensor in (2, 4, 8) if tensor > config.mesh.tensor and devices % tensor == 0]
    cuts = [together | _cut_by(tensor, config, devices) for tensor in finer]
    for settings in [together, *cuts] if len(savings) > 1 else cuts:
        trial = attempt(settings)
        yield trial
        if trial.fits:
            return


def _savings(config: TrainConfig, devices: int) -> Iterator[Settings]:
    """Settings that take less memory, those first that change no number that is computed."""
    # "offload" keeps less on the device than "full" does.
    if config.model.remat != "offload":
        yield {"model.remat": "full"}
    yield _one_row(config, devices // config.mesh.tensor)
    yield {"dtype": "bfloat16"}
    yield {"optimizer.first_moment_dtype": "bfloat16"}


def _one_row(config: TrainConfig, parts: int) -> Settings:
    """The same batch in so many microbatches that each of the devices, or groups of them, has one row of each."""
    return {"gradient_accumulation": max(1, config.data.batch_size // max(1, parts))}


def _cut_by(tensor: int, config: TrainConfig, devices: int) -> Settings:
    return {"mesh.data": 1, "mesh.fsdp": -1, "mesh.tensor": tensor} | _one_row(config, devices // tensor)


# ---- what is printed

REMATERIALISED = "the partitioner gathers an array whole on every device (involuntary full rematerialisation)"


def describe(config: TrainConfig, architecture: LlamaConfig, rows: Rows) -> str:
    """The recipe in three lines: model, data, steps."""
    parameters = sum(leaf.size for leaf in flatten(abstract_model(architecture)).values())
    data = f"{rows.answers_per_row:,} answer tokens and {rows.segments_per_row} conversations a row at most"
    lines = [
        f"model   {config.model.source or 'random weights'}: {parameters / 1e6:,.1f} M parameters, "
        f"computing in {config.dtype}, remat {config.model.remat}",
        f"data    {data}" + ("" if rows.count else f"; assumed: {config.data.dir}/{config.data.name} is not here"),
        f"step    {config.data.batch_size:,} rows of {config.data.row_length:,} tokens in "
        f"{config.gradient_accumulation} microbatch(es)" + _epoch(config, rows),
    ]
    return "\n".join(lines)


def _epoch(config: TrainConfig, rows: Rows) -> str:
    return f"; {math.ceil(rows.count / config.data.batch_size):,} steps an epoch" if rows.count else ""


COLUMNS = (
    "topology", "mesh", "rows", "fits", "parameters", "optimizer", "batch", "activations", "temporary",
    "peak", "limit", "attention", "donated", "compiled in",
)  # fmt: skip

LEGEND = """\
GiB a device; mesh is data x fsdp x tensor; rows are those of a device in a microbatch; activations: what the forward
pass keeps for the backward pass; temporary: the rest of the peak (gradients, gathered kernels, what is recomputed)"""


def table(plans: Sequence[Plan]) -> list[list[str]]:
    """A header and a line of words for each plan that was compiled; sizes in GiB a device."""
    return [list(COLUMNS), *(_line(plan.compiled) for plan in plans if plan.compiled is not None)]


def _line(step: Compiled) -> list[str]:
    known = step.parameters + step.optimizer + step.batch + step.activations
    # gradients, gathered kernels, what is recomputed; at the peak not all activations need be there any more.
    temporary = None if step.peak is None or step.error else max(0, step.peak - known)
    return [
        step.topology.name,
        " x ".join(map(str, step.mesh.values())),
        f"{step.rows_a_device}",
        "yes" if step.fits else "no",
        gib(step.parameters),
        gib(step.optimizer),
        gib(step.batch),
        gib(step.activations) if step.activations else "-",
        "-" if temporary is None else gib(temporary),
        peak_of(step),
        f"{step.topology.limit_gib:.2f}",
        step.kernel if step.fused or step.error else f"{step.kernel} (not in the program!)",
        "-" if step.error else "all" if step.donated else "not all!",
        f"{step.seconds:.0f} s",
    ]


def gib(size: float) -> str:
    """Bytes in GiB."""
    return f"{size / GIB:.2f}"


def peak_of(step: Compiled) -> str:
    """The peak in GiB; of a step that the compiler refused, what it needs at least."""
    if step.peak is not None:
        return f"over {gib(step.peak)}" if step.error else gib(step.peak)
    return f"over {gib(step.parameters + step.optimizer)}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """The lines of words as columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(word.ljust(w) for word, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def details(plan: Plan) -> str:
    """What the table does not say of a plan: why it is none, collectives, buffers, trials."""
    step = plan.compiled
    facts: dict[str, list[str]] = {"refused": [plan.refusal or (step.error if step else "")]}
    if step is not None:
        facts["collectives"] = ["" if step.error else counted(step.collectives) or "none"]
        facts["kernels"] = [counted(step.calls)]
        facts["warning"] = [REMATERIALISED if step.rematerialised else ""]
        facts["largest"] = [_buffer(buffer) for buffer in step.buffers]
    facts["tried"] = [_outcome(trial) for trial in plan.trials]
    return "\n".join(
        [plan.topology.name, *(line for word, entries in facts.items() for line in _listed(word, entries))]
    )


def counted(counts: dict[str, int]) -> str:
    """Names with their numbers."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _listed(word: str, entries: list[str]) -> list[str]:
    return [f"  {'' if number else word:11}  {entry}" for number, entry in enumerate(filter(None, entries))]


def _buffer(buffer: Buffer) -> str:
    return f"{gib(buffer.size):>6} GiB  {buffer.name}  {buffer.shape}"


def _outcome(trial: Trial) -> str:
    if trial.compiled is None:
        return f"{trial.settings}: {trial.refusal}"
    verdict = "fits" if trial.fits else "does not fit"
    return f"{trial.settings}: {verdict}, peak {peak_of(trial.compiled)} GiB"


def print_plan(config: TrainConfig, topologies: Sequence[Topology]) -> None:
    """Compile the recipe for the topologies and print what came of it."""
    for topology in topologies:
        # one that is not known, or has no compiler here, is named before the first is compiled.
        topology.devices()
    rows = rows_of(config)
    architecture = architecture_of(config, rows)
    print(describe(config, architecture, rows), end="\n\n", flush=True)
    plans = list(make_plans(config, architecture, rows, topologies))
    if any(plan.compiled for plan in plans):
        print(LEGEND)
        print(aligned(table(plans)), end="\n\n")
    print("\n".join(map(details, plans)))
