"""Hugging Face directories: `config.json` and safetensors, in and out."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from uner_jax.command import Progress
from uner_jax.model.config import LlamaConfig
from uner_jax.model.llama import Llama
from uner_jax.records import InputError, write_json
from uner_jax.tokenizer import Tokenizer
from uner_jax.weights.card import Card, write_card
from uner_jax.weights.chat import write_prompt
from uner_jax.weights.directory import whole_directory
from uner_jax.weights.hf_config import config_from_hf, config_to_hf
from uner_jax.weights.json_object import read_object
from uner_jax.weights.origin import UNKNOWN, Origin
from uner_jax.weights.tensor_file import Entry, TensorFile, write_tensor_file
from uner_jax.weights.tensors import ModelTensors, Place, Tensors, check_sizes, places

SHARD_BYTES = 4 * 2**30
INDEX_NAME = "model.safetensors.index.json"
# buffers that old checkpoints carry, and that are computed from the config.
BUFFERS = ("rotary_emb.inv_freq",)
MAX_NEW_TOKENS = 256


class HFTensors:
    """The tensors of a Hugging Face directory, read one at a time.

    Raises InputError if a file is missing, damaged, or outside of the directory by its name (a link is followed: the
    cache of huggingface_hub is made of them), or if a tensor stands in two files.
    """

    def __init__(self, directory: Path):
        self.where = str(directory)
        where = str(directory / "config.json")
        self.config: LlamaConfig = config_from_hf(read_object(directory / "config.json"), where)
        check_sizes(self.config, where)
        self._files: dict[str, TensorFile] = {}
        for path, listed in _shards(directory).items():
            file = TensorFile(path)
            names = {name for name in file.entries if not name.endswith(BUFFERS)}
            _check_listed(path, names, listed, self._files)
            self._files |= dict.fromkeys(names, file)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the last norm, in which all that matters is kept."""
        return self.entry("model.norm.weight").dtype

    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return self.entry(name).shape

    def read(self, name: str) -> np.ndarray:
        """One tensor in its own dtype (bfloat16 as ml_dtypes')."""
        return self._files[name].read(name)

    def check_read(self) -> None:
        """The format has no checksums."""

    def entry(self, name: str) -> Entry:
        """What the header says of one tensor."""
        if name not in self._files:
            raise InputError(f"{self.where}: lacks 1 tensor(s): {name}; the config does not fit the weights")
        return self._files[name].entries[name]


def _shards(directory: Path) -> dict[Path, set[str]]:
    """The files of the weights, and the tensors that the index says are in each: all, where there is no index."""
    index = directory / INDEX_NAME
    if index.is_file():
        files = read_object(index).get("weight_map")
        if not isinstance(files, dict) or not files:
            raise InputError(f"{index}: has no weight_map")
        listed: dict[Path, set[str]] = {}
        for name, file in files.items():
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise InputError(f"{index}: {name!r:.60} is in {file!r:.60}, no safetensors file here")
            listed.setdefault(directory / file, set()).add(name)
        return dict(sorted(listed.items()))
    if (directory / "model.safetensors").is_file():
        return {directory / "model.safetensors": set()}
    if any(directory.glob("*.bin")):
        raise InputError(
            f"{directory}: has pickled .bin weights only, which can run code; save them as safetensors first"
        )
    raise InputError(f"{directory}: has neither model.safetensors nor model.safetensors.index.json")


def _check_listed(path: Path, names: set[str], listed: set[str], elsewhere: dict[str, TensorFile]) -> None:
    lacking = sorted(name for name in listed - names if not name.endswith(BUFFERS))
    if lacking:
        raise InputError(f"{path}: lacks {lacking[0]!r:.80}, which {INDEX_NAME} says is there")
    twice = sorted(names & elsewhere.keys())
    if twice:
        raise InputError(f"{path}: has {twice[0]!r:.80} again, which {elsewhere[twice[0]].path} has too")


def write_hf(
    model: Llama,
    tokenizer: Tokenizer,
    directory: Path,
    dtype: str | None = None,
    origin: Origin = UNKNOWN,
    card: Card = Card(),  # noqa: B008 (it is frozen)
) -> None:
    """`write_hf_tensors` of a model in memory."""
    write_hf_tensors(ModelTensors(model), tokenizer, directory, dtype, origin, card)


def write_hf_tensors(
    source: Tensors,
    tokenizer: Tokenizer,
    directory: Path,
    dtype: str | None = None,
    origin: Origin = UNKNOWN,
    card: Card = Card(),  # noqa: B008 (it is frozen)
) -> int:
    """Write a directory that transformers loads, and return the bytes of its weights: weights in shards, config,
    generation config, tokenizer with the prompt as its chat template, and a model card.

    `dtype` converts the weights, held one tensor at a time; None keeps theirs. The directory appears under its name
    when it is whole. Raises InputError if it exists and is not empty, or has no room.
    """
    to = np.dtype(dtype) if dtype else source.dtype
    shards = list(_planned(source.config, to))
    total = sum(_size(place, to) for shard in shards for place in shard)
    with whole_directory(directory, total) as partial:
        _write_shards(source, shards, total, to, partial)
        source.check_read()
        write_card(partial, card, origin, write_prompt(partial, tokenizer, origin.noun))
        _write_configs(source.config, tokenizer, partial, to.name)
    return total


def _write_configs(config: LlamaConfig, tokenizer: Tokenizer, directory: Path, dtype: str) -> None:
    from transformers import AutoConfig, GenerationConfig  # a slow import

    special: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    AutoConfig.for_model(**config_to_hf(config), **special, dtype=dtype).save_pretrained(directory)
    GenerationConfig(**special, do_sample=False, max_new_tokens=MAX_NEW_TOKENS).save_pretrained(directory)


def _size(place: Place, dtype: np.dtype) -> int:
    return math.prod(place.shape) * dtype.itemsize


def _planned(config: LlamaConfig, dtype: np.dtype) -> Iterator[list[Place]]:
    """The tensors of each shard."""
    shard: list[Place] = []
    size = 0
    for place in places(config):
        if shard and size + _size(place, dtype) > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(place)
        size += _size(place, dtype)
    yield shard


def _write_shards(source: Tensors, shards: list[list[Place]], total: int, dtype: np.dtype, directory: Path) -> None:
    weight_map: dict[str, str] = {}
    with Progress("writing weights", total, "B") as shown:

        def read(place: Place) -> np.ndarray:
            shown.advance(_size(place, dtype))
            return source.read(place.name)

        for number, shard in enumerate(shards, 1):
            file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            shapes = {place.name: place.shape for place in shard}
            write_tensor_file(directory / file, shapes, dtype, map(read, shard))
            weight_map |= dict.fromkeys(shapes, file)
    if len(shards) > 1:
        write_json(directory / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})
