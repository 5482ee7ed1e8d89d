"""Extraction beside transformers' `generate`: the same weights, passages and questions, in one run.

pip install torch && python benchmarks/extraction.py --model DIR --questions CrossNER_AI.json --passages 100
python benchmarks/extraction.py --model DIR --questions CrossNER_AI.json --curves

Hardware: two CPU cores, 8 GB, a quarter of an hour for 100 passages. Reaches: see benchmarks/results.md.

transformers gets its questions sorted by length, in batches, padded on the left; each side is warmed up on other
passages first. The sides take turns over groups of passages, and what is compared is CPU time, because the machine may
be busy; wall time is beside it. Answers must be equal, token for token, but for ties: where they are not, the gap
between the two tokens' logits is printed. The curves are of our side alone: the cost of a passage with more types, and
of longer passages.
"""

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from uner_jax.command import keep_programs, run_command
from uner_jax.evaluation.questions import Question, read_questions
from uner_jax.evaluation.settings import Asking, DataSet
from uner_jax.extraction.engine import Engine, Request
from uner_jax.records import InputError
from uner_jax.template import (
    answer_turn,
    encode_answer,
    encode_context,
    encode_question,
    question_turn,
)
from uner_jax.weights import load_model, load_model_tokenizer

GROUP = 20
BATCH = 32
TYPES = (1, 4, 16, 64, 256)
LENGTHS = (1, 2, 4)


class Cost(NamedTuple):
    """CPU and wall seconds."""

    cpu: float
    wall: float


def extraction(
    model: str,
    questions: Path,
    passages: int = 100,
    max_new_tokens: int = 64,
    dtype: Literal["float32", "bfloat16"] = "float32",
    curves: bool = False,
) -> None:
    """Answer the same questions on both sides in turn and print the ratio; or our curves alone.

    Args:
        model: A Hugging Face directory of a fine-tuned model.
        questions: A file of questions in the published form.
        passages: As many of its passages.
        max_new_tokens: The most tokens of an answer.
        dtype: Dtype of our side; transformers computes in float32.
        curves: Our cost by types and by length, without the other side.
    """
    ours = Ours(model, dtype, max_new_tokens)
    asked = read_questions(DataSet(questions.stem, questions), Asking(passages + GROUP))
    if curves:
        print_curves(ours, asked)
        return
    groups = _groups(asked, ours)
    if len(groups) < 2:
        raise InputError(f"{questions}: has no more than {GROUP} passages, which warm up")
    print_pair(ours, Theirs(model, max_new_tokens, ours.eos_id), groups)


class Ours:
    """This project's engine."""

    def __init__(self, model: str, dtype: str, max_new_tokens: int):
        self._tokenizer = load_model_tokenizer(model)
        self.eos_id = self._tokenizer.eos_id
        draft = encode_answer(answer_turn([]), self._tokenizer)
        self._engine = Engine(load_model(model, dtype), self.eos_id, BATCH, max_new_tokens, draft)

    def request(self, question: Question) -> Request:
        """The ids of a question and its context."""
        context = encode_context(question.passage_turn, self._tokenizer, question.acknowledgement)
        return Request(tuple(context), tuple(encode_question(question.question, self._tokenizer)))

    def __call__(self, requests: Sequence[Request]) -> list[list[int]]:  # noqa: D102
        found = dict(self._engine.generate(requests))
        return [[*found[place].tokens, *[self.eos_id] * found[place].ended] for place in range(len(requests))]


class Theirs:
    """transformers with torch, on all cores."""

    def __init__(self, model: str, max_new_tokens: int, eos_id: int):
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self._settings = {"do_sample": False, "max_new_tokens": max_new_tokens, "pad_token_id": eos_id}
        self._eos_id = eos_id

    def __call__(self, requests: Sequence[Request]) -> list[list[int]]:  # noqa: D102
        prompts = [[*request.context, *request.question] for request in requests]
        answers: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        for places in (order[first : first + BATCH] for first in range(0, len(order), BATCH)):
            width = max(len(prompts[place]) for place in places)
            tokens_BT = self._torch.zeros((len(places), width), dtype=self._torch.int64)
            mask_BT = self._torch.zeros_like(tokens_BT)
            for row, place in enumerate(places):
                tokens_BT[row, width - len(prompts[place]) :] = self._torch.tensor(prompts[place])
                mask_BT[row, width - len(prompts[place]) :] = 1
            with self._torch.inference_mode():
                written_BT = self._model.generate(
                    tokens_BT, attention_mask=mask_BT, eos_token_id=self._eos_id, **self._settings
                )
            for row, place in enumerate(places):
                answer = written_BT[row, width:].tolist()
                end = answer.index(self._eos_id) + 1 if self._eos_id in answer else len(answer)
                answers[place] = answer[:end]
        return answers

    def gap(self, request: Request, ours: Sequence[int], theirs: Sequence[int]) -> float:
        """How much likelier, in logits, one of the first two different tokens is than the other."""
        same = next(place for place, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other)
        with self._torch.inference_mode():
            tokens = self._torch.tensor([[*request.context, *request.question, *ours[:same]]])
            logits_V = self._model(tokens).logits[0, -1]
        return abs(float(logits_V[ours[same]] - logits_V[theirs[same]]))


