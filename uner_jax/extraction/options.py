"""What is asked of a model, and what becomes of its answers."""

import dataclasses

from uner_jax.extraction.grounding import Grounding
from uner_jax.extraction.spans import Occurrences
from uner_jax.records import InputError
from uner_jax.template import Noun, question_turn


@dataclasses.dataclass(frozen=True)
class Options:
    """How an `Extractor` asks and reads; the same for all texts.

    `grounding`: "substring" holds every answer to a list of substrings of its passage, "json" to a list of texts,
    "none" to nothing; what does not stand in the text is left out and counted in any case. `occurrences`: where an
    item stands several times, all of them or the first. `flat`: of entities that overlap, only the likeliest.
    `threshold`: the least score of an entity; `temperature`: scores are softened by it (`uner evaluate --calibrate`
    finds one). `dataset`: the name of a data set, for a model that was tuned with dataset-specific prompts.
    `question`: the words of the question, with {type} where the type or its description comes.
    """

    grounding: Grounding = "substring"
    occurrences: Occurrences = "all"
    flat: bool = False
    threshold: float = 0.0
    temperature: float = 1.0
    dataset: str | None = None
    question: str = question_turn("{type}")
    noun: Noun = "text"

    def __post_init__(self):
        if not 0 <= self.threshold <= 1 or not self.temperature > 0:
            raise InputError(
                f"a threshold lies in 0..1 and a temperature above 0, found {self.threshold} and {self.temperature}"
            )
        if "{type}" not in self.question:
            raise InputError(f"a question has {{type}} where the entity type comes, found {self.question!r}")


DEFAULTS = Options()
