"""A benchmark run asks every question once, and scores what was answered, whatever the order."""

import dataclasses
import json
import random
import re
from pathlib import Path

import pytest
from tiny_model import blank_model

from uner_jax.evaluation import answering
from uner_jax.evaluation.protocols import PROTOCOLS
from uner_jax.evaluation.questions import Question, read_questions
from uner_jax.evaluation.run import evaluate, print_report
from uner_jax.evaluation.scorers import correct_score, exact_span_score, published_score
from uner_jax.evaluation.settings import Answering, Asking, DataSet
from uner_jax.extraction.engine import Engine, Generation
from uner_jax.model.config import LlamaConfig
from uner_jax.records import InputError, write_rows
from uner_jax.template import encode_prompt

CONFIG = LlamaConfig(
    vocab_size=512,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    max_position_embeddings=2048,
)
# measured with grep and by hand: one question a row, and one passage of CrossNER AI is there twice.
SETS = {"CrossNER_AI": (5603, 430, 13), "mit-restaurant": (12160, 1520, 8)}


@pytest.fixture(scope="session")
def files(shared_data) -> dict[str, Path]:
    return {name: shared_data / "eval" / f"{name}.json" for name in SETS}


def sets(*paths):
    return [DataSet(path.stem, path) for path in paths]


def read(path, passages=None):
    return read_questions(DataSet(path.stem, path), Asking(passages))


@pytest.fixture
def answered(tok512, monkeypatch):
    """Replace the model by a function from (place, passage, question) to an answer; gives the prompts it saw."""
    prompts = []
    monkeypatch.setattr(answering, "load_model", lambda path, dtype: blank_model(CONFIG))
    monkeypatch.setattr(answering, "load_model_tokenizer", lambda path: tok512)
    monkeypatch.setattr(answering, "model_digest", str)

    def answer_with(function):
        def answers(self, requests):
            for place in random.Random(0).sample(range(len(requests)), len(requests)):
                request = requests[place]
                prompts.append(request.context + request.question)
                context, question = tok512.decode(request.context), tok512.decode(request.question)
                (passage,) = re.findall(r"USER: (Text: .*) ASSISTANT: I've read", context, re.DOTALL)
                (asked,) = re.findall(r"^ ?USER: (.*) ASSISTANT:$", question)
                ids = tuple(tok512.encode(function(place, passage, asked)))
                yield place, Generation(ids, (-0.1,) * len(ids), True)

        monkeypatch.setattr(Engine, "generate", answers)
        return prompts

    return answer_with


def conversation(name: str, passage: str, *pairs: tuple[str, str]) -> dict:
    turns = [("human", f"Text: {passage}"), ("gpt", "I've read this text.")]
    for entity_type, gold in pairs:
        turns += [("human", f"What describes {entity_type} in the text?"), ("gpt", gold)]
    return {"id": name, "conversations": [{"from": who, "value": value} for who, value in turns]}


ROWS = [
    conversation("a", "Ada met Bob. Ada left.", ("person", '["Ada", "Bob"]'), ("city", "[]")),
    conversation("b", "Text in London", ("city", '["London"]')),
    conversation("a", "Ada met Bob. Ada left.", ("person", '["Ada", "Bob"]')),  # the same question again
    conversation("c", "东京 and 😀", ("city", json.dumps(["东京"])), ("smiley", '["😀"]'), ("x", '["😀"]')),
]
ANSWERS = {
    ("Ada met Bob. Ada left.", "person"): '["Ada", "Eve"]',
    ("Ada met Bob. Ada left.", "city"): '["left"]',
    ("Text in London", "city"): '["London", "Text"]',
    ("东京 and 😀", "city"): '["东京"',
    ("东京 and 😀", "smiley"): "[]",
    ("东京 and 😀", "x"): '["😀"]',
}


def known(place, passage, asked):
    return ANSWERS[passage.removeprefix("Text: "), asked.removeprefix("What describes ").removesuffix(" in the text?")]


