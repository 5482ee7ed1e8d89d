"""Passages -> labels: a teacher names the entities, and nothing that was paid for is lost or paid for twice.

export OPENAI_API_KEY=...
python -m data_prep.label --passages passages.jsonl --output labels.jsonl --model gpt-4o-mini
"""

import asyncio
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import tyro

from data_prep.teacher.answers import parse_answer
from data_prep.teacher.batch import BatchRun
from data_prep.teacher.client import Teacher
from data_prep.teacher.cost import (
    FREE,
    PRICES,
    USUAL_ANSWER_TOKENS,
    Price,
    estimated_tokens,
    highest_cost,
    load_price,
)
from data_prep.teacher.filters import keep_entities
from data_prep.teacher.job import ANSWER_LIMITS, Job, Reply
from data_prep.teacher.live import LiveRun
from data_prep.teacher.prompts import load_prompt
from data_prep.teacher.run import Asking, Outcome
from data_prep.teacher.store import AnswerStore
from uner_jax.command import progress, run_command
from uner_jax.records import InputError, Label, Passage, check_passage, read_rows, write_rows

# Replies that are no answer, whatever they say.
NO_ANSWER = {"refused", "refusal", "content_filter"}


@dataclass
class Passages:
    """The passages of the input, and its records that are none."""

    rows: list[Passage] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Counts:
    """What became of the answers."""

    labels: int = 0
    unanswered: int = 0
    cut: int = 0
    entities: int = 0
    types: set[str] = field(default_factory=set)
    rejected: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


def read_passages(path: Path) -> Passages:
    """The passages of a file; a record that is none is set aside with its reason, and stops nothing."""
    found = Passages()

    def set_aside(line: str, error: InputError) -> None:
        found.rejected.append({"record": line, "reason": "bad_record", "detail": str(error)})

    for where, row in progress(read_rows(path, set_aside), f"reading {path}", unit="passages"):
        try:
            passage = check_passage(row, where)
            passage["text"].encode()
        except InputError as error:
            found.rejected.append({"record": row, "reason": "bad_record", "detail": str(error)})
        except UnicodeEncodeError:
            detail = f'{where}: "text" holds half of a surrogate pair'
            found.rejected.append({"record": row, "reason": "bad_record", "detail": detail})
        else:
            found.rows.append(passage)
    if not found.rows:
        raise InputError(f"{path}: no passages, {len(found.rejected):,} records that are none")
    return found


class Labels:
    """The label records that the store's answers make of the passages, in the order of the passages."""

    def __init__(self, passages: Passages, job: Job, store: AnswerStore):
        self._passages, self._job, self._store = passages, job, store
        self.rejected = list(passages.rejected)
        self.counts = Counts(rejected=Counter(row["reason"] for row in passages.rejected))

    def __iter__(self) -> Iterator[Label]:
        for passage in self._passages.rows:
            reply = self._store.answer(self._job.key(passage["text"]))
            if reply is None:
                self.counts.unanswered += 1
            elif label := self._label(passage, reply):
                self.counts.labels += 1
                self.counts.entities += len(label["entities"])
                self.counts.types.update(entity["type"] for entity in label["entities"])
                yield label

    def _label(self, passage: Passage, reply: Reply) -> Label | None:
        answer = parse_answer(reply.content)
        problem = reply.finish_reason if reply.finish_reason in NO_ANSWER else answer.problem
        if problem:
            self.counts.rejected[problem] += 1
            self.rejected.append({**passage, "reason": problem, "answer": reply.content})
            return None
        entities, left_out = keep_entities(answer.pairs, passage["text"])
        self.counts.left_out.update(left_out)
        if answer.unread:
            self.counts.left_out["unread"] += answer.unread
        teacher: dict[str, Any] = {
            "model": reply.model or self._job.model,
            "variant": self._job.prompt.name,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
        }
        kept = {entity["type"] for entity in entities}
        if other := sorted({name for _, name in answer.pairs} - kept):
            # of entities that were left out: the passage must not be asked for them as for types that it has not.
            teacher["left_out_types"] = other
        if answer.cut or reply.finish_reason == "length":
            self.counts.cut += 1
            teacher["cut"] = True
        return cast(Label, {**passage, "entities": entities, "teacher": teacher})


