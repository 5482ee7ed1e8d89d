"""The layout of our own checkpoints: an Orbax directory with the model, its tokenizer and its config.

A checkpoint is a directory of named items: `model` (parameters by name), `tokenizer` (the text of
its Hugging Face files) and, while training, `optimizer`. The metadata holds the model's config and
the versions that wrote it: a checkpoint can be used without anything beside it. Where adapters are
trained, `model` holds them alone, and the metadata says where the base lies (`weights.adapter`).
"""

import dataclasses
import logging
import math
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from uner_jax.command import Progress
from uner_jax.model.adapters import split
from uner_jax.model.config import LlamaConfig, RopeScaling
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import flatten
from uner_jax.records import InputError
from uner_jax.template import Noun
from uner_jax.tokenizer import Tokenizer, load_tokenizer
from uner_jax.weights.directory import whole_directory
from uner_jax.weights.integrity import DamagedError, check_digests, check_seal, read_whole, sealed
from uner_jax.weights.json_object import read_object
from uner_jax.weights.stored import StoredArray, create_array
from uner_jax.weights.tensors import ModelTensors, Place, Tensors, check_sizes, places

FORMAT = "uner_jax/1"


def model_items(model: Llama, tokenizer: Tokenizer) -> dict[str, Any]:
    """The items that every checkpoint holds: of a model with adapters, those alone."""
    return {"model": flatten(split(model)[0]), "tokenizer": tokenizer_files(tokenizer)}


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    """The tokenizer's Hugging Face files, by name."""
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save(Path(directory))
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(directory).iterdir())}


def metadata_of(config: LlamaConfig, noun: Noun = "text") -> dict[str, Any]:
    """What a checkpoint says of itself; the noun is the prompt's word for the passage."""
    import flax
    import orbax.checkpoint

    versions = {"jax": jax.__version__, "flax": flax.__version__, "orbax": orbax.checkpoint.__version__}
    model_config = dataclasses.asdict(config)
    return {"format": FORMAT, "model_config": model_config, "template": {"noun": noun}, "versions": versions}


def write_checkpoint(model: Llama, tokenizer: Tokenizer, directory: Path) -> None:
    """`write_checkpoint_tensors` of a model in memory, in its dtype."""
    write_checkpoint_tensors(ModelTensors(model), tokenizer, directory)


def write_checkpoint_tensors(
    source: Tensors,
    tokenizer: Tokenizer,
    directory: Path,
    dtype: str | None = None,
    noun: Noun = "text",
    about: Mapping[str, Any] = MappingProxyType({}),
) -> int:
    """Write a checkpoint, one tensor at a time, and return the bytes of its parameters; `about` joins its metadata.

    `dtype` converts the parameters; None keeps theirs. The directory appears under its name when it is whole.
    Raises InputError if something is there already, or if there is no room.
    """
    to = np.dtype(dtype) if dtype else source.dtype
    total = sum(math.prod(place.shape) for place in places(source.config)) * to.itemsize
    with whole_directory(directory, total) as partial:
        digests = _write_arrays(source, to, total, partial / "arrays")
        source.check_read()
        metadata = metadata_of(source.config, noun) | dict(about)
        _write_frame(digests, to, tokenizer_files(tokenizer), metadata, partial / "whole")
        for name in digests:
            shutil.rmtree(partial / "whole" / "model" / name)
            (partial / "arrays" / name).rename(partial / "whole" / "model" / name)
        (partial / "arrays").rmdir()
        for path in (partial / "whole").iterdir():
            path.rename(partial / path.name)
        (partial / "whole").rmdir()
    return total


