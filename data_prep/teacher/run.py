"""What a run of the teacher asks, and how it ended: the same for `live` and `batch`."""

from collections import Counter
from dataclasses import dataclass, field

from data_prep.teacher.client import Teacher
from data_prep.teacher.cost import Price, highest_cost
from data_prep.teacher.job import Job
from data_prep.teacher.store import AnswerStore


@dataclass(frozen=True)
class Asking:
    """The answers to `passages` (by key) are wanted in the store, from the teacher.

    `max_cost` bounds what the store holds in USD: a request is only sent if the highest cost of all that is
    under way stays within it. A request is sent again `retries` times after what may pass.
    """

    job: Job
    passages: dict[str, str]
    teacher: Teacher
    store: AnswerStore
    price: Price
    max_cost: float | None
    retries: int

    def highest_cost(self, key: str) -> float:
        """USD that the request of a key costs at most."""
        return highest_cost(self.job, self.passages[key], self.price)

    def is_too_much(self, cost: float) -> bool:
        """Whether the store would pass its limit with another request of that highest cost."""
        return self.max_cost is not None and self.store.cost() + cost > self.max_cost


@dataclass
class Outcome:
    """How a run ended: what stopped it, what it left under way on purpose, and why passages were given up."""

    stopped: str | None = None
    left: str | None = None
    failures: Counter[str] = field(default_factory=Counter)

    def fail(self, message: str) -> None:
        """Count a passage that was given up."""
        self.failures[message] += 1
