"""Checkpoints of a run: asynchronous, the newest kept, restored onto any mesh, the damaged ones set aside."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from uner_jax.model.parameters import flatten, tree_shardings, unflatten
from uner_jax.records import InputError
from uner_jax.template import Noun
from uner_jax.tokenizer import Tokenizer
from uner_jax.training.config import CheckpointConfig
from uner_jax.training.console import say
from uner_jax.training.step import TrainState
from uner_jax.weights.checkpoint import config_of, metadata_of, model_items, quieten_orbax, read_items, read_metadata
from uner_jax.weights.integrity import DamagedError, check_digests, sealed


@dataclasses.dataclass(frozen=True)
class DataState:
    """What a run stands on beside its recipe; with it, the step number says where the data stands.

    `base` is the fingerprint of the model that adapters are trained for, or empty.
    """

    fingerprint: str
    tokenizer: str
    base: str
    seed: int
    batch_size: int


class Restored(NamedTuple):
    """A run as a checkpoint holds it: after `step` steps, of which `skipped` changed nothing, on this data."""

    step: int
    skipped: int
    data: dict[str, Any]
    state: TrainState


class Checkpoints:
    """Writes the checkpoints of one run, under `run_dir/checkpoints`.

    `noun` is what the prompts of the data call the passage.
    `adapter` is what is noted of the base where adapters are trained (`adapter_metadata`): it is not saved itself.
    `losses` are the validation losses by step that are known from before.
    """

    def __init__(
        self,
        run_dir: Path,
        config: CheckpointConfig,
        tokenizer: Tokenizer,
        data: DataState,
        noun: Noun,
        adapter: dict[str, Any] | None = None,
        losses: Mapping[int, float] = MappingProxyType({}),
    ):
        quieten_orbax()
        self._config = config
        self._tokenizer = tokenizer
        self._data = data
        self._noun = noun
        self._adapter = adapter
        self._losses = dict(losses)
        self._checkpointer = ocp.training.Checkpointer(
            epath.Path(checkpoint_root(run_dir).absolute()),
            preservation_policy=self,
            cleanup_tmp_directories=True,
        )

    def due(self, step: int) -> bool:
        """Whether a checkpoint belongs after this step."""
        return step % self._config.every == 0

    def save(self, step: int, state: TrainState, skipped: int, validation_loss: float | None = None) -> None:
        """Start to write a checkpoint; the arrays are copied before this returns, the files follow."""
        self._checkpointer.wait()
        if validation_loss is not None and math.isfinite(validation_loss):
            self._losses[step] = validation_loss
        items = model_items(state.model, self._tokenizer) | {"optimizer": flatten(state.optimizer)}
        about = {"step": step, "skipped": skipped, "data": dataclasses.asdict(self._data)}
        about |= {"adapter": self._adapter} if self._adapter else {}
        metadata = sealed(metadata_of(state.model.config, self._noun) | about, items)
        self._checkpointer.save_checkpointables_async(step, items, force=True, custom_metadata=metadata)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which checkpoints are kept, as Orbax asks: the newest, and the one with the lowest validation loss."""
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        known = [step for step in steps if step in self._losses]
        kept = {*steps[-self._config.keep :], *sorted(known, key=self._losses.__getitem__)[:1]}
        return [checkpoint.step in kept for checkpoint in checkpoints]

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._checkpointer.close()


def checkpoint_root(run_dir: Path) -> Path:
    """The directory of a run's checkpoints, each in one of its step's number."""
    return run_dir / "checkpoints"


def saved_steps(run_dir: Path) -> list[int]:
    """The steps that have a checkpoint, from the first to the newest; Orbax names them when they are whole."""
    return sorted(int(path.name) for path in checkpoint_root(run_dir).glob("*") if path.name.isdigit())


def restore(run_dir: Path, abstract: TrainState, mesh: Mesh) -> Restored | None:
    """The newest checkpoint that is not damaged, placed on the mesh; None where the run has made none.

    The damaged ones are named and set aside, as `STEP.corrupt`. Raises InputError if they all are, or if
    the model of the checkpoint is another one.
    """
    quieten_orbax()
    root = checkpoint_root(run_dir)
    for step in reversed(saved_steps(run_dir)):
        found = damage = None
        try:
            found = _read(root / str(step), abstract, mesh)
        except DamagedError as error:
            damage = error
        if _on_all_hosts(found is not None):
            return found
        _set_aside(root / str(step), damage)
    aside = sorted(path.name for path in root.glob("*.corrupt*"))
    if aside:
        raise InputError(
            f"{root}: no checkpoint is left that is whole (set aside: {', '.join(aside)}); "
            "copy one back, give another run_dir, or remove these to begin anew"
        )
    return None


def _read(directory: Path, abstract: TrainState, mesh: Mesh) -> Restored:
    where = str(directory)
    try:
        metadata = read_metadata(directory)
    except InputError as error:
        raise DamagedError(str(error)) from error
    if config_of(metadata) != abstract.model.config:
        raise InputError(f"{directory}: a model of other sizes than the recipe's; give another run_dir")
    loaded = read_items(directory, _wanted(abstract, mesh))
    for item, leaves in loaded.items():
        check_digests(where, metadata, item, leaves)
    state = TrainState(**{item: unflatten(tree, loaded[item]) for item, tree in abstract._asdict().items()})
    return Restored(int(directory.name), metadata.get("skipped", 0), metadata.get("data", {}), state)


def _wanted(abstract: TrainState, mesh: Mesh) -> dict[str, dict[str, Any] | None]:
    """What is asked of Orbax: the state's items as they shall lie on the mesh, and the tokenizer, to check it."""
    shardings = flatten(tree_shardings(abstract, mesh))
    wanted: dict[str, dict[str, Any] | None] = {"tokenizer": None}
    for item, tree in abstract._asdict().items():
        # every leaf says where it goes, scalars too: else Orbax puts them back on the mesh they came from.
        wanted[item] = {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[f"{item}.{name}"])
            for name, leaf in flatten(tree).items()
        }
    return wanted


def _on_all_hosts(fact: bool) -> bool:
    """Whether it holds on every host; they all must ask."""
    return fact if jax.process_count() == 1 else bool(np.all(multihost_utils.process_allgather(np.array(fact))))


def _set_aside(directory: Path, damage: DamagedError | None) -> None:
    """Rename a damaged checkpoint, and say so: nothing is deleted, it may hold the best there is."""
    names = (f"{directory.name}.corrupt{number or ''}" for number in itertools.count())
    if jax.process_index() == 0:
        aside = next(path for path in map(directory.with_name, names) if not path.exists())
        directory.rename(aside)
        why = damage or f"{directory}: another host cannot read it"
        say(f"{why}; set aside as {aside.name}")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"set aside {directory}")