@pytest.mark.parametrize("name", SETS)
def test_every_question_of_a_file_is_read(name, files):
    count, passages, types = SETS[name]
    text = files[name].read_text()
    assert text.count('"value": "What describes ') == count
    questions = read(files[name])
    assert len(questions) == count and {question.dataset for question in questions} == {name}
    assert len({question.passage_turn for question in questions}) == passages
    assert len({question.question for question in questions}) == types
    turns = [(row["id"], [turn["value"] for turn in row["conversations"]]) for row in json.loads(text)]
    assert [dataclasses.astuple(question) for question in questions] == [
        (identity, name, *values, values[0].removeprefix("Text: "), None) for identity, values in turns
    ]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("passages", [1, 7, 400])
def test_a_limit_counts_passages(name, passages, files):
    whole = read(files[name])
    first = list(dict.fromkeys(question.passage_turn for question in whole))[:passages]
    assert read(files[name], passages) == [q for q in whole if q.passage_turn in set(first)]


def test_a_limit_takes_all_questions_of_a_passage_wherever_they_stand(tmp_path):
    write_rows(tmp_path / "mixed.jsonl", ROWS)
    assert [question.id for question in read(tmp_path / "mixed.jsonl", 1)] == ["a", "a", "a"]
    assert [question.id for question in read(tmp_path / "mixed.jsonl", 2)] == ["a", "a", "b", "a"]
    assert len(read(tmp_path / "mixed.jsonl", 99)) == len(read(tmp_path / "mixed.jsonl")) == 7


def test_a_row_may_have_many_questions(tmp_path):
    write_rows(tmp_path / "set.jsonl", ROWS[3:])
    turn, acknowledged = "Text: 东京 and 😀", "I've read this text."
    asked = [("city", json.dumps(["东京"])), ("smiley", '["😀"]'), ("x", '["😀"]')]
    assert read(tmp_path / "set.jsonl") == [
        Question("c", "set", turn, acknowledged, f"What describes {entity_type} in the text?", gold, "东京 and 😀")
        for entity_type, gold in asked
    ]


def test_right_answers_have_the_full_score(files, answered, tmp_path):
    questions = read(files["CrossNER_AI"], 60)
    golds = [question.gold for question in questions]
    answered(lambda place, passage, asked: golds[place])
    report = evaluate("m", sets(files["CrossNER_AI"]), tmp_path / "out", Asking(60))
    scores = report["datasets"]["CrossNER_AI"]
    assert scores["published"] == published_score(golds, golds)
    # the published protocol cannot give more, for its smoothing; the others can.
    assert scores["published"]["f1"] == pytest.approx(1, abs=1e-9) and scores["published"]["f1"] < 1
    assert scores["correct"] == correct_score(golds, golds) == dict.fromkeys(("precision", "recall", "f1"), 1.0)
    assert scores["exact_span"] == dict.fromkeys(("precision", "recall", "f1"), 1.0)
    assert (scores["questions"], scores["passages"]) == (len(questions), 60)
    assert scores["empty_answers"] == golds.count("[]") / len(golds)


def test_the_prompts_are_those_of_the_template(answered, tok512, tmp_path):
    write_rows(tmp_path / "set.jsonl", ROWS)
    prompts = answered(known)
    evaluate("m", sets(tmp_path / "set.jsonl"), tmp_path / "out")
    wanted = [tuple(encode_prompt(*key, tok512)) for key in ANSWERS]
    assert sorted(prompts) == sorted([*wanted, wanted[0]])


