"""Checkpoints of a run: asynchronous, the newest kept, restored onto any mesh."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from uner_jax.model.parameters import flatten, tree_shardings, unflatten
from uner_jax.records import InputError
from uner_jax.tokenizer import Tokenizer
from uner_jax.training.config import CheckpointConfig
from uner_jax.training.step import TrainState
from uner_jax.weights.checkpoint import metadata_of, model_items, quieten_orbax


@dataclasses.dataclass(frozen=True)
class DataState:
    """What the order of the batches depends on; with it, the step number says where the data stands."""

    fingerprint: str
    seed: int
    batch_size: int


class Checkpoints:
    """The checkpoints of one run, under `run_dir/checkpoints`."""

    def __init__(self, run_dir: Path, config: CheckpointConfig, tokenizer: Tokenizer, data: DataState):
        quieten_orbax()
        self._config = config
        self._tokenizer = tokenizer
        self._data = data
        self._checkpointer = ocp.training.Checkpointer(
            epath.Path((run_dir / "checkpoints").absolute()),
            preservation_policy=ocp.training.preservation_policies.LatestN(config.keep),
            cleanup_tmp_directories=True,
        )

    def latest(self) -> int | None:
        """The newest step that was saved whole; None if there is none."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def due(self, step: int, last: int) -> bool:
        """Whether a checkpoint belongs after this step."""
        return step % self._config.every == 0 or step == last

    def save(self, step: int, state: TrainState) -> None:
        """Start to write a checkpoint; the arrays are copied before this returns, the files follow."""
        self._checkpointer.wait()
        items = model_items(state.model, self._tokenizer) | {"optimizer": flatten(state.optimizer)}
        metadata = metadata_of(state.model) | {"step": step, "data": dataclasses.asdict(self._data)}
        self._checkpointer.save_checkpointables_async(step, items, force=True, custom_metadata=metadata)

    def restore(self, step: int, abstract: TrainState, mesh: Mesh) -> TrainState:
        """The state after `step`, placed on the mesh. Raises InputError if the data of the run has changed."""
        saved = self._checkpointer.checkpointables_metadata(step).custom_metadata or {}
        self._check_data(step, saved.get("data"))
        shardings = flatten(tree_shardings(abstract, mesh))
        leaves: dict[str, dict[str, Any]] = {}
        for item, tree in abstract._asdict().items():
            # every leaf says where it goes, scalars too: else Orbax puts them back on the mesh they came from.
            leaves[item] = {
                name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings[f"{item}.{name}"])
                for name, leaf in flatten(tree).items()
            }
        loaded = self._checkpointer.load_checkpointables(step, leaves)
        return TrainState(**{item: unflatten(tree, loaded[item]) for item, tree in abstract._asdict().items()})

    def _check_data(self, step: int, saved: dict[str, Any] | None) -> None:
        now = dataclasses.asdict(self._data)
        before = saved or {}
        changed = [f"{name} {before.get(name)} -> {now[name]}" for name in now if before.get(name) != now[name]]
        if changed:
            raise InputError(
                f"checkpoint {step} of {self._checkpointer.directory} was trained on other data "
                f"({'; '.join(changed)}): resuming would not continue it; give another run_dir"
            )

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._checkpointer.close()
