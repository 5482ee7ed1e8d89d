"""Greedy answers are those of transformers' generate, token for token, with the same weights on real prompts."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from uner_jax.evaluation.questions import read_questions
from uner_jax.evaluation.settings import Asking, DataSet
from uner_jax.extraction.engine import Engine, Generation, Request
from uner_jax.template import answer_turn, encode_answer, encode_context, encode_question
from uner_jax.tokenizer import Tokenizer
from uner_jax.weights import load_model, load_model_tokenizer
from uner_jax.weights.hf import write_hf

PROMPTS = 200
NEW_TOKENS = 16
BATCH = 25
TIE = 1e-4


@pytest.fixture(scope="module")
def export(smollm2_path, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("export") / "SmolLM2"
    write_hf(load_model(smollm2_path), load_model_tokenizer(smollm2_path), directory)
    return directory


@pytest.fixture(scope="module")
def tokenizer(export) -> Tokenizer:
    return load_model_tokenizer(export)


@pytest.fixture(scope="module")
def requests(tokenizer, shared_data) -> list[Request]:
    """The first questions of CrossNER AI: sixteen passages with all their types."""
    source = DataSet("CrossNER_AI", shared_data / "eval" / "CrossNER_AI.json")
    questions = read_questions(source, Asking(passages=16))[:PROMPTS]
    assert len(questions) == PROMPTS
    contexts = {turn: tuple(encode_context(turn, tokenizer)) for turn in {q.passage_turn for q in questions}}
    return [Request(contexts[q.passage_turn], tuple(encode_question(q.question, tokenizer))) for q in questions]


@pytest.fixture(scope="module")
def theirs(export) -> Iterator[torch.nn.Module]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that wait for each other are many times slower on a machine that is busy
    yield AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32, local_files_only=True).eval()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def found(export, requests, tokenizer) -> dict[int, Generation]:
    draft = encode_answer(answer_turn([]), tokenizer)
    engine = Engine(load_model(export), tokenizer.eos_id, batch_size=32, max_new_tokens=NEW_TOKENS, draft=draft)
    return dict(engine.generate(requests))


@pytest.fixture(scope="module")
def expected(theirs, requests, tokenizer) -> list[list[int]]:
    """What transformers answers, up to and with the end of turn: batches of like length, padded on the left."""
    prompts = [[*request.context, *request.question] for request in requests]
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    for start in range(0, len(order), BATCH):
        places = order[start : start + BATCH]
        width = max(len(prompts[place]) for place in places)
        tokens_BT = torch.zeros((len(places), width), dtype=torch.int64)
        mask_BT = torch.zeros_like(tokens_BT)
        for row, place in enumerate(places):
            tokens_BT[row, width - len(prompts[place]) :] = torch.tensor(prompts[place])
            mask_BT[row, width - len(prompts[place]) :] = 1
        with torch.inference_mode():
            written_BT = theirs.generate(
                tokens_BT,
                attention_mask=mask_BT,
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                eos_token_id=tokenizer.eos_id,
                pad_token_id=tokenizer.eos_id,
            )
        for row, place in enumerate(places):
            answer = written_BT[row, width:].tolist()
            end = answer.index(tokenizer.eos_id) + 1 if tokenizer.eos_id in answer else len(answer)
            answers[place] = answer[:end]
    return answers


def with_end(answer: Generation, eos_id: int) -> list[int]:
    return [*answer.tokens, *([eos_id] if answer.ended else [])]


def gap(model: torch.nn.Module, tokens: list[int], one: int, other: int) -> float:
    """How much likelier one next token is than another, in logits, by transformers."""
    with torch.inference_mode():
        logits_V = model(torch.tensor([tokens])).logits[0, -1]
    return abs(float(logits_V[one] - logits_V[other]))


def test_greedy_answers_are_those_of_transformers(theirs, requests, expected, found, tokenizer):
    assert sorted(found) == list(range(PROMPTS))
    different = []
    for place, answer in enumerate(expected):
        ours = with_end(found[place], tokenizer.eos_id)
        if ours == answer:
            continue
        # both are right where two tokens are equally likely: the first difference must be such a tie.
        first = next(step for step in range(NEW_TOKENS) if ours[step] != answer[step])
        prompt = [*requests[place].context, *requests[place].question]
        assert gap(theirs, prompt + answer[:first], ours[first], answer[first]) < TIE, (place, first)
        different.append(place)
    assert len(different) < PROMPTS // 50, different
    # the prompts are real, and the answers differ.
    assert len({tuple(answer) for answer in expected}) > 20


@pytest.mark.parametrize("place", range(0, PROMPTS, 25))
def test_log_probs_are_those_of_transformers(place, theirs, requests, found, tokenizer):
    answer = found[place]
    prompt = [*requests[place].context, *requests[place].question]
    written = with_end(answer, tokenizer.eos_id)
    with torch.inference_mode():
        logits_TV = theirs(torch.tensor([prompt + written])).logits[0, len(prompt) - 1 : -1]
    log_probs_TV = torch.log_softmax(logits_TV, -1).numpy()
    wanted = log_probs_TV[np.arange(len(written)), written]
    ours = [*answer.log_probs, *([answer.end_log_prob] if answer.ended else [])]
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-3)
