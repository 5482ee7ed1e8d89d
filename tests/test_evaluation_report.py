"""What a benchmark run says of its answers: protocols, errors, intervals, comparisons and the page."""

import json
import random
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uner_jax.evaluation.bootstrap import difference, interval
from uner_jax.evaluation.comparison import compare, print_comparison
from uner_jax.evaluation.errors import KINDS, error_report
from uner_jax.evaluation.page import write_page
from uner_jax.evaluation.paper import paper_scores
from uner_jax.evaluation.protocols import PROTOCOLS, score, scores
from uner_jax.evaluation.questions import Question, read_questions
from uner_jax.evaluation.report import dataset_report, mean_f1
from uner_jax.evaluation.rows import Row
from uner_jax.evaluation.run import _prediction
from uner_jax.evaluation.scorers import exact_span_score, partial_counts, published_score
from uner_jax.evaluation.settings import Asking, DataSet
from uner_jax.records import InputError, write_json, write_rows
from uner_jax.template import passage_turn, question_turn

BIO = {"crossner_ai": "test.txt", "wnut17": "test.annotated", "bc5cdr": "test.tsv", "broad_twitter": "test.conll"}
spans = st.frozensets(st.tuples(st.integers(0, 9), st.integers(1, 4)).map(lambda s: (s[0], s[0] + s[1])), max_size=5)


def row(text, entity_type, gold, prediction, where=None, name="set", identity="a"):
    prediction = prediction if isinstance(prediction, str) else json.dumps(prediction)
    question = Question.read(identity, name, passage_turn(text), question_turn(entity_type), json.dumps(gold), where)
    return Row(question, prediction, (0.5,) * 9)


def noisy(questions, seed, share=0.3):
    """Gold answers, some of which are emptied, cut or swapped for words of the passage."""
    rng = random.Random(seed)
    rows = []
    for question in questions:
        wrong = rng.choice(["[]", question.gold[:-1], json.dumps(rng.sample(question.text.split(), 1)), "?"])
        rows.append(Row(question, wrong if rng.random() < share else question.gold))
    return rows


@pytest.fixture(scope="module")
def tagged(shared_data):
    def read(name, **asking):
        return read_questions(DataSet(name, shared_data / "bio" / name / BIO[name]), Asking(**asking))

    return read


@pytest.mark.parametrize("name", BIO)
def test_the_spans_of_a_tagged_file_are_its_answers(name, tagged):
    questions = tagged(name)
    assert len({question.id for question in questions}) == len(questions)
    for question in questions:
        assert [question.text[start:end] for start, end in question.spans] == json.loads(question.gold)
        assert passage_turn(question.text) == question.passage_turn
    rows = [Row(question, question.gold) for question in questions]
    assert score("published", rows)["f1"] == pytest.approx(1, abs=1e-9) and score("correct", rows)["f1"] == 1.0
    # all that an answer can say is found; what is too much are occurrences that nobody tagged.
    exact = score("exact_span", rows)
    assert exact["recall"] == 1.0 and 0.9 < exact["precision"] < 1.0


def test_the_template_of_a_tagged_file(tagged):
    assert tagged("wnut17", passages=1, template="dataset")[0].passage_turn.startswith("Dataset: wnut17 \n Text: ")


def test_the_type_else_is_asked_and_counted_when_wanted(tagged):
    without, questions = tagged("crossner_ai"), tagged("crossner_ai", with_else=True)
    added = [question for question in questions if question.is_else]
    assert len(added) == 431 == len(questions) - len(without) and any(question.spans for question in added)
    silent_on_else = [Row(question, "[]" if question.is_else else question.gold) for question in questions]
    found = scores(silent_on_else)
    assert found["published"]["f1"] == pytest.approx(1, abs=1e-9) and found["published_with_else"]["recall"] < 0.95
    assert scores([Row(question, question.gold) for question in without])["published_with_else"] is None
    reports = {"a": {"published": {"f1": 0.5}, "published_with_else": None}}
    assert mean_f1(reports, "published_with_else") is None
    reports["b"] = {"published": {"f1": 0.9}, "published_with_else": {"f1": 0.7}}
    assert mean_f1(reports, "published_with_else") == pytest.approx(0.6)
    reports["nothing but else"] = {"published": None, "published_with_else": {"f1": 0.3}}
    assert mean_f1(reports, "published_with_else") == pytest.approx(0.5)
    assert mean_f1(reports, "published") == pytest.approx(0.7)


