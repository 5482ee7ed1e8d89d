"""What a benchmark run is asked to do: each field is an argument of `uner evaluate`."""

import dataclasses
from pathlib import Path
from typing import Literal

from uner_jax.records import named_path
from uner_jax.template import Noun

Template = Literal["zero-shot", "dataset"]


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A file of questions and the name that it goes by; `NAME=PATH` on a command line, or a path of that stem."""

    name: str
    path: Path

    @classmethod
    def parse(cls, text: str) -> "DataSet":
        """Of `NAME=PATH`, or of a path alone."""
        name, path = named_path(text)
        # the bytes of a file's name need be no text.
        return cls(name.encode("utf-8", "replace").decode(), path)


@dataclasses.dataclass(frozen=True)
class Asking:
    """How a benchmark is asked."""

    passages: int | None = None
    """Only the first passages of each data set."""
    types: Path | None = None
    """Of token-per-line files: a table from label to natural words, JSON or TOML; without it the shipped one."""
    template: Template = "zero-shot"
    """Of token-per-line files: "dataset" names the data set in the first turn, as in supervised tuning."""
    with_else: bool = False
    """Of token-per-line files: ask for the entities of the type MISC too, as "else"."""


@dataclasses.dataclass(frozen=True)
class Answering:
    """How the model answers."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation."""
    batch_size: int = 32
    """Answers written at a time."""
    max_new_tokens: int = 256
    """The most tokens of an answer (the paper's limit is 256)."""
    noun: Noun | None = None
    """What the prompt calls the passage, unless as the model's training recorded it, or else "text"; models of the
    released trainer were tuned on "paragraph"."""
