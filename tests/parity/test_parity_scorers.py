"""Exact and partial spans equal those of nervaluate, where spans of one side do not overlap each other.

Where they do, nervaluate lets a wrong span take the gold span of a right one that comes after it.
"""

import random

import pytest
from nervaluate import Evaluator

from uner_jax.evaluation.questions import read_questions
from uner_jax.evaluation.scorers import partial_counts, score_of, span_counts, total
from uner_jax.evaluation.settings import Asking, DataSet

BIO = {"crossner_ai": "test.txt", "wnut17": "test.annotated", "bc5cdr": "test.tsv"}


def disturbed(question, rng):
    """The gold spans, some of which are lost, moved, cut or lengthened, and invented ones between them."""
    found = []
    places = sorted({*question.spans, *((start, start + 3) for start in rng.sample(range(len(question.text)), 2))})
    for start, end in places:
        if (start, end) not in question.spans and rng.random() < 0.9:
            continue
        start += rng.choice([0, 0, 0, 1])
        end += rng.choice([0, 0, 0, -1, 2])
        if rng.random() < 0.8 and start < end and (not found or found[-1][1] <= start):
            found.append((start, end))
    return found


def documents(questions, spans):
    """The spans of each question as a document: for nervaluate "partial" means any type, and ends are inclusive."""
    return [
        [{"label": question.type, "start": start, "end": end - 1} for start, end in sorted(found)]
        for question, found in zip(questions, spans, strict=True)
    ]


@pytest.mark.parametrize("name", BIO)
def test_spans_are_scored_as_another_scorer_does(name, shared_data):
    rng = random.Random(0)
    source = DataSet(name, shared_data / "bio" / name / BIO[name])
    questions = [question for question in read_questions(source, Asking(passages=300)) if len(question.text) > 1]
    gold, found = [question.spans for question in questions], [disturbed(question, rng) for question in questions]
    tags = sorted({question.type for question in questions})
    theirs = Evaluator(documents(questions, gold), documents(questions, found), tags, loader="dict").evaluate()
    for count, strategy in ((span_counts, "strict"), (partial_counts, "partial")):
        ours = score_of(total(map(count, found, gold)))
        assert 0.2 < ours["f1"] < 0.95
        assert ours == pytest.approx({name: getattr(theirs["overall"][strategy], name) for name in ours}), strategy
