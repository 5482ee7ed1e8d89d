"""A mixture takes of each set what its limit and weight say, and sees where sets disagree."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import bio, mixture
from data_prep.mixing.draw import ConversationSet
from uner_jax.command import run_command
from uner_jax.records import write_rows
from uner_jax.template import conversation_of, passage_turn

SETS = {"crossner_ai": "train.txt", "broad_twitter": "train.conll", "bc5cdr": "train.tsv", "wnut17": "train.conll"}


def leave(command, arguments):
    with pytest.raises(SystemExit) as left:
        run_command(command.main, [str(argument) for argument in arguments])
    return left.value.code


@pytest.fixture(scope="module")
def real(shared_data, tmp_path_factory) -> dict[str, Path]:
    """Conversations of four annotated sets, with the dataset-specific template."""
    folder = tmp_path_factory.mktemp("sets")
    for name, file in SETS.items():
        arguments = ["--input", shared_data / "bio" / name / file, "--dataset", name, "--limit", 200]
        assert leave(bio, [*arguments, "--output", folder / f"{name}.jsonl"]) == 0
    return {name: folder / f"{name}.jsonl" for name in SETS}


def mix(output, sets, *options):
    assert leave(mixture, ["--conversations", *sets, "--output", output, *options]) == 0
    return [json.loads(line) for line in output.read_text().splitlines()]


def asked(name, text, dataset=None, **answers):
    return conversation_of(name, passage_turn(text, dataset), answers.items())


@given(st.integers(0, 300), st.none() | st.integers(1, 400), st.floats(0, 4), st.integers(0, 5))
def test_what_is_taken_of_a_set(count, limit, weight, seed):
    one = ConversationSet("a", Path("a"), limit, weight)
    taken = one.taken(count, seed)
    drawn = count if limit is None else min(count, limit)
    assert set(taken) <= set(range(count)) and len(taken) <= drawn
    assert abs(sum(taken.values()) - weight * drawn) <= 0.5
    assert set(taken.values()) <= {int(weight), int(weight) + 1} - {0}
    assert taken == one.taken(count, seed)


def test_a_limit_draws_uniformly():
    times = Counter()
    for seed in range(600):
        times.update(ConversationSet("a", Path("a"), 30, 1.5).taken(100, seed))
    # each place is drawn with probability 0.3, and then taken 1.5 times: a standard deviation is about 17.
    assert all(270 - 90 < times[place] < 270 + 90 for place in range(100))


def test_real_sets_are_mixed_as_told(real, tmp_path):
    rows = mix(tmp_path / "out.jsonl", real.values(), "--limit", 150, "--weights", "wnut17=2.5", "bc5cdr=0")
    found = Counter(row["id"].rsplit("_", 1)[0] for row in rows)
    assert found == {"crossner_ai": 100, "broad_twitter": 150, "wnut17": 375}
    assert len({row["id"] for row in rows}) == len(rows)
    known = {row["id"]: row for path in real.values() for row in map(json.loads, path.read_text().splitlines())}
    assert all(row["conversations"] == known[row["id"].partition("@")[0]]["conversations"] for row in rows)
    assert [row["id"] for row in rows] == [
        row["id"]
        for row in mix(tmp_path / "again.jsonl", real.values(), "--limit", 150, "--weights", "wnut17=2.5", "bc5cdr=0")
    ]
    alone = mix(tmp_path / "alone.jsonl", [real["broad_twitter"]], "--limit", 150)
    assert alone == [row for row in rows if row["id"].startswith("broad_twitter")]


def test_where_real_sets_disagree(real, tmp_path, capsys):
    mix(tmp_path / "out.jsonl", real.values(), "--report", tmp_path / "report")
    tables = json.loads((tmp_path / "report" / "tables.json").read_text())
    assert all(row["named_in_prompt"] for row in tables["sets"]) and "learns both" not in capsys.readouterr().err
    shared = {row["type"]: set(row["sets"]) for row in tables["same_name"]}
    assert shared["person"] == {"crossner_ai", "broad_twitter", "wnut17"} and "disease" not in shared
    countries = [
        row
        for row in tables["different_types"]
        if {row["first"]["type"], row["second"]["type"]} == {"country", "location"}
    ]
    assert countries and all(row["conflict"] for row in countries)  # CrossNER has both types
    page = (tmp_path / "report" / "index.html").read_text()
    assert "country (crossner_ai)" in page and "http:" not in page and "https:" not in page


def test_disagreements_are_told_apart(tmp_path, capsys):
    same = "Ada saw Paris"
    write_rows(tmp_path / "a.jsonl", [asked("a1", same, person=["Ada"], city=["Paris"]), asked("a2", "<b>x", city=[])])
    write_rows(
        tmp_path / "b.jsonl", [asked("b1", same, person=[], place=["Paris"]), asked("b2", "Oslo", place=["Oslo"])]
    )
    mix(tmp_path / "out.jsonl", [tmp_path / "a.jsonl", f"second={tmp_path / 'b.jsonl'}"], "--report", tmp_path / "r")
    tables = json.loads((tmp_path / "r" / "tables.json").read_text())
    assert [(row["set"], row["written"]) for row in tables["sets"]] == [("a", 2), ("second", 2)]
    assert tables["same_name"] == [{"type": "person", "sets": {"a": 1, "second": 0}, "common_mentions": 0}]
    (different,) = tables["different_types"]
    assert different["examples"] == ["paris"] and not different["conflict"]
    (opposite,) = tables["opposite_answers"]
    assert opposite["type"] == "person" and opposite["passages"] == 1
    assert opposite["examples"] == [{"text": same, "answers": {"a": ["Ada"], "second": []}}]
    assert "learns both" in capsys.readouterr().err


def test_what_does_not_fit_into_the_tables_is_counted(tmp_path, capsys):
    for name, answer in {"a": ["Ada"], "b": []}.items():
        rows = [asked(f"{name}{n}", f"Ada {n}", **{f"type {n}": answer, f"{name} {n}": ["Ada"]}) for n in range(250)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    mix(tmp_path / "out.jsonl", [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], "--report", tmp_path / "r")
    tables = json.loads((tmp_path / "r" / "tables.json").read_text())
    # each type of both sets that a has mentions of, with each that b alone has.
    assert tables["counts"] == {"same_name": 250, "conflicts": 250 * 250, "opposite_answers": 250}
    assert "250 types stand in several sets; 62,500 pairs" in capsys.readouterr().err
    page = (tmp_path / "r" / "index.html").read_text()
    assert "<b>62,500</b> pairs" in page and "<b>250</b> opposite" in page


def test_a_set_of_which_nothing_is_taken_teaches_nothing(tmp_path, capsys):
    write_rows(tmp_path / "a.jsonl", [asked("1", "Ada saw", "a", person=["Ada"])])
    write_rows(tmp_path / "b.jsonl", [asked("1", "Ada saw", "b", person=[])])
    write_rows(tmp_path / "c.jsonl", [asked("1", "Ada saw", person=["Ada"])])
    files = [tmp_path / f"{name}.jsonl" for name in "abc"]
    mix(tmp_path / "out.jsonl", files, "--weights", "c=0")
    assert "learns both" not in capsys.readouterr().err
    mix(tmp_path / "out.jsonl", files)
    assert "learns both" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--weights", "b=2"], "expected NAME=WEIGHT with a name of a"),
        (["--weights", "a=lots"], "expected a number of 0 to 1000"),
        (["--weights", "a=-1"], "expected a number of 0 to 1000"),
        (["--limit", "0"], "--limit must be at least 1"),
        (["--output", "INPUT"], "would write over one of --conversations"),
        (["--conversations", "INPUT", "INPUT"], "more than one set of the name a"),
        (["--conversations", "absent.jsonl"], "no such file"),
        (["--conversations", "BROKEN"], "line 2: "),
    ],
)
def test_wrong_arguments_are_told_and_nothing_is_written(options, words, tmp_path, capsys):
    rows = [asked("a1", "Ada", person=["Ada"]), {"id": 3}]
    write_rows(tmp_path / "a.jsonl", rows[:1])
    write_rows(tmp_path / "broken.jsonl", rows)
    before = (tmp_path / "a.jsonl").read_bytes()
    paths = {"INPUT": tmp_path / "a.jsonl", "BROKEN": tmp_path / "broken.jsonl"}
    arguments = {"--conversations": [tmp_path / "a.jsonl"], "--output": [tmp_path / "out.jsonl"]}
    arguments |= {options[0]: [paths.get(option, option) for option in options[1:]]}
    flat = [part for name, values in arguments.items() for part in (name, *values)]
    assert leave(mixture, flat) == 1 and words in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists() and (tmp_path / "a.jsonl").read_bytes() == before
