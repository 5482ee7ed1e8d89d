"""One `load_model` for whatever a path is: a Hugging Face or PEFT directory, a GGUF file, a checkpoint of ours."""

import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from uner_jax.model.config import LlamaConfig
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import abstract_model, flatten, tree_shardings, unflatten
from uner_jax.records import InputError
from uner_jax.tokenizer import Tokenizer, load_tokenizer
from uner_jax.weights.adapter import Adapter, read_checkpoint_adapter
from uner_jax.weights.checkpoint import checkpoint_directory, read_tokenizer
from uner_jax.weights.checkpoint_tensors import CheckpointTensors
from uner_jax.weights.gguf import GGUFTensors
from uner_jax.weights.hf import HFTensors
from uner_jax.weights.names import TENSOR_NAMES
from uner_jax.weights.peft import is_peft, peft_base, read_peft
from uner_jax.weights.tensors import Tensors, check_tensors


def load_model(
    path: str | os.PathLike,
    dtype: str | jnp.dtype | type | None = jnp.float32,
    mesh: Mesh | None = None,
) -> Llama:
    """Load a model; parameters and computation are in `dtype`, None keeps the dtype of the file.

    With a mesh every parameter is placed as `mesh.ShardingRules` says, read a parameter at a time.
    Adapters (a PEFT directory, a run that trained them) come merged into their base.
    Raises InputError if the path is no model, or has a tensor missing, unknown or of a wrong shape.
    """
    adapter = read_adapter(path)
    if adapter is not None:
        base = load_model(adapter.base, None, mesh)
        return adapter.merged_into(base, base.compute_dtype if dtype is None else jnp.dtype(dtype), mesh)
    source = open_tensors(Path(path))
    model = abstract_model(source.config)
    dtype = jnp.dtype(source.dtype if dtype is None else dtype)
    shardings = flatten(tree_shardings(model, mesh)) if mesh else {}
    on_one = SingleDeviceSharding(jax.local_devices()[0])
    abstract = {
        name: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=shardings.get(name, on_one))
        for name, leaf in flatten(model).items()
    }
    if isinstance(source, CheckpointTensors):
        leaves = source.read_all(abstract)
    else:
        check_tensors(source)
        leaves = {name: _read_parameter(source, name, leaf) for name, leaf in abstract.items()}
    model = unflatten(model, leaves)
    model.compute_dtype = dtype
    return model


def load_config(path: str | os.PathLike) -> LlamaConfig:
    """The architecture of what `load_model` loads, without reading its weights."""
    if is_peft(Path(path)):
        return load_config(peft_base(Path(path)))
    return open_tensors(Path(path)).config


def load_model_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """The tokenizer that belongs to what `load_model` loads."""
    path = Path(path)
    directory = checkpoint_directory(path)
    if directory:
        return read_tokenizer(directory)
    # PEFT itself saves none beside the adapter.
    if is_peft(path) and not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return load_model_tokenizer(peft_base(path))
    return load_tokenizer(path)


def read_adapter(path: str | os.PathLike) -> Adapter | None:
    """The adapters of a PEFT directory, or of a checkpoint or run that trained them; None for any other path."""
    if is_peft(Path(path)):
        return read_peft(Path(path))
    directory = checkpoint_directory(Path(path))
    return read_checkpoint_adapter(directory) if directory else None


def open_tensors(path: Path) -> HFTensors | GGUFTensors | CheckpointTensors:
    """The tensors of a model, none of them read yet. Raises InputError if the path is no model."""
    if not path.exists():
        raise InputError(f"{path}: no such file or directory")
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(f"{path}: a model is a directory or a .gguf file")
        return GGUFTensors(path)
    directory = checkpoint_directory(path)
    if directory is not None:
        return CheckpointTensors(directory)
    if not (path / "config.json").is_file():
        raise InputError(
            f"{path}: no model here: neither config.json (Hugging Face) nor a checkpoint of ours; "
            "a training run writes its first one after checkpoint.every steps"
        )
    return HFTensors(path)


def _read_parameter(source: Tensors, name: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    theirs = TENSOR_NAMES[name]
    shape = leaf.shape[1:] if theirs.per_layer else leaf.shape

    def tensor(layer: int) -> np.ndarray:
        return theirs.to_ours(source.read(theirs.name.format(layer=layer)), shape)

    def part(index: Any) -> np.ndarray:
        if not theirs.per_layer:
            return np.asarray(tensor(0)[index], leaf.dtype)
        layers = range(leaf.shape[0])[index[0]]
        # the first is read before room is made for all: its shape is what the config says, or there is none.
        first = tensor(layers[0])[index[1:]]
        stacked = np.empty((len(layers), *first.shape), leaf.dtype)
        stacked[0] = first
        del first
        for place, layer in enumerate(layers[1:], 1):
            stacked[place] = tensor(layer)[index[1:]]
        return stacked

    return _placed(leaf, part)


def _placed(leaf: jax.ShapeDtypeStruct, part: Callable[[Any], np.ndarray]) -> jax.Array:
    """The array made of its parts, of which the host holds one at a time."""
    by_index: dict[str, list[tuple[jax.Device, Any]]] = defaultdict(list)
    for device, index in leaf.sharding.addressable_devices_indices_map(leaf.shape).items():
        by_index[str(index)].append((device, index))
    shards = []
    for copies in by_index.values():
        values = part(copies[0][1])
        shards += [jax.block_until_ready(jax.device_put(values, device)) for device, _ in copies]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)