def label(
    passages: Path,
    output: Path,
    model: str,
    base_url: str | None = None,
    variant: Literal["type", "definition"] = "type",
    prompt: Path | None = None,
    structured: bool = False,
    mode: Literal["async", "batch"] = "async",
    concurrency: Annotated[int, tyro.conf.arg(metavar="N")] = 16,
    parameters: Annotated[str, tyro.conf.arg(metavar="JSON")] = '{"temperature": 0, "max_tokens": 1024}',
    max_cost: Annotated[float | None, tyro.conf.arg(metavar="USD")] = None,
    prices: Path = PRICES,
    cost: bool = True,
    dry_run: bool = False,
    retries: int = 6,
    timeout: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 120.0,
    wait: bool = True,
    poll: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 30.0,
) -> None:
    """Ask a teacher for the entities of passages, through any server with OpenAI's API.

    The key comes from OPENAI_API_KEY. Every answer is committed to OUTPUT.store before it counts: after a stop
    of any kind, run the same command again, and it goes on with what is not yet answered. Another model,
    prompt or parameter asks anew. OUTPUT.rejected.jsonl holds the answers that cannot be used.

    Args:
        passages: Passage records (JSON, JSON lines or Parquet): id, text.
        output: Label records, in the order of the passages.
        model: The teacher's name at its server.
        base_url: The server, such as http://127.0.0.1:8000/v1; the default is OpenAI's.
        variant: Which of the two published prompts: entity types in a word, or defined in a short sentence.
        prompt: A prompt of your own: a text file with {passage} in it, a system message above a line of three dashes.
        structured: Ask for JSON of a fixed schema (response_format), of servers that have it.
        mode: async asks one passage a request; batch uses the Batch API, for half the price within a day.
        concurrency: The most requests at a time; fewer are made while the server says that it is too much.
        parameters: What else goes into each request.
        max_cost: Send nothing by which the store's answers could cost more than this.
        prices: Table of prices (JSON), to be copied and edited.
        cost: --no-cost for a server that is free: no price is looked up.
        dry_run: Print requests, tokens and cost, and send nothing.
        retries: Times that a request is sent again after an error that may pass.
        timeout: Time for one answer.
        wait: With --mode batch, wait for the batches; --no-wait sends them and leaves, and collects when run again.
        poll: With --mode batch, time between two looks at a batch.
    """
    _check_limits(concurrency, retries, timeout, poll, max_cost)
    if output.resolve() == passages.resolve():
        raise InputError(f"--output {output} would write over --passages {passages}; give another name")
    job = Job(model, load_prompt(variant, prompt, structured), _parameters(parameters))
    price = load_price(model, prices, mode == "batch") if cost else FREE
    if max_cost is not None and price.output and job.answer_limit is None:
        raise InputError("--max-cost needs a limit of the answers: give max_tokens in --parameters")
    found = read_passages(passages)
    store_path = output.with_name(output.name + ".store")
    if dry_run:
        _print_plan(job, found, store_path, price)
        return
    texts = {job.key(passage["text"]): passage["text"] for passage in found.rows}
    with AnswerStore(store_path) as store:
        _say_lost(store)

        async def ask() -> Outcome:
            async with Teacher(base_url, timeout) as teacher:
                if mode == "batch":
                    asking = Asking(job, texts, teacher, store, price, max_cost, retries)
                    return await BatchRun(asking, wait, poll).run()
                todo = {key: texts[key] for key in store.open_keys(texts)}
                return await LiveRun(Asking(job, todo, teacher, store, price, max_cost, retries), concurrency).run()

        is_open = any(store.answer(key) is None for key in texts)
        outcome = asyncio.run(ask()) if is_open else Outcome()
        if outcome.left:
            print(f"{store_path}: {outcome.left}", file=sys.stderr)
            return
        if outcome.stopped and all(store.answer(key) is None for key in texts):
            raise InputError(f"{output}: nothing was answered: {outcome.stopped}")
        counts = _write(output, Labels(found, job, store))
        _report(output, found, counts, store.cost())
        _check_complete(output, outcome, counts)