def test_each_kind_of_error_is_told_from_the_others():
    text = "Ada Lovelace met Ada Byron in New York City"
    rows = [
        row(text, "person", ["Ada Lovelace", "Ada Byron"], ["Ada Lovelace", "Byron", "Eve"]),
        row(text, "city", ["New York City"], ["Ada Byron"]),
        row(text, "state", [], ["New York", "met"]),
        row(text, "river", [], '["in'),
    ]
    found = error_report(rows)
    wrong_type = 2  # Ada Byron as a city, New York as a state
    invented = 2  # Eve and met
    assert found["kinds"] == dict(zip(KINDS, [1, wrong_type, invented, 0, 1], strict=True))
    assert found["confused_types"] == [
        {"gold": "city", "answered": "state", "count": 1},
        {"gold": "person", "answered": "city", "count": 1},
    ]
    assert error_report([row(text, "city", ["New York City"], [])])["kinds"]["missed"] == 1
    assert set(error_report(rows[::-1])["kinds"].items()) == set(found["kinds"].items())


def test_an_invented_entity_counts_once_an_answer():
    assert error_report([row("Ada left", "person", ["Ada"], ["Ada", *["Eve"] * 9])])["kinds"]["invented"] == 1


words = st.lists(st.sampled_from(["Ada", "Ada Corp", "Corp", "Ada Corp Oslo", "Oslo", "Eve"]), max_size=3)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["person", "firm", "city"]), words, words), max_size=6), st.randoms())
def test_no_error_goes_uncounted(answers, rng):
    rows = [row("Ada Corp Oslo", *one) for one in answers]
    report = error_report(rows)
    kinds = report["kinds"]
    wrong = sum(len(one.predicted_spans - one.gold_spans) + len(one.invented) for one in rows)
    lost = sum(len(one.gold_spans - one.predicted_spans) for one in rows)
    assert kinds["wrong_boundary"] + kinds["wrong_type"] + kinds["invented"] == wrong
    assert kinds["missed"] <= lost and (wrong > 0 or kinds["missed"] == lost)
    assert report == error_report(rng.sample(rows, len(rows)))


def test_a_question_that_comes_twice_is_judged_twice():
    once = [row("Ada left", "person", ["Ada"], [])]
    assert error_report(once * 3)["kinds"]["missed"] == 3
    mixed = [*once, row("Ada left", "person", ["Ada"], ["Ada"])]
    assert error_report(mixed)["kinds"]["missed"] == 1


@settings(deadline=None)
@given(spans, spans)
def test_half_right_lies_between_right_and_overlap(predicted, gold):
    exact = exact_span_score([{(*span, "x") for span in predicted}], [{(*span, "x") for span in gold}])
    counts = partial_counts(predicted, gold)
    equal = len(predicted & gold)
    assert equal <= counts.correct <= min(len(predicted), len(gold))
    assert (counts.predicted, counts.expected) == (len(predicted), len(gold))
    assert exact["f1"] == 0 or counts.correct >= equal
    touching = any(a < d and c < b for a, b in predicted for c, d in gold)
    assert (counts.correct > 0) == touching


def test_an_interval_narrows_with_the_square_root_of_the_passages(tagged):
    rows = noisy(tagged("crossner_ai"), seed=0)
    few = [one for one in rows if one.question.passage_turn in {r.question.passage_turn for r in rows[: 13 * 40]}]
    widths = []
    for some in (few, rows):
        low, high = interval(some, "published")
        assert low < score("published", some)["f1"] < high
        widths.append(high - low)
    assert 2 < widths[0] / widths[1] < 5  # sqrt(431 / 40) = 3.3
    assert interval(rows, "published") == interval(rows[::-1], "published")
    assert interval(rows, "published_with_else") is None


def test_an_interval_covers_the_whole_as_often_as_it_says(tagged):
    """95 of 100 intervals of samples hold the F1 of all: here of 60 samples at least 50."""
    rows = noisy(tagged("wnut17"), seed=1)
    groups = {}
    for one in rows:
        groups.setdefault(one.question.passage_turn, []).append(one)
    truth, rng = score("published", rows)["f1"], random.Random(0)
    held = 0
    for _ in range(60):
        sample = [one for turn in rng.sample(sorted(groups), 200) for one in groups[turn]]
        low, high = interval(sample, "published")
        held += low <= truth <= high
    assert held >= 50


