"""The published scorer equals the released one on recorded cases; the correct one loses no answer."""

import json
import random
import string
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uner_jax.evaluation.scorers import (
    correct_score,
    exact_span_score,
    normalize_answer,
    published_parse,
    published_score,
)

NOTHING = {"precision": 0.0, "recall": 0.0, "f1": 0.0}
PERFECT = {"precision": 1.0, "recall": 1.0, "f1": 1.0}

names = st.sampled_from(["Paris", "paris.", "The Paris", "New  York", "C++", "c", "x] y", "A", "!!!", "été"])
answers = st.lists(names, max_size=4).map(json.dumps)
plain_answers = st.lists(names.filter(lambda name: "]" not in name), max_size=4).map(json.dumps)
answer_rows = st.lists(st.tuples(answers, answers), max_size=6)
spans = st.frozensets(st.tuples(st.integers(0, 3), st.integers(4, 6), st.sampled_from(["person", "place"])), max_size=4)
span_rows = st.lists(st.tuples(spans, spans), max_size=6)


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> dict:
    return json.loads((shared_data / "golden" / "scorer.json").read_text())


@pytest.fixture(scope="module")
def gold_lists(shared_data: Path) -> list[list[str]]:
    rows = json.loads((shared_data / "eval" / "CrossNER_AI.json").read_text())
    return [json.loads(row["conversations"][-1]["value"]) for row in rows]


def columns(rows) -> tuple[list, list]:
    return [prediction for prediction, _ in rows], [gold for _, gold in rows]


def test_released_parser_on_every_recorded_row(golden: dict):
    assert [published_parse(row["prediction"]) for row in golden["rows"]] == [row["parsed"] for row in golden["rows"]]


def test_released_totals_to_the_last_bit(golden: dict):
    rows = [(row["prediction"], row["gold"]) for row in golden["rows"]]
    assert published_score(*columns(rows)) == golden["expected"]


def test_correct_score_finds_what_the_released_one_loses(golden: dict):
    rows = [(row["prediction"], row["gold"]) for row in golden["rows"]]
    assert correct_score(*columns(rows))["recall"] > published_score(*columns(rows))["recall"]


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  New-York\tTimes.", "newyork times"),
        ("An apple a day", "apple day"),
        ("T.h.e. C++", "c"),
        ("A", ""),
        ("!!!", ""),
        ("ÉTÉ «Anne» theatre", "été «anne» theatre"),
        ("a-team l'a", "ateam la"),
    ],
)
def test_normalization(text: str, normalized: str):
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(
    "prediction",
    [
        '["x] y", "Paris"]',
        '[\n  "x] y",\n  "Paris"\n]',
        'Sure: ["Paris"]',
        ' ["Paris"]',
        '["Paris", "Lond',
        '["Paris"',
        '["Paris", 3]',
        '["Paris", ["Lyon"]]',
        "['Paris']",
        '["Paris",]',
        '["Par\tis", "Paris"]',
    ],
)
def test_answers_that_the_released_parser_loses(prediction: str):
    gold = '["Paris"]'
    assert published_parse(prediction) == []
    assert published_score([prediction], [gold]) == NOTHING
    assert correct_score([prediction], [gold])["recall"] == 1.0


def test_a_lost_gold_answer_turns_a_right_prediction_into_a_wrong_one():
    gold = '["a[1] b"]'
    assert published_score([gold, '["B"]'], [gold, '["B"]'])["recall"] == pytest.approx(1.0)
    assert published_score(['["a1 b"]'], [gold]) == NOTHING
    assert correct_score(['["a1 b"]'], [gold]) == PERFECT


@pytest.mark.parametrize(
    "prediction", ["[" * 100_000 + "]", "[" + "1" * 10_000 + "]", "[NaN]", '[{"a": 1}]', '["\\x"]']
)
def test_released_parser_reads_nothing_from_what_json_refuses(prediction: str):
    assert published_parse(prediction) == []


def test_published_score_is_smoothed():
    """1 / (1 + 1e-10), as released: not a rounding of ours."""
    assert published_score(['["B"]'], ['["B"]'])["precision"] == 1 / (1 + 1e-10) < 1


def perturb(gold: list[str], others: list[str], rng: random.Random) -> list[str]:
    kept = [name for name in gold if rng.random() < 0.8]
    changed = [rng.choice([str.upper, str.title, "the {}.".format, "{} [sic]".format])(name) for name in kept]
    invented = rng.sample(others, rng.randrange(3)) if rng.random() < 0.2 else []
    repeats = rng.choices(changed, k=1) if changed and rng.random() < 0.3 else []
    return changed + invented + repeats


def write_oddly(names: list[str], rng: random.Random) -> str:
    forms = [
        json.dumps(names),
        json.dumps(names, ensure_ascii=False, indent=1),
        f"Here: {json.dumps(names)}",
        json.dumps([7, *names, None, ["nested"]]),
        json.dumps(names)[:-1] + ', "cut o',
    ]
    return rng.choice(forms)