def print_pair(ours: Ours, theirs: Theirs, groups: Sequence[Sequence[Request]]) -> None:
    """Both sides on each group in turn; the first group warms up."""
    costs: dict[str, list[Cost]] = {"ours": [], "transformers": []}
    different, questions, empty = [], 0, 0
    for number, group in enumerate(groups):
        answers = {}
        for name, side in (("ours", ours), ("transformers", theirs)):
            answers[name], cost = _timed(side, group)
            if number:
                costs[name].append(cost)
        if not number:
            continue
        questions += len(group)
        empty += sum(len(answer) <= 2 for answer in answers["ours"])
        for request, one, other in zip(group, answers["ours"], answers["transformers"], strict=True):
            if one != other:
                different.append(theirs.gap(request, one, other))
        print(f"{number * GROUP} passages: {_ratio(costs):.2f} times", file=sys.stderr)
    count = GROUP * (len(groups) - 1)
    for name, values in costs.items():
        cpu, wall = (sum(column) for column in zip(*values, strict=True))
        print(f"{name:14} {count / cpu:6.2f} passages a CPU-second  {count / wall:6.2f} a second")
    print(f"{_ratio(costs):.2f} times transformers by CPU time; {questions:,} questions, {empty / questions:.0%} empty")
    print(
        f"{len(different)} answers differ; the gap of their logits: {', '.join(f'{x:.1e}' for x in different) or '-'}"
    )


def print_curves(ours: Ours, asked: Sequence[Question]) -> None:
    """CPU seconds a passage."""
    turns = list(dict.fromkeys(question.passage_turn for question in asked))[: GROUP // 2]
    labels = [f"kind {number} of thing" for number in range(max(TYPES))]

    def cost(turns: Sequence[str], count: int) -> float:
        requests = [
            ours.request(Question("", "", turn, asked[0].acknowledgement, question_turn(label), ""))
            for turn in turns
            for label in labels[:count]
        ]
        ours(requests)
        _, spent = _timed(ours, requests)
        return spent.cpu / len(turns)

    one = cost(turns, 1)
    for count in TYPES:
        seconds = cost(turns, count)
        print(f"{count:4} types: {seconds:.3f} CPU s a passage, {seconds / one:.2f} times one type")
    for times in LENGTHS:
        seconds = cost([turn * times for turn in turns], 13)
        print(f"passages {times} times as long, 13 types: {seconds:.3f} CPU s a passage")


def _groups(asked: Sequence[Question], ours: Ours) -> list[list[Request]]:
    by_passage = [list(group) for _, group in itertools.groupby(asked, lambda question: question.passage_turn)]
    return [
        [ours.request(question) for passage in by_passage[first : first + GROUP] for question in passage]
        for first in range(0, len(by_passage) - GROUP + 1, GROUP)
    ]


def _timed(side: Callable[[Sequence[Request]], list[list[int]]], requests: Sequence[Request]) -> tuple[list, Cost]:
    cpu, wall = time.process_time(), time.monotonic()
    answers = side(requests)
    return answers, Cost(time.process_time() - cpu, time.monotonic() - wall)


def _ratio(costs: dict[str, list[Cost]]) -> float:
    return sum(cost.cpu for cost in costs["transformers"]) / sum(cost.cpu for cost in costs["ours"])


def main(arguments: list[str]) -> None:
    """The command line."""
    tyro.cli(extraction, args=arguments)


if __name__ == "__main__":
    keep_programs()
    run_command(main)
