"""Extraction beside other runtimes: the same weights, passages and questions, in one run.

pip install torch && python benchmarks/extraction.py --model DIR --questions CrossNER_AI.json --passages 100
python benchmarks/extraction.py --model DIR --questions CrossNER_AI.json --curves

Others than transformers take part when their copy of the model is named: --onnx ONNX --openvino OPENVINO --gguf FILE

pip install onnx-ir onnxruntime-genai openvino-genai xllamacpp
python -m onnxruntime_genai.models.builder -m DIR -o ONNX -p fp32 -e cpu -c CACHE --extra_options prune_lm_head=true
optimum-cli export openvino -m DIR --task text-generation-with-past --weight-format fp32 OPENVINO
uner convert to-gguf DIR FILE --dtype float32

optimum-cli is of optimum-intel, which needs an older transformers: in an environment of its own.

Hardware: two CPU cores, 10 GB, half an hour for 100 passages with all sides. Reaches: see benchmarks/results.md.

benchmarks/peers.py has how each is used. Each side is warmed up on other passages first. The sides take turns over
groups of passages, and what is compared is CPU time, because the machine may be busy; wall time is beside it. Answers
must be equal, token for token, but for ties: where they are not, the gap between the two tokens' logits is printed, by
transformers. The curves are of our side alone: the cost of a passage with more types, and of longer passages.
"""

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import tyro
from peers import BATCH, LlamaCpp, Onnx, OpenVino, OpenVinoCached, Transformers

from uner_jax.command import keep_programs, run_command, use_huge_pages
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

GROUP = 50
CURVE = 10
TYPES = (1, 4, 16, 64, 256)
LENGTHS = (1, 2, 4)

Side = Callable[[Sequence[Request]], list[list[int]]]


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
    transformers: bool = True,
    onnx: str | None = None,
    openvino: str | None = None,
    gguf: str | None = None,
    curves: bool = False,
) -> None:
    """Answer the same questions on all sides in turn and print the ratios; or our curves alone.

    Args:
        model: A Hugging Face directory of a fine-tuned model.
        questions: A file of questions in the published form.
        passages: As many of its passages.
        max_new_tokens: The most tokens of an answer.
        dtype: Dtype of our side; the others compute in float32.
        transformers: Whether transformers takes part.
        onnx: The model's directory for onnxruntime-genai.
        openvino: The model's directory for openvino-genai.
        gguf: The model's file for llama.cpp.
        curves: Our cost by types and by length, without the other sides.
    """
    ours = Ours(model, dtype, max_new_tokens)
    asked = read_questions(DataSet(questions.stem, questions), Asking(passages + GROUP))
    if curves:
        print_curves(ours, asked)
        return
    groups = _groups(asked, ours)
    if len(groups) < 2:
        raise InputError(f"{questions}: has no more than {GROUP} passages, which warm up")
    copies: dict[str, tuple[Callable[[str, int, int], Side], str | None]] = {
        "transformers": (Transformers, model if transformers else None),
        "onnxruntime": (Onnx, onnx),
        "openvino": (OpenVino, openvino),
        "openvino, cached": (OpenVinoCached, openvino),
        "llama.cpp": (LlamaCpp, gguf),
    }
    peers = {name: peer(copy, max_new_tokens, ours.eos_id) for name, (peer, copy) in copies.items() if copy}
    print_peers(ours, peers, groups)


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


def print_peers(ours: Ours, peers: dict[str, Side], groups: Sequence[Sequence[Request]]) -> None:
    """All sides on each group in turn; the first group warms up."""
    sides: dict[str, Side] = {"ours": ours, **peers}
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    different: dict[str, list[tuple[Request, list[int], list[int]]]] = {name: [] for name in peers}
    questions, empty = 0, 0
    for number, group in enumerate(groups):
        answers = {}
        for name, side in sides.items():
            answers[name], cost = _timed(side, group)
            if number:
                costs[name].append(cost)
        if not number:
            continue
        questions += len(group)
        empty += sum(len(answer) <= 2 for answer in answers["ours"])
        for name in peers:
            together = zip(group, answers["ours"], answers[name], strict=True)
            different[name] += [triple for triple in together if triple[1] != triple[2]]
        ratios = ", ".join(f"{_sum(costs[name]).cpu / _sum(costs['ours']).cpu:.2f} times {name}" for name in peers)
        print(f"{number * GROUP} passages: {ratios}", file=sys.stderr)
    print(f"{questions:,} questions, {empty / questions:.0%} empty")
    print_costs({name: _sum(values) for name, values in costs.items()}, GROUP * (len(groups) - 1))
    judge = peers.get("transformers")
    for name, triples in different.items():
        gaps = [f"{judge.gap(*triple):.1e}" for triple in triples] if isinstance(judge, Transformers) else []
        print(f"{name}: {len(triples)} answers differ; the gap of their logits: {', '.join(gaps) or '-'}")


def print_costs(costs: dict[str, Cost], passages: int) -> None:
    """A line a side; the ratios are how many times faster ours is."""
    print(f"{'':16} passages a CPU-second    a second    ours, by CPU    by wall time")
    for name, (cpu, wall) in costs.items():
        ratios = f"{cpu / costs['ours'].cpu:15.2f} {wall / costs['ours'].wall:15.2f}"
        print(f"{name:16} {passages / cpu:21.2f} {passages / wall:11.2f} {ratios}")


def print_curves(ours: Ours, asked: Sequence[Question]) -> None:
    """CPU seconds a passage."""
    turns = list(dict.fromkeys(question.passage_turn for question in asked))[:CURVE]
    labels = [f"kind {number} of thing" for number in range(max(TYPES))]

    def cost(turns: Sequence[str], count: int) -> float:
        requests = [
            ours.request(Question("", "", turn, asked[0].acknowledgement, question_turn(label), "", ""))
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


def _timed(side: Side, requests: Sequence[Request]) -> tuple[list[list[int]], Cost]:
    cpu, wall = time.process_time(), time.monotonic()
    answers = side(requests)
    return answers, Cost(time.process_time() - cpu, time.monotonic() - wall)


def _sum(costs: Sequence[Cost]) -> Cost:
    return Cost(sum(cost.cpu for cost in costs), sum(cost.wall for cost in costs))


def main(arguments: list[str]) -> None:
    """The command line."""
    tyro.cli(extraction, args=arguments)


if __name__ == "__main__":
    use_huge_pages()
    keep_programs()
    run_command(main)