def _write_arrays(source: Tensors, dtype: np.dtype, total: int, item: Path) -> dict[str, int]:
    """Write every parameter, and return their digests."""
    digests: dict[str, int] = {}
    with Progress("writing weights", total, "B") as shown:
        for parameter, group in groupby(places(source.config), lambda place: place.parameter):
            layers = list(group)
            stacked = layers[0].layer is not None
            shape = (len(layers),) * stacked + layers[0].own_shape
            array = create_array(item, parameter, shape, dtype, stacked)
            for place in layers:
                _write_tensor(array, place, source.read(place.name))
                shown.advance(math.prod(place.shape) * dtype.itemsize)
            assert array.digest is not None  # all of its blocks are written
            digests[parameter] = array.digest
    return digests


def _write_tensor(array: StoredArray, place: Place, tensor: np.ndarray) -> None:
    ours = place.table.to_ours(tensor, place.own_shape)
    for block in array.blocks() if place.layer is None else array.blocks_of(place.layer):
        part = ours[block if place.layer is None else block[1:]]
        values = np.empty(part.shape, array.dtype)
        place.copy(part, values)
        array.write(block, values if place.layer is None else values[None])


def _write_frame(
    digests: dict[str, int], dtype: np.dtype, files: dict[str, str], metadata: dict[str, Any], directory: Path
) -> None:
    """Let Orbax write what stands around the arrays: their names, each with a single number, the rest whole."""
    quieten_orbax()
    items = {"model": {name: np.zeros(1, dtype) for name in digests}, "tokenizer": files}
    metadata = sealed(metadata, {"tokenizer": files}, {"model": digests})
    context = ocp.Context()
    context.array.saving.use_ocdbt = False
    with context:
        ocp.save_checkpointables(epath.Path(directory.absolute()), items, custom_metadata=metadata)


def quieten_orbax() -> None:
    """Keep Orbax from noting that a small item had nothing to merge, and what it dropped after a failed read."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine 'PyTreeHandler.* was never awaited", RuntimeWarning)


def checkpoint_directory(path: Path) -> Path | None:
    """The checkpoint that a path means: itself, or the newest of a training run; None if it is neither."""
    if (path / "_CHECKPOINT_METADATA").is_file():
        return path
    steps = [step for step in (path / "checkpoints").glob("*") if step.name.isdigit()]
    steps = [step for step in steps if (step / "_CHECKPOINT_METADATA").is_file()]
    return max(steps, key=lambda step: int(step.name), default=None)


def read_metadata(directory: Path) -> dict[str, Any]:
    """A checkpoint's metadata. Raises InputError if it was not written by this project, or is damaged."""
    about = directory / "_CHECKPOINT_METADATA"
    if about.is_file():  # a remote one is Orbax's to read
        read_object(about)
    try:
        found = ocp.checkpointables_metadata(epath.Path(directory.absolute())).custom_metadata
    except ValueError as error:  # Orbax's for a checkpoint without named items
        raise InputError(f"{directory}: an Orbax checkpoint, but not one of format {FORMAT!r}: {error}") from error
    except (TypeError, KeyError, AttributeError, RecursionError, OSError) as error:  # for a damaged one
        raise DamagedError(f"{directory}: damaged or incomplete: {error!r:.200}") from error
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
            if not isinstance(text, str) or Path(name).name != name:
                raise DamagedError(f"{directory}: damaged: {name!r:.60} is no file of a tokenizer")
            Path(temporary, name).write_text(text, encoding="utf-8")
        return load_tokenizer(temporary)


def read_items(directory: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Items of a checkpoint: arrays as the leaves wanted say, or, for None, as saved. DamagedError if one cannot be."""
    quieten_orbax()
    return read_whole(str(directory), lambda: ocp.load_checkpointables(epath.Path(directory.absolute()), wanted))


def config_of(metadata: dict[str, Any], where: str = "a checkpoint") -> LlamaConfig:
    """The model's config from a checkpoint's metadata; DamagedError if there is none in it."""
    try:
        fields = dict(metadata["model_config"])
        if fields["rope_scaling"] is not None:
            fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
        config = LlamaConfig(**fields)
        check_sizes(config, where)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise DamagedError(f"{where}: the model's config is not readable ({error!r:.200})") from error
    return config
