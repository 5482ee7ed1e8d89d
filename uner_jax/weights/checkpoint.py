"""The layout of our own checkpoints: an Orbax directory with the model, its tokenizer and its config.

A checkpoint is a directory of named items: `model` (parameters by name), `tokenizer` (the text of
its Hugging Face files) and, while training, `optimizer`. The metadata holds the model's config and
the versions that wrote it: a checkpoint can be used without anything beside it. Where adapters are
trained, `model` holds them alone, and the metadata says where the base lies (`weights.adapter`).
"""

import dataclasses
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from uner_jax.model.adapters import split
from uner_jax.model.config import LlamaConfig, RopeScaling
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import flatten
from uner_jax.records import InputError
from uner_jax.tokenizer import Tokenizer, load_tokenizer
from uner_jax.weights.integrity import check_digests, check_seal, read_whole, sealed

FORMAT = "uner_jax/1"


def model_items(model: Llama, tokenizer: Tokenizer) -> dict[str, Any]:
    """The items that every checkpoint holds: of a model with adapters, those alone."""
    return {"model": flatten(split(model)[0]), "tokenizer": tokenizer_files(tokenizer)}


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    """The tokenizer's Hugging Face files, by name."""
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save(Path(directory))
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(directory).iterdir())}


def metadata_of(model: Llama) -> dict[str, Any]:
    """What a checkpoint says of itself."""
    import flax
    import orbax.checkpoint

    versions = {"jax": jax.__version__, "flax": flax.__version__, "orbax": orbax.checkpoint.__version__}
    return {"format": FORMAT, "model_config": dataclasses.asdict(model.config), "versions": versions}


def write_checkpoint(model: Llama, tokenizer: Tokenizer, directory: Path) -> None:
    """Write a checkpoint of the model and its tokenizer. Raises InputError if something is there already."""
    make_way(directory)
    quieten_orbax()
    items = model_items(model, tokenizer)
    ocp.save_checkpointables(epath.Path(directory.absolute()), items, custom_metadata=sealed(metadata_of(model), items))


def quieten_orbax() -> None:
    """Keep Orbax from noting that a small item had nothing to merge, and what it dropped after a failed read."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine 'PyTreeHandler.* was never awaited", RuntimeWarning)


def make_way(directory: Path) -> None:
    """Remove the directory that is to be written if it is there and empty; InputError if it holds anything."""
    if directory.is_dir() and not any(directory.iterdir()):
        directory.rmdir()
    elif directory.exists():
        raise InputError(f"{directory}: exists and is not empty; give another name or remove it")


def checkpoint_directory(path: Path) -> Path | None:
    """The checkpoint that a path means: itself, or the newest of a training run; None if it is neither."""
    if (path / "_CHECKPOINT_METADATA").is_file():
        return path
    steps = [step for step in (path / "checkpoints").glob("*") if step.name.isdigit()]
    steps = [step for step in steps if (step / "_CHECKPOINT_METADATA").is_file()]
    return max(steps, key=lambda step: int(step.name), default=None)


def read_metadata(directory: Path) -> dict[str, Any]:
    """A checkpoint's metadata. Raises InputError if it was not written by this project, or is damaged."""
    try:
        found = ocp.checkpointables_metadata(epath.Path(directory.absolute())).custom_metadata
    except ValueError as error:  # Orbax's for a checkpoint without named items
        raise InputError(f"{directory}: an Orbax checkpoint, but not one of format {FORMAT!r}: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{directory}: an Orbax checkpoint, but not one of format {FORMAT!r}")
    for item in ("model", "tokenizer"):
        if not (directory / item).is_dir():
            raise InputError(f"{directory}: a checkpoint of ours without its {item}; copy it again, whole")
    check_seal(str(directory), found)
    return found


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer that lies in a checkpoint. Raises InputError as `read_metadata` does."""
    metadata = read_metadata(directory)
    items = read_items(directory, {"tokenizer": None})
    check_digests(str(directory), metadata, "tokenizer", items["tokenizer"])
    with tempfile.TemporaryDirectory() as temporary:
        for name, text in items["tokenizer"].items():
            Path(temporary, name).write_text(text, encoding="utf-8")
        return load_tokenizer(temporary)


def read_items(directory: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Items of a checkpoint: arrays as the leaves wanted say, or, for None, as saved. DamagedError if one cannot be."""
    quieten_orbax()
    return read_whole(str(directory), lambda: ocp.load_checkpointables(epath.Path(directory.absolute()), wanted))


def config_of(metadata: dict[str, Any]) -> LlamaConfig:
    """The model's config from a checkpoint's metadata."""
    fields = dict(metadata["model_config"])
    if fields["rope_scaling"] is not None:
        fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
    return LlamaConfig(**fields)


class CheckpointTensors:
    """The parameters of a checkpoint of ours."""

    def __init__(self, directory: Path):
        self.where = str(directory)
        self.directory = epath.Path(directory.absolute())
        self._metadata = read_metadata(directory)
        self.config = config_of(self._metadata)
        self.adapter: dict[str, Any] | None = self._metadata.get("adapter")

    def read_all(self, abstract: dict[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
        """All parameters, as the shapes, dtypes and shardings given say. Raises InputError if one does not fit."""
        saved = self._saved()
        found = {name: tuple(leaf.shape) for name, leaf in saved.items()}
        expected = {name: leaf.shape for name, leaf in abstract.items()}
        if found != expected:
            name = min(name for name in found | expected if found.get(name) != expected.get(name))
            shapes = f"{found.get(name, 'not there')}; the config says {expected.get(name, 'not there')}"
            raise InputError(f"{self.where}: the shape of {name} is {shapes}")
        # in the dtype of the file first: the digests are of its bits.
        as_saved = {
            name: jax.ShapeDtypeStruct(leaf.shape, saved[name].dtype, sharding=leaf.sharding)
            for name, leaf in abstract.items()
        }
        leaves = read_items(Path(self.where), {"model": as_saved})["model"]
        check_digests(self.where, self._metadata, "model", leaves)
        return {name: leaves.pop(name).astype(leaf.dtype) for name, leaf in abstract.items()}

    def saved_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all parameters, by name."""
        return {name: tuple(saved.shape) for name, saved in self._saved().items()}

    def dtype(self) -> np.dtype:
        """The dtype that the parameters were saved in."""
        return np.dtype(self._saved()["embedding"].dtype)

    def _saved(self) -> dict[str, Any]:
        saved = read_whole(self.where, lambda: ocp.checkpointables_metadata(self.directory)).metadata["model"]
        if saved is None:
            raise InputError(f"{self.where}: the list of the model's parameters is not readable; copy it again, whole")
        return saved
