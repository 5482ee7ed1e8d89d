"""Hugging Face directories: `config.json` and safetensors, in and out."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from uner_jax.model.config import LlamaConfig
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import flatten
from uner_jax.records import InputError, write_json
from uner_jax.tokenizer import Tokenizer
from uner_jax.weights.checkpoint import make_way
from uner_jax.weights.hf_config import config_from_hf, config_to_hf
from uner_jax.weights.names import TENSOR_NAMES

SHARD_BYTES = 4 * 2**30
# buffers that old checkpoints carry, and that are computed from the config.
BUFFERS = ("rotary_emb.inv_freq",)
MAX_NEW_TOKENS = 256


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; InputError if the file is missing or holds anything else."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


class HFTensors:
    """The tensors of a Hugging Face directory, read one at a time."""

    def __init__(self, directory: Path):
        self.where = str(directory)
        self.config: LlamaConfig = config_from_hf(
            read_object(directory / "config.json"), str(directory / "config.json")
        )
        self._files: dict[str, Any] = {}
        for path in _shards(directory):
            file = open_safetensors(path)
            self._files |= {name: file for name in file.keys() if not name.endswith(BUFFERS)}  # noqa: SIM118

    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._files)

    def read(self, name: str) -> np.ndarray:
        """One tensor in its own dtype (bfloat16 as ml_dtypes')."""
        return self._files[name].get_tensor(name)


def _shards(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        files = read_object(index).get("weight_map")
        if not isinstance(files, dict):
            raise InputError(f"{index}: has no weight_map")
        return [directory / name for name in sorted(set(files.values()))]
    if (directory / "model.safetensors").is_file():
        return [directory / "model.safetensors"]
    if any(directory.glob("*.bin")):
        raise InputError(
            f"{directory}: has pickled .bin weights only, which can run code; save them as safetensors first"
        )
    raise InputError(f"{directory}: has neither model.safetensors nor model.safetensors.index.json")


def open_safetensors(path: Path) -> Any:
    """An open safetensors file; InputError if it is not readable as one."""
    try:
        return safe_open(path, "np")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not readable as safetensors: {error}") from error


def write_hf(model: Llama, tokenizer: Tokenizer, directory: Path, dtype: str | None = None) -> None:
    """Write a directory that transformers loads: weights in shards, config, generation config, tokenizer.

    `dtype` converts the weights; None keeps theirs. The directory appears under its name when it is
    whole. Raises InputError if it exists and is not empty.
    """
    make_way(directory)
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    dtype = dtype or str(model.embedding[...].dtype)
    _write_configs(model.config, tokenizer, partial, dtype)
    _write_shards(_tensors(model, dtype), partial)
    tokenizer.save(partial)
    partial.rename(directory)


def _write_configs(config: LlamaConfig, tokenizer: Tokenizer, directory: Path, dtype: str) -> None:
    from transformers import AutoConfig, GenerationConfig  # a slow import

    special: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    AutoConfig.for_model(**config_to_hf(config), **special, dtype=dtype).save_pretrained(directory)
    GenerationConfig(**special, do_sample=False, max_new_tokens=MAX_NEW_TOKENS).save_pretrained(directory)


def _tensors(model: Llama, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor under its Hugging Face name and in its layout, one layer after another."""
    for name, parameter in flatten(model).items():
        theirs = TENSOR_NAMES[name]
        if not theirs.per_layer:
            yield theirs.name, theirs.to_theirs(np.asarray(parameter.astype(jnp.dtype(dtype))))
            continue
        for layer in range(model.config.num_hidden_layers):
            tensor = np.asarray(parameter[layer].astype(jnp.dtype(dtype)))
            yield theirs.name.format(layer=layer), theirs.to_theirs(tensor)


def _write_shards(tensors: Iterator[tuple[str, np.ndarray]], directory: Path) -> None:
    shards: list[list[str]] = []
    held: dict[str, np.ndarray] = {}
    total = 0

    def flush() -> None:
        save_file(held, directory / f"shard-{len(shards)}.safetensors", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, tensor in tensors:
        if held and sum(x.nbytes for x in held.values()) + tensor.nbytes > SHARD_BYTES:
            flush()
        held[name] = tensor
        total += tensor.nbytes
    flush()
    if len(shards) == 1:
        (directory / "shard-0.safetensors").rename(directory / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"shard-{number}.safetensors").rename(directory / file)
        weight_map |= dict.fromkeys(names, file)
    write_json(
        directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )
