"""Conversion of weights from one form into another, a tensor at a time: the host holds the largest tensor once.

Adapters that are merged are the exception: their base is loaded whole.
"""

import time
from pathlib import Path
from typing import Literal

from uner_jax.records import InputError
from uner_jax.weights.card import Card
from uner_jax.weights.checkpoint import write_checkpoint_tensors
from uner_jax.weights.gguf_writer import GGUFDtype, write_gguf
from uner_jax.weights.hf import write_hf_tensors
from uner_jax.weights.load import load_model, load_model_tokenizer, open_tensors, read_adapter
from uner_jax.weights.origin import read_origin
from uner_jax.weights.peft import write_peft
from uner_jax.weights.tensors import ModelTensors, Tensors, check_tensors


def convert_from_hf(source: Path, destination: Path, dtype: str | None = None) -> str:
    """Write a checkpoint of ours of any model, and return a line of what was done.

    Raises InputError if the source is no whole model, or if the destination is there or has no room.
    """
    tensors, tokenizer, origin = _open_merged(source), load_model_tokenizer(source), read_origin(source)
    about = {"origin": {"source": origin.source, "license": origin.license}}
    started = time.perf_counter()
    size = write_checkpoint_tensors(tensors, tokenizer, destination, dtype, origin.noun, about)
    return f"{destination}: checkpoint of {source}, {_speed(size, started)}"


def convert_to_hf(
    source: Path,
    destination: Path,
    dtype: str | None = None,
    adapter: Literal["merge", "keep"] = "merge",
    card: Card = Card(),  # noqa: B008 (it is frozen)
) -> str:
    """Write a directory that transformers or PEFT loads of any model, and return a line of what was done.

    Raises InputError as `convert_from_hf` does, and if adapters are to be kept where there are none.
    """
    if adapter == "keep":
        kept = read_adapter(source)
        if kept is None:
            raise InputError(f"{source}: has no adapters to keep; leave out --adapter keep")
        write_peft(kept, load_model_tokenizer(source), destination, dtype, read_origin(source), card)
        return f"{destination}: PEFT adapter of {source}, for the base {kept.base}"
    tensors, tokenizer, origin = _open_merged(source), load_model_tokenizer(source), read_origin(source)
    started = time.perf_counter()
    size = write_hf_tensors(tensors, tokenizer, destination, dtype, origin, card)
    return f"{destination}: Hugging Face directory of {source}, {_speed(size, started)}"


def convert_to_gguf(source: Path, destination: Path, dtype: GGUFDtype = "bfloat16") -> str:
    """Write a GGUF file of any model, and return a line of what was done. Raises InputError as `write_gguf` does."""
    tensors, tokenizer, origin = _open_merged(source), load_model_tokenizer(source), read_origin(source)
    started = time.perf_counter()
    size = write_gguf(tensors, tokenizer, destination, dtype, origin)
    return f"{destination}: GGUF file of {source}, {_speed(size, started)}"


def _open_merged(source: Path) -> Tensors:
    tensors = open_tensors(source) if read_adapter(source) is None else ModelTensors(load_model(source, None))
    check_tensors(tensors)
    return tensors


def _speed(size: int, started: float) -> str:
    return f"{size / 1e9:,.2f} GB of weights at {size / 1e9 / (time.perf_counter() - started):.2f} GB/s"