def recount(predictions: list[list[str]], golds: list[list[str]]) -> tuple[float, float, float]:
    """The measure again, from lists of strings, with other means."""

    def bag(rows: list[list[str]]) -> Counter:
        return Counter({(row, plain_words(name)): 1 for row, names in enumerate(rows) for name in names})

    predicted, gold = bag(predictions), bag(golds)
    right = (predicted & gold).total()
    return right / predicted.total(), right / gold.total(), 2 * right / (predicted.total() + gold.total())


def plain_words(text: str) -> tuple[str, ...]:
    kept = "".join(letter for letter in text if letter not in string.punctuation).lower()
    return tuple(word for word in kept.split() if word not in ("a", "an", "the"))


def test_correct_score_equals_a_recount_on_crossner(gold_lists: list[list[str]]):
    rng = random.Random(0)
    others = sorted({name for names in gold_lists for name in names})
    predicted_lists = [perturb(gold, others, rng) for gold in gold_lists]
    predictions = [write_oddly(names, rng) for names in predicted_lists]
    score = correct_score(predictions, [json.dumps(names) for names in gold_lists])
    assert (score["precision"], score["recall"], score["f1"]) == pytest.approx(recount(predicted_lists, gold_lists))
    assert 0.3 < score["f1"] < 0.9


def test_the_scorers_agree_on_plain_answers_of_crossner(gold_lists: list[list[str]]):
    rng = random.Random(1)
    golds = [json.dumps(names) for names in gold_lists]
    predictions = [json.dumps([name for name in names if rng.random() < 0.7]) for names in gold_lists]
    assert published_score(predictions, golds) == pytest.approx(correct_score(predictions, golds))


@settings(deadline=None)
@given(st.lists(st.tuples(plain_answers, plain_answers), max_size=6))
def test_the_scorers_agree_on_plain_answers(rows):
    assert published_score(*columns(rows)) == pytest.approx(correct_score(*columns(rows)))


@settings(deadline=None)
@given(st.lists(answers, max_size=6))
def test_gold_against_itself(golds: list[str]):
    expected = PERFECT if any(gold != "[]" for gold in golds) else NOTHING
    assert correct_score(golds, golds) == expected
    parsed_any = any(map(published_parse, golds))
    assert published_score(golds, golds) == pytest.approx(PERFECT if parsed_any else NOTHING)


@settings(deadline=None)
@given(answer_rows, st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(rows, rng: random.Random):
    shuffled = rng.sample(rows, len(rows))
    for score in (published_score, correct_score):
        assert score(*columns(shuffled)) == score(*columns(rows))


@settings(deadline=None)
@given(answer_rows)
def test_swapping_the_sides_swaps_precision_and_recall(rows):
    predictions, golds = columns(rows)
    for score in (published_score, correct_score):
        there, back = score(predictions, golds), score(golds, predictions)
        assert (there["precision"], there["recall"]) == (back["recall"], back["precision"])


@settings(deadline=None)
@given(span_rows)
def test_exact_spans_equal_a_recount(rows):
    predicted, gold = ({(row, *s) for row, side in enumerate(column) for s in side} for column in columns(rows))
    right = len(predicted & gold)
    expected = {
        "precision": right / len(predicted) if predicted else 0.0,
        "recall": right / len(gold) if gold else 0.0,
        "f1": 2 * right / (len(predicted) + len(gold)) if right else 0.0,
    }
    assert exact_span_score(*columns(rows)) == pytest.approx(expected)
    repeated = [sorted(side) * 2 for side, _ in rows]
    assert exact_span_score(repeated, columns(rows)[1]) == exact_span_score(*columns(rows))


def test_exact_spans_need_start_end_and_label():
    gold = [{(0, 5, "person")}]
    assert exact_span_score(gold, gold) == PERFECT
    for near in [(1, 5, "person"), (0, 4, "person"), (0, 5, "place")]:
        assert exact_span_score([{near}], gold) == NOTHING
    # a span counts in its own document only
    assert exact_span_score([set(), {(0, 5, "person")}], [{(0, 5, "person")}, set()]) == NOTHING


@pytest.mark.parametrize("score", [published_score, correct_score])
def test_nothing_to_divide_by(score):
    assert score([], []) == NOTHING
    assert score(["[]"], ["[]"]) == NOTHING
    assert score(["[]"], ['["B"]']) == NOTHING
    assert score(['["B"]'], ["[]"]) == NOTHING
    assert exact_span_score([], []) == exact_span_score([[]], [[]]) == NOTHING


@pytest.mark.parametrize("score", [published_score, correct_score, exact_span_score])
def test_lengths_that_differ(score):
    with pytest.raises(ValueError, match="found 1 for 2"):
        score(["[]"], ["[]", "[]"])
