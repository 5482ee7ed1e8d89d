"""What is known of where weights come from: a run's recipe, its base, their licence, the prompt's words."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from uner_jax.gguf_file import read_gguf_head
from uner_jax.records import InputError
from uner_jax.template import Noun
from uner_jax.weights.chat import TEMPLATE_NAME, noun_of
from uner_jax.weights.checkpoint import checkpoint_directory, read_metadata
from uner_jax.weights.json_object import read_object

CARD_NAME = "README.md"
LICENSE = re.compile(r"^license:\s*[\"']?([\w.+-]+)", re.MULTILINE)
# a card is read up to here: its first lines say what is asked for.
CARD_BYTES = 2**16


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where weights come from, as far as it is recorded; what is empty or None is not."""

    source: str = ""
    noun: Noun = "text"
    """What the prompt calls the passage."""
    recipe: dict[str, Any] | None = None
    """config.json of the training run."""
    step: int | None = None
    """How many steps it was trained."""
    base: str = ""
    """What the run began from, as its recipe names it."""
    license: str = ""
    """The licence that the model card of the base states."""


UNKNOWN = Origin()


def read_origin(path: Path) -> Origin:
    """What the path tells of itself: a run, a checkpoint, a Hugging Face directory, or a GGUF file.

    Raises InputError where a checkpoint, a run's config.json or a file is damaged.
    """
    checkpoint = checkpoint_directory(path)
    if checkpoint is None:
        return Origin(str(path), noun_of(read_template(path) or ""), license=_license(path))
    metadata = read_metadata(checkpoint)
    noun = metadata.get("template", {}).get("noun", "text")
    recorded = metadata.get("origin", {})
    recipe = _recipe(checkpoint)
    base = (recipe or {}).get("model", {}).get("source", "") or metadata.get("adapter", {}).get("base", "")
    return Origin(
        str(path),
        noun,
        recipe,
        metadata.get("step"),
        base or recorded.get("source", ""),
        _license_of_base(base) if base else recorded.get("license", ""),
    )


def _recipe(checkpoint: Path) -> dict[str, Any] | None:
    """config.json of the run that the checkpoint is of."""
    path = checkpoint.absolute().parent.parent / "config.json"
    if checkpoint.absolute().parent.name != "checkpoints" or not path.is_file():
        return None
    return read_object(path)


def _license_of_base(base: str) -> str:
    try:
        return read_origin(Path(base)).license if Path(base).exists() else ""
    except InputError:  # of a base that nothing else is read of here
        return ""


def read_template(path: Path) -> str | None:
    """The chat template of a Hugging Face directory or a GGUF file; None if it has none."""
    if path.is_file():
        return _gguf_text(path, "tokenizer.chat_template") or None
    template = path / TEMPLATE_NAME
    return template.read_text(encoding="utf-8", errors="replace") if template.is_file() else None


def _gguf_text(path: Path, field: str) -> str:
    text = read_gguf_head(path).fields.get(field)
    return text if isinstance(text, str) else ""


def _license(path: Path) -> str:
    """The licence in the front matter of the directory's model card, or in the GGUF file."""
    if path.is_file():
        return _gguf_text(path, "general.license")
    card = path / CARD_NAME
    if not card.is_file():
        return ""
    with card.open(encoding="utf-8", errors="replace") as file:
        _, begin, rest = file.read(CARD_BYTES).partition("---\n")
    found = LICENSE.search(rest.partition("\n---")[0]) if begin else None
    return found[1] if found else ""