def test_a_paired_difference_is_finer_than_two_intervals(tagged):
    rows = noisy(tagged("crossner_ai"), seed=2)
    better = [Row(one.question, one.question.gold) if number % 10 == 0 else one for number, one in enumerate(rows)]
    found = difference(rows, better, "published")
    low, high = found["interval"]
    assert 0 < low < found["difference"] < high and found["p"] <= 0.01
    wide = interval(rows, "published")
    assert high - low < (wide[1] - wide[0]) * 0.75
    same = difference(rows, rows, "published")
    assert same == {"difference": 0.0, "interval": [0.0, 0.0], "p": 1.0}
    back = difference(better, rows, "published")
    assert np.allclose([back["difference"], *back["interval"]], [-found["difference"], -high, -low])


def test_few_passages_prove_little():
    def rows(count, answer):
        return [row(f"Ada {number} left", "person", ["Ada"], answer) for number in range(count)]

    assert difference(rows(1, []), rows(1, ["Ada"]), "published")["p"] is None
    assert interval(rows(1, ["Ada"]), "published") is None
    for count, p in {2: 0.5, 5: 1 / 16, 20: 1 / 1000}.items():
        assert difference(rows(count, []), rows(count, ["Ada"]), "published")["p"] == p


def output_of(directory, rows, model="m"):
    write_rows(directory / "predictions.jsonl", map(_prediction, rows))
    write_json(directory / "report.json", {"model": model, "settings": {}})
    return directory


def test_two_runs_are_compared_by_question_in_any_order(tagged, tmp_path, capsys):
    rows = noisy(tagged("wnut17", passages=60), seed=3)
    rows += rows[:12]  # questions that come twice
    others = [Row(one.question, one.question.gold) if number % 3 else one for number, one in enumerate(rows)]
    first = output_of(tmp_path / "a", rows, "small <b>")
    second = output_of(tmp_path / "b", random.Random(0).sample(others, len(others))[5:])
    found = compare(first, second, tmp_path / "out")
    assert found["questions"] == len(rows) - 5 and found["left_out"] == 5
    assert found["datasets"].keys() == {"wnut17"} and found["datasets"]["wnut17"].keys() == PROTOCOLS.keys() - {
        "published_with_else"
    }
    assert found["datasets"]["wnut17"]["published"]["difference"] > 0
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == found
    page = (tmp_path / "out" / "index.html").read_text()
    assert "small &lt;b&gt;" in page and "small <b>" not in page
    print_comparison(found)
    out, error = capsys.readouterr()
    assert len(out.splitlines()) == 5 and error.splitlines()[-1].startswith("5 questions")
    same = compare(first, first, tmp_path / "same")
    assert same["left_out"] == 0 and same["datasets"]["wnut17"]["exact_span"]["difference"] == 0


def test_two_templates_of_the_same_passages_are_compared(tagged, tmp_path):
    runs = [
        output_of(tmp_path / template, noisy(tagged("wnut17", passages=60, template=template), seed=3, share=share))
        for template, share in {"zero-shot": 0.3, "dataset": 0.1}.items()
    ]
    found = compare(*runs, tmp_path / "out")
    same = compare(runs[0], output_of(tmp_path / "c", noisy(tagged("wnut17", passages=60), 3, 0.1)), tmp_path / "same")
    assert found["left_out"] == 0 and found["datasets"] == same["datasets"]


def test_one_passage_is_compared_without_an_interval(tmp_path, capsys):
    rows = [row("Ada left", "person", ["Ada"], answer) for answer in ([], ["Ada"])]
    runs = [output_of(tmp_path / name, [one]) for name, one in zip("ab", rows, strict=True)]
    found = compare(*runs, tmp_path / "out")
    assert found["datasets"]["set"]["correct"] == {"f1": [0.0, 1.0], "difference": 1.0, "interval": None, "p": None}
    print_comparison(found)
    assert capsys.readouterr().out.splitlines()[1].split()[-2:] == ["–", "–"]


def test_a_comparison_does_not_write_over_a_run(tagged, tmp_path):
    runs = [output_of(tmp_path / name, noisy(tagged("wnut17", passages=3), seed=0)) for name in "ab"]
    for run in runs:
        with pytest.raises(InputError, match="would write over"):
            compare(*runs, run / ".." / run.name)