def _say_lost(store: AnswerStore) -> None:
    if count := store.lost():
        print(
            f"{store.path}: the answers of {count:,} requests never came (a run was killed, or a reply was lost); they "
            "count with their highest cost",
            file=sys.stderr,
        )


def _check_limits(concurrency: int, retries: int, timeout: float, poll: float, max_cost: float | None) -> None:
    at_least = {
        "--concurrency": (concurrency, 1),
        "--retries": (retries, 0),
        "--max-cost": (max_cost if max_cost is not None else 0, 0),
    }
    for name, (value, least) in at_least.items():
        if not value >= least:  # nan is not either
            raise InputError(f"{name} must be at least {least}, found {value}")
    for name, seconds in (("--timeout", timeout), ("--poll", poll)):
        if not 0 < seconds < math.inf:
            raise InputError(f"{name} must be more than 0 seconds, found {seconds}")


def _parameters(text: str) -> dict[str, Any]:
    try:
        parameters = json.loads(text)
    except ValueError as error:
        raise InputError(f"--parameters {text!r}: not JSON ({error})") from error
    if not isinstance(parameters, dict):
        raise InputError(f'--parameters {text!r}: expected a JSON object such as {{"temperature": 0}}')
    own = sorted(parameters.keys() & {"model", "messages", "response_format", "stream", "n"})
    limits = {name: parameters[name] for name in ANSWER_LIMITS if name in parameters}
    for name, value in limits.items():
        if not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            raise InputError(f"--parameters: {name} must be a whole number of at least 1, found {json.dumps(value)}")
    if own:
        raise InputError(f"--parameters must not set {', '.join(own)}: it is set by the command")
    return parameters


def _print_plan(job: Job, found: Passages, store_path: Path, price: Price) -> None:
    todo, answer_tokens = {job.key(passage["text"]): passage["text"] for passage in found.rows}, None
    if store_path.exists():
        with AnswerStore(store_path) as store:
            todo, answer_tokens = {key: todo[key] for key in store.open_keys(todo)}, store.mean_completion_tokens()
    prompt_tokens = sum(estimated_tokens(job, text) for text in todo.values())
    answers = round(len(todo) * (answer_tokens or USUAL_ANSWER_TOKENS))
    highest = sum(highest_cost(job, text, price) for text in todo.values())
    print(
        f"{len(todo):,} requests to send for {len(found.rows):,} passages (others are answered, or of the same text)\n"
        f"about {prompt_tokens:,} tokens of prompts and {answers:,} of answers\n"
        f"about {price.of(prompt_tokens, answers):,.2f} USD, and {highest:,.2f} USD at most (prices of {price.date})"
    )


def _write(output: Path, labels: Labels) -> Counts:
    write_rows(output, labels)
    write_rows(output.with_name(output.name + ".rejected.jsonl"), labels.rejected)
    return labels.counts


def _report(output: Path, found: Passages, counts: Counts, cost: float) -> None:
    lines = [
        f"{output}: {counts.labels:,} labels from {len(found.rows):,} passages; {counts.entities:,} entities of "
        f"{len(counts.types):,} types; {counts.cut:,} answers were cut off and keep their whole pairs; "
        f"{cost:,.4f} USD for all in the store"
    ]
    for what, reasons in (("rejected", counts.rejected), ("entities left out", counts.left_out)):
        listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        lines.append(f"{what}: {sum(reasons.values()):,}{f' ({listed})' if listed else ''}")
    print("\n".join(lines), file=sys.stderr)


def _check_complete(output: Path, outcome: Outcome, counts: Counts) -> None:
    """InputError if passages have no answer: what is there is written, and a later run goes on."""
    for message, count in outcome.failures.most_common(5):
        print(f"given up: {count:,} x {message}", file=sys.stderr)
    if outcome.stopped or counts.unanswered:
        why = outcome.stopped or "requests failed, or are under way in batches (--mode batch collects them)"
        raise InputError(
            f"{output}: {counts.unanswered:,} passages have no answer yet: {why}. Run the same command again"
        )


def main(arguments: list[str]) -> None:
    """The command line."""
    tyro.cli(label, prog="python -m data_prep.label", args=arguments)


if __name__ == "__main__":
    run_command(main)
