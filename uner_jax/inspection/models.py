"""The facts of models: architecture, parameters, tokenizer, prompt, adapters, versions and what guards them."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from uner_jax.records import InputError
from uner_jax.tokenizer import Tokenizer
from uner_jax.weights.checkpoint import read_metadata
from uner_jax.weights.checkpoint_tensors import CheckpointTensors
from uner_jax.weights.gguf import GGUFTensors
from uner_jax.weights.hf import HFTensors
from uner_jax.weights.json_object import read_object
from uner_jax.weights.load import load_model_tokenizer
from uner_jax.weights.origin import read_origin, read_template
from uner_jax.weights.peft import CONFIG_NAME, WEIGHTS_NAME
from uner_jax.weights.tensor_file import TensorFile
from uner_jax.weights.tensors import check_tensors

Facts = dict[str, Any]


def hf_facts(path: Path) -> Facts:
    """A Hugging Face directory. What does not load here is told under "problem", as in all that follows."""

    def weights() -> Facts:
        tensors = HFTensors(path)
        check_tensors(tensors)
        entries = {name: tensors.entry(name) for name in tensors.names()}
        return {
            "architecture": dataclasses.asdict(tensors.config),
            "parameters": _parameters((entry.dtype, entry.shape) for entry in entries.values()),
        }

    fields = read_object(path / "config.json")
    about = {"model_type": fields.get("model_type"), "written_by": f"transformers {fields.get('transformers_version')}"}
    return {"kind": "Hugging Face directory", **about, **_tried(weights), **_words(path)} | {
        "integrity": "no checksums in this format"
    }


def gguf_facts(path: Path) -> Facts:
    """A GGUF file."""

    def weights() -> Facts:
        tensors = GGUFTensors(path)
        check_tensors(tensors)
        return {"architecture": dataclasses.asdict(tensors.config), "parameters": tensors.parameters()}

    return {"kind": "GGUF file", **_tried(weights), **_words(path), "integrity": "no checksums in this format"}


def checkpoint_facts(path: Path) -> Facts:
    """A checkpoint of ours; its digests are counted, and checked when it is loaded."""

    def weights() -> Facts:
        metadata, tensors = read_metadata(path), CheckpointTensors(path)
        digests = metadata.get("digests", {})
        return {
            "step": metadata.get("step"),
            "architecture": dataclasses.asdict(tensors.config),
            "parameters": _parameters(tensors.saved()),
            "adapter": _adapter(metadata["adapter"]) if "adapter" in metadata else None,
            "versions": metadata.get("versions"),
            "integrity": {
                "metadata": "sealed, and whole" if "seal" in metadata else "not sealed",
                "digests": {item: len(found) for item, found in digests.items()},
            },
        }

    return {"kind": "checkpoint of uner_jax", **_tried(weights), **_words(path)}


def peft_facts(path: Path) -> Facts:
    """An adapter in PEFT's form."""

    def weights() -> Facts:
        fields = read_object(path / CONFIG_NAME)
        entries = TensorFile(path / WEIGHTS_NAME).entries.values()
        names = {"rank": "r", "alpha": "lora_alpha", "targets": "target_modules", "base": "base_model_name_or_path"}
        return {
            "adapter": {name: fields.get(field) for name, field in names.items()},
            "parameters": _parameters((entry.dtype, entry.shape) for entry in entries),
        }

    return {"kind": "PEFT adapter", **_tried(weights), **_words(path)}


def run_facts(path: Path, checkpoint: Path | None) -> Facts:
    """A training run: its recipe, and its newest checkpoint."""
    recipe = read_object(path / "config.json")
    steps = sorted(int(step.name) for step in (path / "checkpoints").glob("*") if step.name.isdigit())
    facts: Facts = {"kind": "training run", "checkpoints": steps}
    if checkpoint is not None:
        facts["newest"] = checkpoint_facts(checkpoint)
        facts |= {"problem": facts["newest"].pop("problem")} if "problem" in facts["newest"] else {}
    return (
        facts
        | {"recipe": {name: value for name, value in recipe.items() if name != "versions"}}
        | {"versions": recipe.get("versions")}
    )


def tokenizer_facts(tokenizer: Tokenizer) -> Facts:
    """A tokenizer's kind, size and special ids."""
    backend = tokenizer.backend
    kind = "byte-level BPE" if "ByteLevel" in repr(backend.decoder) else "SentencePiece BPE"
    return {
        "kind": kind,
        "vocabulary": tokenizer.vocab_size,
        **{name: {"id": id, "token": backend.id_to_token(id) if id is not None else None}
           for name, id in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id), ("pad", tokenizer.pad_id))},
        "begins_with_bos": tokenizer.adds_bos,
        "fingerprint": tokenizer.fingerprint,
    }  # fmt: skip


def _tried(facts: Callable[[], Facts]) -> Facts:
    try:
        return {name: value for name, value in facts().items() if value is not None}
    except InputError as error:
        return {"problem": str(error)}


def _words(path: Path) -> Facts:
    """The tokenizer, and the words of the prompt."""
    facts = _tried(lambda: {"tokenizer": tokenizer_facts(load_model_tokenizer(path))})
    if "problem" in facts:
        facts = {"tokenizer": {"problem": facts["problem"]}}
    origin = _tried(lambda: {"origin": read_origin(path)}).get("origin")
    if origin is not None:
        facts["template"] = {"noun": origin.noun, "chat_template": read_template(path) is not None}
    return facts


def _adapter(metadata: dict[str, Any]) -> Facts:
    config = metadata.get("config", {})
    return {name: config.get(name) for name in ("rank", "alpha", "targets")} | {"base": metadata.get("base")}


def _parameters(tensors: Any) -> Facts:
    """Count, bytes and dtypes of (dtype, shape) each."""
    counts: Counter[str] = Counter()
    size = 0
    for dtype, shape in tensors:
        counts[np.dtype(dtype).name] += int(np.prod(shape, dtype=np.int64))
        size += int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return {"count": sum(counts.values()), "bytes": size, "dtypes": dict(counts)}
