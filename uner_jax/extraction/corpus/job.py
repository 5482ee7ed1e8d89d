"""What a corpus job is: from what, with what, in which form; and how it is known again when it goes on."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from uner_jax.extraction.options import Options
from uner_jax.records import InputError

if TYPE_CHECKING:
    from uner_jax.extraction.extractor import Extractor

STDIN = Path("-")
# of a record; what is carried along may not have their names.
FIELDS = ("id", "text", "labels", "entities", "chunks", "error")
# Of a Hugging Face directory, what decides the answers: weights, configuration, tokenizer.
MODEL_SUFFIXES = (".safetensors", ".json", ".model")
SHOWN = 60  # characters of a changed setting

Format = Literal["jsonl", "parquet"]
Dtype = Literal["float32", "bfloat16", "int8"]


@dataclasses.dataclass(frozen=True)
class Settings(Options):
    """How a job's `Extractor` is made; each is an argument of `uner extract`, and part of the job's identity."""

    dtype: Dtype = "float32"
    """Dtype of the weights and the computation; int8: of the weights, computed in bfloat16."""
    batch_size: int = 32
    """Answers written at a time."""
    max_new_tokens: int = 256
    """The most tokens of an answer."""
    tensor: int = 1
    """On several devices: how many of them hold one model; each such group does its own share."""

    def extractor(self, model: str) -> "Extractor":
        """Load the model."""
        from uner_jax.extraction.extractor import Extractor

        return Extractor.from_pretrained(model, self.dtype, self.batch_size, self.max_new_tokens, self, self.tensor)


@dataclasses.dataclass(frozen=True)
class Job:
    """What is extracted from where; a directory of output belongs to one job.

    `inputs` may hold `STDIN`, alone. `carry` names fields of the input that stand in the output too.
    """

    model: str
    inputs: tuple[Path, ...]
    labels: tuple[str, ...]
    format: Format = "jsonl"
    shard: int = 0
    shards: int = 1
    text_field: str = "text"
    id_field: str = "id"
    carry: tuple[str, ...] = ()
    text_lines: bool = False
    max_characters: int = 2_000_000
    part_documents: int | None = None
    settings: Settings = Settings()

    def __post_init__(self):
        taken = [name for name in self.carry if name in FIELDS]
        if taken:
            raise InputError(f"--carry {taken[0]}: a record has a field of that name already")
        if self.max_characters < 1:
            raise InputError(f"--max-characters must be at least 1, found {self.max_characters}")
        if self.part_documents is not None and self.part_documents < 1:
            raise InputError(f"--part-documents must be at least 1, found {self.part_documents}")
        if STDIN in self.inputs and len(self.inputs) > 1:
            raise InputError("--input -: standard input is read alone; give it as one of the files")

    def decisions(self) -> dict[str, Any]:
        """All that decides what a document's record is, but for the contents of model and inputs."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        apart = {name: fields.pop(name) for name in ("model", "inputs", "shard", "shards", "settings")}
        # as they are read back: lists, no tuples.
        return json.loads(json.dumps(fields | dataclasses.asdict(apart["settings"])))

    def wanted_fields(self) -> tuple[str, ...]:
        """The fields of a record of the input that are looked at."""
        return (self.id_field, self.text_field, "labels", *self.carry)

    def name(self, kind: str) -> str:
        """The name of one of the shard's files, without what follows."""
        return f"{kind}-{self.shard:05d}-of-{self.shards:05d}"


@dataclasses.dataclass(frozen=True)
class Source:
    """A file of documents, and what it is called in messages and ids."""

    path: Path
    name: str


def identity(job: Job, model: str, sources: Iterable[Source]) -> dict[str, Any]:
    """What must be the same for an output to be continued; `model` is the digest of the model."""
    sources = list(sources)
    digests = digests_of(source.path for source in sources)
    inputs = [{"name": source.name, "sha256": digest} for source, digest in zip(sources, digests, strict=True)]
    return {"model": model, "inputs": inputs, **job.decisions()}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What is different, a phrase each."""
    return [
        f"{name} ({_shown(old.get(name), new.get(name))})"
        for name in old | new
        if old.get(name, ...) != new.get(name, ...)
    ]


def _shown(old: Any, new: Any) -> str:
    if isinstance(old, list) and isinstance(new, list) and old and isinstance(old[0], dict):
        return _shown_inputs(old, new)
    return f"{_short(old)}, now {_short(new)}"


def _shown_inputs(old: list[dict[str, str]], new: list[dict[str, str]]) -> str:
    before = {file["name"]: file["sha256"] for file in old}
    after = {file["name"]: file["sha256"] for file in new}
    phrases = [f"{name} is gone" for name in before if name not in after]
    phrases += [f"{name} is new" for name in after if name not in before]
    phrases += [f"{name} has changed" for name in after if before.get(name, after[name]) != after[name]]
    more = f" and {len(phrases) - 3} more" if len(phrases) > 3 else ""
    return ", ".join(phrases[:3]) + more or "in another order"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def model_digest(path: Path) -> str:
    """A digest of what `load_model` loads from the path: weights, configuration, tokenizer; of adapters, the base too.

    Two names of the same content have the same. Raises InputError if the path is no model.
    """
    from uner_jax.weights.load import load_config

    load_config(path)
    parts = list(_model_parts(path))
    files = [part for _, part in parts if isinstance(part, Path)]
    digests = dict(zip(files, digests_of(files), strict=True))
    known = [(name, digests[part] if isinstance(part, Path) else part) for name, part in parts]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _model_parts(path: Path) -> Iterator[tuple[str, Path | str]]:
    """Names, with files or with the digests that a checkpoint of ours has of its own content."""
    from uner_jax.weights.checkpoint import checkpoint_directory, read_metadata
    from uner_jax.weights.peft import is_peft, peft_base

    checkpoint = checkpoint_directory(path)
    if path.is_file():
        yield "", path
    elif checkpoint is None:
        files = sorted(file for file in path.iterdir() if file.suffix in MODEL_SUFFIXES and file.is_file())
        yield from ((file.name, file) for file in files)
        if is_peft(path):
            yield from _model_parts(Path(peft_base(path)))
    else:
        metadata = read_metadata(checkpoint)
        adapter = metadata.get("adapter")
        told = {name: metadata[name] for name in ("digests", "model_config") if name in metadata}
        yield "", json.dumps([told, adapter and adapter["config"]], sort_keys=True)
        if "digests" not in metadata:
            files = sorted(file for file in checkpoint.rglob("*") if file.is_file())
            yield from ((str(file.relative_to(checkpoint)), file) for file in files)
        if adapter:
            yield from _model_parts(Path(adapter["base"]))


def digests_of(paths: Iterable[Path]) -> list[str]:
    """The SHA-256 of each file. Raises InputError if one is missing."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_digest, paths))


def _digest(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
