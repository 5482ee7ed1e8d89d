"""What a path is, as facts for programs and as lines for people."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from uner_jax.inspection.models import (
    Facts,
    checkpoint_facts,
    gguf_facts,
    hf_facts,
    peft_facts,
    run_facts,
    tokenizer_facts,
)
from uner_jax.records import InputError, content_suffix, open_parquet, read_rows
from uner_jax.tokenizer import load_tokenizer
from uner_jax.weights.checkpoint import checkpoint_directory
from uner_jax.weights.json_object import read_object
from uner_jax.weights.peft import is_peft

# fields of a record that tell its kind, the first that are all there.
KINDS = {
    "conversations": {"conversations"},
    "extraction": {"text", "labels", "entities"},
    "labels": {"text", "entities"},
    "passages": {"text"},
}
ROWS = ".jsonl", ".json", ".parquet"
LARGEST_ARRAY = 2**26  # a JSON array is read whole for its first row


def inspect(path: Path) -> Facts:
    """The facts of a path, `kind` first, read from headers; `problem` says why it cannot be used.

    Raises InputError if nothing is there.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or directory")
    return {"path": str(path)} | (_of_directory(path) if path.is_dir() else _of_file(path))


def _of_directory(path: Path) -> Facts:
    checkpoint = checkpoint_directory(path)
    if checkpoint == path:
        return checkpoint_facts(path)
    is_run = (path / "config.json").is_file() and (checkpoint is not None or (path / "metrics.jsonl").is_file())
    if is_run:
        return run_facts(path, checkpoint)
    if checkpoint is not None:
        return checkpoint_facts(checkpoint)
    if is_peft(path):
        return peft_facts(path)
    if (path / "config.json").is_file():
        return hf_facts(path)
    if (path / "dataset_info.json").is_file():
        return _dataset_facts(path)
    if any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return {"kind": "tokenizer", "tokenizer": tokenizer_facts(load_tokenizer(path))}
    if path.name.endswith(".partial"):
        return {"kind": "conversion that did not end", "problem": f"{path}: not whole; convert again"}
    inside = sorted(entry.name for entry in islice(path.iterdir(), 1000))
    return {"kind": "other directory", "holds": inside[:10], "entries": len(inside)}


def _of_file(path: Path) -> Facts:
    if path.suffix == ".gguf":
        return gguf_facts(path)
    if path.suffix == ".model" or path.name == "tokenizer.json":
        return {"kind": "tokenizer", "tokenizer": tokenizer_facts(load_tokenizer(path))}
    size = {"bytes": path.stat().st_size}
    if content_suffix(path) not in ROWS or (content_suffix(path) == ".json" and size["bytes"] > LARGEST_ARRAY):
        return {"kind": "other file", **size}
    try:
        _, row = next(read_rows(path), ("", None))
    except InputError as error:
        return {"kind": "other file", **size, "problem": str(error)}
    fields = set(row) if isinstance(row, dict) else set()
    kind = next((kind for kind, needed in KINDS.items() if needed <= fields), None)
    facts: Facts = {"kind": f"file of {kind}" if kind else "other file of rows", **size, "fields": sorted(fields)}
    if content_suffix(path) == ".parquet":
        facts["rows"] = open_parquet(path).metadata.num_rows
    return facts


def _dataset_facts(path: Path) -> Facts:
    info = read_object(path / "dataset_info.json")
    splits = {
        split.get("name"): {
            "conversations": sum(map(int, split.get("shardLengths", []))),
            "files": len(split.get("shardLengths", [])),
            "bytes": int(split.get("numBytes", 0)),
        }
        for split in info.get("splits", [])
    }
    facts: Facts = {"kind": "TFRecords", "name": info.get("name"), "version": info.get("version"), "splits": splits}
    if (path / "metadata.json").is_file():
        facts["built_with"] = read_object(path / "metadata.json")
    if (path / "tokenizer").is_dir():
        facts["tokenizer"] = tokenizer_facts(load_tokenizer(path / "tokenizer"))
    return facts


def lines(facts: Facts) -> Iterator[str]:
    """The facts for people, a line each, with what belongs together indented under its name."""
    flat = list(_flat(facts, 0))
    width = max(len(name) for name, _ in flat) + 2
    for name, value in flat:
        yield f"{name:{width}}{value}".rstrip()


def _flat(facts: Facts, depth: int) -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield f"{'  ' * depth}{name}", ""
            yield from _flat(value, depth + 1)
        else:
            yield f"{'  ' * depth}{name}", _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