def test_what_was_answered_is_written_and_scored(answered, tmp_path):
    write_rows(tmp_path / "set.jsonl", ROWS)
    answered(known)
    report = evaluate(
        "the model", sets(tmp_path / "set.jsonl"), tmp_path / "out", Asking(), Answering("bfloat16", 4, 99)
    )
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    predictions = [json.loads(line) for line in lines]
    questions = read(tmp_path / "set.jsonl")
    places = {number: list(ANSWERS)[number if number < 3 else 0 if number == 3 else number - 1] for number in range(7)}
    assert predictions == [
        {
            **{"id": q.id, "dataset": "set", "passage": q.passage_turn, "question": q.question, "gold": q.gold},
            **{"spans": None, "prediction": ANSWERS[places[number]], "scores": predictions[number]["scores"]},
        }
        for number, q in enumerate(questions)
    ]
    assert [len(p["scores"]) for p in predictions] == [2, 1, 2, 2, 1, 0, 1]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert (
        report["model"] == "the model" and report["settings"].items() >= {"dtype": "bfloat16", "passages": None}.items()
    )
    assert report["protocols"].keys() == PROTOCOLS.keys() == scores_of(report).keys()
    (scores,) = report["datasets"].values()
    answers, golds = ([p[name] for p in predictions] for name in ("prediction", "gold"))
    assert scores["published"] == published_score(answers, golds)
    assert scores["correct"] == correct_score(answers, golds)
    # in the passages: the word Text that begins every prompt is no mention.
    person = {(0, 3, "p"), (13, 16, "p")}
    spans = [person, {(17, 21, "c")}, {(8, 14, "c"), (0, 4, "c")}, person, {(0, 2, "c")}, set(), {(7, 8, "x")}]
    truth = [person | {(8, 11, "p")}, set(), {(8, 14, "c")}, person | {(8, 11, "p")}]
    truth += [{(0, 2, "c")}, {(7, 8, "s")}, {(7, 8, "x")}]
    assert scores["exact_span"] == exact_span_score(spans, truth)
    assert (scores["questions"], scores["passages"], scores["empty_answers"]) == (7, 3, 1 / 7)


def scores_of(report: dict) -> dict:
    (scores,) = report["datasets"].values()
    return {name: scores[name] for name in PROTOCOLS}


def test_the_order_of_a_file_does_not_change_its_scores(answered, tmp_path, files):
    rows = json.loads(files["mit-restaurant"].read_text())[:400]
    answered(lambda place, passage, asked: json.dumps([passage[6:][: len(asked) % 9], passage.split()[-1]]))
    for name in ("whole", "mixed"):
        (tmp_path / name).mkdir()
    write_rows(tmp_path / "whole" / "set.jsonl", rows)
    write_rows(tmp_path / "mixed" / "set.jsonl", random.Random(1).sample(rows, len(rows)))
    whole, mixed = (
        evaluate("m", sets(tmp_path / name / "set.jsonl"), tmp_path / name / "out") for name in ("whole", "mixed")
    )
    assert whole["datasets"] == mixed["datasets"]
    assert 0 < whole["datasets"]["set"]["published"]["f1"] < 1


def test_each_file_is_a_data_set(answered, tmp_path, capsys):
    write_rows(tmp_path / "one.jsonl", ROWS[:2])
    write_rows(tmp_path / "two.jsonl", ROWS[2:])
    answered(known)
    report = evaluate("m", sets(tmp_path / "one.jsonl", tmp_path / "two.jsonl"), tmp_path / "out")
    for name in ("one", "two"):
        alone = evaluate("m", sets(tmp_path / f"{name}.jsonl"), tmp_path / "alone" / name)
        assert alone["datasets"] == {name: report["datasets"][name]}
    capsys.readouterr()
    print_report(report)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["published", "correct"] and [line.split()[0] for line in lines] == [
        "one",
        "two",
        "average",
    ]
    f1 = [report["datasets"][name]["published"]["f1"] for name in ("one", "two")]
    assert [line.split()[1] for line in lines] == [f"{100 * score:.1f}" for score in (*f1, sum(f1) / 2)]


def test_two_files_of_one_name_are_refused(answered, tmp_path):
    answered(known)
    (tmp_path / "more").mkdir()
    paths = [tmp_path / "set.jsonl", tmp_path / "more" / "set.json"]
    for path in paths:
        write_rows(path, ROWS)
    with pytest.raises(InputError, match=f"{paths[0]}, {paths[1]}: .*NAME=PATH"):
        evaluate("m", sets(*paths), tmp_path / "out")
    assert not (tmp_path / "out").exists()


