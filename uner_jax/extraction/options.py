"""What is asked of a model, and what becomes of its answers."""

import dataclasses
from typing import Literal

from uner_jax.records import InputError
from uner_jax.template import Noun, question_turn

Grounding = Literal["substring", "json", "none"]
Occurrences = Literal["all", "first"]


@dataclasses.dataclass(frozen=True)
class Options:
    """How an `Extractor` asks and reads; the same for all texts."""

    grounding: Grounding = "substring"
    """substring: every answer is a list of substrings of its passage; json: a list of texts; none: as it comes.
    What does not stand in the text is left out and counted in any case."""
    occurrences: Occurrences = "all"
    """Where an item stands several times: all of them, or the first of each window."""
    flat: bool = False
    """Of entities that overlap only the likeliest is kept, and of those the longest."""
    threshold: float = 0.0
    """The least score of an entity, 0 to 1."""
    temperature: float = 1.0
    """Scores are softened by it, or sharpened below 1 (`uner evaluate --calibrate` finds one)."""
    dataset: str | None = None
    """The name of a data set, for a model that was tuned with dataset-specific prompts."""
    question: str = question_turn("{type}")
    """The words of a question, with {type} where the type or its description comes."""
    draft: int = 0
    """Tokens that each step guesses to be copied from the passage: 2 to 4 are quicker for one text (latency), and
    slower for many. Answers stay the same."""
    noun: Noun | None = None
    """What the prompt calls the passage, unless as the model's training recorded it, or else "text"; models of the
    released trainer were tuned on "paragraph"."""

    def __post_init__(self):
        if not 0 <= self.threshold <= 1 or not self.temperature > 0:
            raise InputError(
                f"a threshold lies in 0..1 and a temperature above 0, found {self.threshold} and {self.temperature}"
            )
        if self.draft < 0:
            raise InputError(f"--draft must be at least 0, found {self.draft}")
        if "{type}" not in self.question:
            raise InputError(f"a question has {{type}} where the entity type comes, found {self.question!r}")


DEFAULTS = Options()
