"""A tiny model on the disk, and an extractor that knows a few names, for the tests of corpus jobs."""

import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tiny_model import blank_model

from uner_jax.extraction.extractor import Extraction, Extractor
from uner_jax.model.config import LlamaConfig
from uner_jax.model.parameters import abstract_model
from uner_jax.records import read_rows
from uner_jax.weights.checkpoint import write_checkpoint

CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=256,
)
NAMES = {"person": r"Ada|Bob", "city": r"London|Paris"}


def write_tiny_model(tokenizer, directory: Path, seed: int = 0) -> Path:
    """A checkpoint of random weights."""
    random = np.random.default_rng(seed)
    model = jax.tree.map(lambda x: jnp.asarray(random.normal(0, 0.5, x.shape), jnp.float32), abstract_model(CONFIG))
    write_checkpoint(model, tokenizer, directory)
    return directory


class Knowing(Extractor):
    """An extractor whose answers are these names wherever they stand; it finishes the last text first."""

    def __init__(self, tokenizer):
        super().__init__(blank_model(CONFIG), tokenizer)
        self.asked: list[str] = []
        self.opened = 0

    def open(self) -> "Knowing":
        """Itself, as a job opens it."""
        self.opened += 1
        return self

    def stream(self, texts, labels) -> Iterator[tuple[int, Extraction]]:
        """What each text has, from the last to the first."""
        for place in reversed(range(len(texts))):
            self.asked.append(texts[place])
            yield place, known(texts[place], labels[place])


def known(text: str, labels: list[str]) -> Extraction:
    """The names in a text; each of its hundred characters counts as a window."""
    found = [
        {"start": match.start(), "end": match.end(), "text": match[0], "label": label, "score": 0.5}
        for label in dict.fromkeys(labels)
        for match in re.finditer(NAMES.get(label, "(?!)"), text)
    ]
    windows = 1 + len(text) // 100
    empty = sum(label not in NAMES for label in labels)
    return Extraction(
        found, windows, ungrounded=1, cut=2, questions=windows * len(labels), empty=empty, tokens=len(text)
    )


def records(output: Path) -> list[dict]:
    """The records of all parts of an output."""
    return [row for path in sorted(output.glob("part-*")) for _, row in read_rows(path)]


def files(output: Path) -> dict[str, bytes]:
    """All that a job wrote, but for the summary, which says how long it took."""
    return {path.name: path.read_bytes() for path in output.iterdir() if not path.name.startswith("summary-")}