def test_what_is_no_run_is_not_compared(tagged, tmp_path):
    run = output_of(tmp_path / "a", noisy(tagged("wnut17", passages=3), seed=0))
    with pytest.raises(InputError, match=r"b/predictions\.jsonl: no such file"):
        compare(run, tmp_path / "b", tmp_path / "out")
    write_rows(tmp_path / "b" / "predictions.jsonl", [{"id": "a", "gold": "[]"}])
    with pytest.raises(InputError, match=r"predictions\.jsonl, line 1: not a prediction"):
        compare(run, tmp_path / "b", tmp_path / "out")
    other = output_of(tmp_path / "c", noisy(tagged("bc5cdr", passages=3), seed=0))
    with pytest.raises(InputError, match="no question in common"):
        compare(run, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_papers_are_found_by_the_name_of_the_set():
    assert paper_scores("CrossNER_AI") == paper_scores("crossner-ai") != {}
    found = paper_scores("mit-restaurant")["UniNER-7B"]
    assert found == {"f1": 0.317, "source": "arXiv 2308.03279"}
    assert paper_scores("wnut17") == {}
    names = [
        "mit-movie",
        "mit-restaurant",
        *(f"CrossNER_{x}" for x in ("AI", "literature", "music", "politics", "science")),
    ]
    # the averages that the papers print, over their seven sets.
    for model, average in {"ChatGPT": 47.5, "UniNER-7B": 53.4, "UniNER-13B": 55.6, "GNER-LLaMA-7B": 66.1}.items():
        assert np.mean([100 * paper_scores(name)[model]["f1"] for name in names]) == pytest.approx(average, abs=0.06)


class Outline(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def report_of(rows_by_name):
    return {
        "model": "a <model>",
        "settings": {"dtype": "float32", "types": None},
        "seconds": 1.5,
        "questions_per_second": 3.0,
        "too_long": 0,
        "datasets": {name: dataset_report(name, rows) for name, rows in rows_by_name.items()},
    }


def test_the_page_shows_the_numbers_and_asks_nothing_of_the_network(tagged, tmp_path):
    rows = noisy(tagged("crossner_ai", with_else=True, passages=80), seed=4)
    hostile = [row("<script>alert(1)</script> Ada\0", "<img src=x>", [], ["Ada\ud800", "<script>"], name="<i>&")]
    report = report_of({"CrossNER_AI": rows, "<i>&": hostile})
    write_page(report, tmp_path / "a.html")
    write_page(json.loads(json.dumps(report)), tmp_path / "b.html")
    page = (tmp_path / "a.html").read_text()
    assert page == (tmp_path / "b.html").read_text()
    outline = Outline()
    outline.feed(page)
    assert "script" not in outline.tags and not any(name.startswith("on") for name, _ in outline.attributes)
    assert outline.tags.count("img") == 2
    links = [value for name, value in outline.attributes if name in ("src", "srcset", "href")]
    assert links and all(value.startswith("data:image/png") for value in links)
    text = " ".join(outline.text)
    for numbers in report["datasets"].values():
        assert all(f"{100 * numbers[name]['f1']:.1f}" in text for name in PROTOCOLS if numbers[name])
    assert "53.5" in text and "published, arXiv 2308.03279" in text
    assert all(kind.replace("_", " ") in text for kind in KINDS)


def test_the_report_of_a_set_counts_what_was_answered(tagged):
    rows = noisy(tagged("broad_twitter", passages=200), seed=5)
    report = dataset_report("broad_twitter", rows)
    emptiness = report["emptiness"]
    negative = [one for one in rows if one.question.gold == "[]"]
    assert emptiness["without_entities"] == len(negative)
    assert emptiness["without_entities_answered"] == sum(one.prediction not in ("[]", "[", "?") for one in negative)
    assert emptiness["with_entities"] + emptiness["without_entities"] == report["questions"] == len(rows)
    assert report["errors"]["kinds"]["unparsable"] == sum(not one.prediction.endswith("]") for one in rows)
    by_type = {line["type"]: line for line in report["types"]}
    for name, line in by_type.items():
        group = [one for one in rows if one.question.type == name]
        assert line["questions"] == len(group)
        predictions, golds = [one.prediction for one in group], [one.question.gold for one in group]
        assert line["published"] == published_score(predictions, golds)
    assert report["gold_offsets"] and not dataset_report("x", [row("Ada", "person", ["Ada"], [])])["gold_offsets"]
    assert re.fullmatch(r"[\d.]+", str(report["empty_answers"]))
