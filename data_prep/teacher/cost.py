"""What requests cost: a table of prices that the user can edit, what was spent, and what could be."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.teacher.job import Job, Reply
from uner_jax.records import InputError

PRICES = Path(__file__).with_name("prices.json")
# tokens that a server adds round each message, and to the whole (OpenAI documents 3 and 3).
TOKENS_A_MESSAGE = 8
# of English prose under the usual vocabularies, for estimates only.
BYTES_A_TOKEN = 4
# what the teacher's answers to passages of 256 tokens come to, where none is known yet; for estimates only.
USUAL_ANSWER_TOKENS = 150


@dataclass(frozen=True)
class Price:
    """USD for a token of the request and for one of the answer, and the date of the table that says so."""

    input: float
    output: float
    date: str

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """USD for a request of so many tokens."""
        return prompt_tokens * self.input + completion_tokens * self.output


FREE = Price(0.0, 0.0, "--no-cost")


def load_price(model: str, table: Path = PRICES, batch: bool = False) -> Price:
    """The price of a model. Raises InputError if the table is malformed or does not have the model."""
    if not table.is_file():
        raise InputError(f"{table}: no such file")
    try:
        prices = json.loads(table.read_text(encoding="utf-8"))
        models, date = prices["models"], str(prices["date"])
        factor = float(prices["batch_factor"]) if batch else 1.0
        row = models.get(model)
        price = None if row is None else Price(*_usd_a_token(row, factor), date)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{table}: not a table of prices ({type(error).__name__}: {error}); expected date, batch_factor and "
            'models: {"NAME": {"input": USD, "output": USD}} for a million tokens'
        ) from error
    if price is None:
        raise InputError(
            f"{table} (of {date}) has no price of {model!r}: copy it, add the model, and give it as --prices; "
            "or say --no-cost if the server is free"
        )
    return price


def _usd_a_token(row: dict[str, Any], factor: float) -> tuple[float, float]:
    usd = float(row["input"]), float(row["output"])
    if not all(math.isfinite(side) and side >= 0 for side in usd):
        raise ValueError(f"a price must be a number of at least 0, found {row!r}")
    return usd[0] * factor / 1e6, usd[1] * factor / 1e6


def estimated_tokens(job: Job, passage: str) -> int:
    """About how many tokens a request has."""
    return math.ceil(_prompt_bytes(job, passage) / BYTES_A_TOKEN)


def highest_cost(job: Job, passage: str, price: Price) -> float:
    """USD that a request costs at most; infinity if nothing bounds its answer and answers cost something.

    No vocabulary makes more tokens than there are bytes.
    """
    if price.output and job.answer_limit is None:
        return math.inf
    return price.of(_prompt_bytes(job, passage), job.answer_limit or 0)


def actual_cost(reply: Reply, price: Price, highest: float) -> float:
    """USD that an answer cost by the server's count of tokens; the highest possible where it sends none."""
    if reply.prompt_tokens is None or reply.completion_tokens is None:
        return highest
    return price.of(reply.prompt_tokens, reply.completion_tokens)


def _prompt_bytes(job: Job, passage: str) -> int:
    body = job.body(passage)
    texts = [message["content"] for message in body["messages"]]
    form = json.dumps(body["response_format"]) if "response_format" in body else ""
    return sum(len(text.encode("utf-8", "replace")) + TOKENS_A_MESSAGE for text in [*texts, form])