BROKEN = {
    "no object": ([], "line 2: a conversation must be a JSON object, found list"),
    "no id": ({"conversations": ROWS[0]["conversations"]}, 'line 2: "id" must be a string, found nothing'),
    "no turns": ({"id": "a"}, 'line 2: "conversations" must be a list of turns, found nothing'),
    "no answer": ({"id": "a", "conversations": ROWS[0]["conversations"][:5]}, "line 2: 5 turns; expected passage"),
    "no passage": (conversation("a", "", ("x", "[]")), "line 2: turn 0 must hold a passage"),
    "not in turn": ({"id": "a", "conversations": ROWS[0]["conversations"][1:]}, "line 2: turn 0 is from 'gpt'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_names_its_place(name, tmp_path):
    row, words = BROKEN[name]
    path = tmp_path / "set.jsonl"
    write_rows(path, [ROWS[0], row, ROWS[1]])
    with pytest.raises(InputError, match=f"^{re.escape(f'{path}, {words}')}"):
        read(path)


def test_half_a_character_names_its_place(tmp_path):
    path = tmp_path / "set.jsonl"
    write_rows(path, [ROWS[0], conversation("b", "Ada \ud83d met", ("person", "[]"))])
    with pytest.raises(InputError, match=r"set\.jsonl, line 2: turn 0 has a lone surrogate"):
        read(path)


@pytest.mark.parametrize("passages", [0, -1])
def test_a_limit_is_at_least_one(passages, tmp_path):
    write_rows(tmp_path / "set.jsonl", ROWS)
    with pytest.raises(InputError, match=f"--passages must be at least 1, found {passages}"):
        read(tmp_path / "set.jsonl", passages)


def test_a_tagged_file_without_types_says_so(tmp_path):
    path = tmp_path / "set.conll"
    path.write_text("Ada O\nleft O\n")
    with pytest.raises(InputError, match=r"no entities, so there is no type to ask for"):
        read(path)
    path.write_text("Ada B-MISC\nleft O\n")
    with pytest.raises(InputError, match=r"no entities but of the type MISC \(--with-else"):
        read(path)
    assert [one.type for one in read_questions(DataSet("set", path), Asking(with_else=True))] == ["else"]


def test_a_file_without_questions(tmp_path):
    (tmp_path / "set.jsonl").touch()
    with pytest.raises(InputError, match=r"set\.jsonl: has no questions"):
        read(tmp_path / "set.jsonl")
    with pytest.raises(InputError, match=r"absent\.json: no such file"):
        read(tmp_path / "absent.json")


def test_a_killed_run_goes_on_with_what_it_has(answered, tmp_path):
    write_rows(tmp_path / "set.jsonl", ROWS)
    prompts = answered(known)
    whole = evaluate("m", sets(tmp_path / "set.jsonl"), tmp_path / "whole")

    def dying(place, passage, asked):
        if len(prompts) == dies_at:
            raise KeyboardInterrupt
        return known(place, passage, asked)

    answered(dying)
    for count in (2, 7):
        output = tmp_path / f"killed{count}"
        prompts.clear()
        dies_at = count
        with pytest.raises(KeyboardInterrupt):
            evaluate("m", sets(tmp_path / "set.jsonl"), output)
        assert not (output / "report.json").exists()
        with (output / "answers.jsonl").open("a") as file:
            file.write('{"place": 3, "predi')  # a line that was being written
        prompts.clear()
        dies_at = None
        again = evaluate("m", sets(tmp_path / "set.jsonl"), output)
        assert len(prompts) == 7 - (count - 1) and again["datasets"] == whole["datasets"]
        name = "predictions.jsonl"
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        prompts.clear()
        assert evaluate("m", sets(tmp_path / "set.jsonl"), output)["datasets"] == whole["datasets"] and not prompts


def test_the_answers_of_another_run_are_not_taken(answered, tmp_path):
    write_rows(tmp_path / "set.jsonl", ROWS)
    prompts = answered(known)
    data, output = sets(tmp_path / "set.jsonl"), tmp_path / "out"
    evaluate("m", data, output)
    before = (output / "answers.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"answers\.jsonl: answers of another run: model .*--no-resume"):
        evaluate("other", data, output)
    with pytest.raises(InputError, match=r"another run: max_new_tokens \(256, now 9\)"):
        evaluate("m", data, output, answering=Answering(max_new_tokens=9))
    with pytest.raises(InputError, match="another run: questions"):
        evaluate("m", data, output, Asking(passages=1))
    assert (output / "answers.jsonl").read_bytes() == before
    prompts.clear()
    evaluate("other", data, output, answering=Answering(batch_size=3), resume=False)
    assert len(prompts) == 7


@pytest.mark.parametrize(
    "lines",
    [
        *(["[]"], ['"x"'], ['{"a": 1}'], ["[" * 10**5], ["HEAD", "{}"], ["HEAD", "5"], ["HEAD", "nonsense"]),
        ["HEAD", '{"place": 0, "prediction": 3, "scores": [], "too_long": false, "seconds": 1.0}'],
    ],
)
def test_damaged_answers_are_told_and_kept(lines, answered, tmp_path):
    write_rows(tmp_path / "set.jsonl", ROWS)
    answered(known)
    data, log = sets(tmp_path / "set.jsonl"), tmp_path / "out" / "answers.jsonl"
    evaluate("m", data, tmp_path / "out")
    damaged = "".join(f"{line}\n" for line in lines).replace("HEAD", log.read_text().splitlines()[0])
    log.write_text(damaged)
    with pytest.raises(InputError, match=rf"answers\.jsonl: is damaged.*: line {len(lines)}: .*--no-resume"):
        evaluate("m", data, tmp_path / "out")
    assert log.read_text() == damaged


def test_a_run_that_ended_before_its_first_answer_is_in_nobodys_way(answered, tmp_path):
    write_rows(tmp_path / "set.jsonl", ROWS)
    answered(known)
    data = sets(tmp_path / "set.jsonl")
    with pytest.raises(InputError, match="batch size 0"):
        evaluate("m", data, tmp_path / "out", answering=Answering(batch_size=0, max_new_tokens=7))
    assert evaluate("m", data, tmp_path / "out")["settings"]["max_new_tokens"] == 256


def test_two_runs_at_once_do_not_mix_their_answers(answered, tmp_path):
    write_rows(tmp_path / "set.jsonl", ROWS)
    data = sets(tmp_path / "set.jsonl")

    def meanwhile(place, passage, asked):
        for resume in (True, False):
            with pytest.raises(InputError, match=r"out: another run writes .* --output"):
                evaluate("other", data, tmp_path / "out", resume=resume)
        return known(place, passage, asked)

    answered(meanwhile)
    whole = evaluate("m", data, tmp_path / "out")
    prompts = answered(known)
    prompts.clear()
    assert evaluate("m", data, tmp_path / "out")["datasets"] == whole["datasets"] and not prompts


def test_a_question_without_room_for_an_answer_is_counted(answered, tmp_path):
    rows = [*ROWS, conversation("long", "word " * 3000, ("person", "[]"), ("city", "[]"))]
    write_rows(tmp_path / "set.jsonl", rows)
    prompts = answered(known)
    report = evaluate("m", sets(tmp_path / "set.jsonl"), tmp_path / "out")
    assert report["too_long"] == 2 and len(prompts) == 7
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["prediction"] for line in lines[-2:]] == ["", ""]


def test_the_report_stands_where_there_is_nothing_to_calibrate_by(answered, tmp_path):
    write_rows(tmp_path / "set.jsonl", ROWS[1:2])
    answered(lambda place, passage, asked: '["London"]')
    with pytest.raises(InputError, match="1 items, 1 of them right: calibration needs right and wrong ones"):
        evaluate("m", sets(tmp_path / "set.jsonl"), tmp_path / "out", calibrate=True)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["datasets"]["set"]["correct"]["f1"] == 1
    assert (tmp_path / "out" / "index.html").is_file() and not (tmp_path / "out" / "calibration.json").exists()


@pytest.mark.parametrize("name", ["a$x_{$b", "数据", "<b>", "caf\udce9"])
def test_a_file_may_have_any_name(name, answered, tmp_path, capsys):
    path = tmp_path / f"{name}.jsonl"
    write_rows(path, ROWS)
    answered(known)
    report = evaluate("m", [DataSet.parse(str(path))], tmp_path / "out")
    print_report(report)
    (found,) = report["datasets"]
    assert found in capsys.readouterr().out.encode().decode()


def test_a_set_may_have_a_name_of_its_own(answered, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_rows(tmp_path / folder / "test.jsonl", ROWS)
    answered(known)
    data = [DataSet.parse(f"{name}={tmp_path / name / 'test.jsonl'}") for name in ("one", "two")]
    assert list(evaluate("m", data, tmp_path / "out")["datasets"]) == ["one", "two"]
    odd = tmp_path / "a=b.jsonl"
    write_rows(odd, ROWS)
    assert DataSet.parse(str(odd)) == DataSet("a=b", odd)
