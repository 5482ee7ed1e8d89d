"""Labelling through a real server that misbehaves: nothing is lost, nothing is paid twice, nothing goes over budget."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_teacher import FakeTeacher, Fault

from data_prep import conversations, label
from data_prep.teacher import batch
from data_prep.teacher.pace import Pace
from uner_jax.command import run_command
from uner_jax.records import read_rows, write_rows

ROOT = Path(__file__).parent.parent
KEY = "sk-secret-0123456789"
MODEL = "gpt-4o-mini"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr("data_prep.teacher.client.FIRST_WAIT", 0.01)


@pytest.fixture(scope="session")
def recorded(shared_data) -> list[tuple[dict, str]]:
    """Real passages with the teacher's real answers, written in the form that the prompt asks for."""
    found: dict[str, list[tuple[str, str]]] = {}
    for _, row in read_rows(shared_data / "teacher" / "pile_ner_sample.jsonl"):
        turns = [turn["value"] for turn in row["conversations"]]
        pairs = found.setdefault(turns[0].removeprefix("Text: "), [])
        for question, answer in zip(turns[2::2], turns[3::2], strict=True):
            name = question.removeprefix("What describes ").removesuffix(" in the text?")
            pairs += [(span, name) for span in json.loads(answer)]
    return [({"id": f"p{n}", "text": text}, repr(pairs)) for n, (text, pairs) in enumerate(found.items())]


@pytest.fixture
def few(recorded, tmp_path):
    """Sixty of them as a file, and what a server answers to their prompts."""
    chosen = recorded[:60]
    write_rows(tmp_path / "passages.jsonl", [passage for passage, _ in chosen])
    return chosen


def answers_of(chosen):
    """The function from a user message to the recorded answer."""
    known = {passage["text"]: answer for passage, answer in chosen}
    return lambda message: known[message.split("\n\nPassage: ", 1)[1]]


def arguments(tmp_path, server, *more, output="labels.jsonl"):
    place = ["--passages", tmp_path / "passages.jsonl", "--output", tmp_path / output]
    url = ["--base-url", server.url] if server else []
    return [str(word) for word in [*place, "--model", MODEL, *url, "--timeout", 5, *more]]


def run(tmp_path, server, *more, output="labels.jsonl") -> int:
    with pytest.raises(SystemExit) as left:
        run_command(label.main, arguments(tmp_path, server, *more, output=output))
    return left.value.code


def labels(tmp_path, output="labels.jsonl"):
    return [row for _, row in read_rows(tmp_path / output)]


def rejected(tmp_path, output="labels.jsonl"):
    return [row for _, row in read_rows(tmp_path / f"{output}.rejected.jsonl")]


def assert_all_labelled(tmp_path, chosen):
    rows = labels(tmp_path)
    assert [row["id"] for row in rows] == [passage["id"] for passage, _ in chosen]
    for row, (passage, _) in zip(rows, chosen, strict=True):
        assert row["text"] == passage["text"]
        assert all(entity["text"] in passage["text"] for entity in row["entities"])
        assert row["teacher"]["variant"] == "type" and row["teacher"]["prompt_tokens"] > 0
    assert sum(len(row["entities"]) for row in rows) > 40


MODES = ["async", "batch"]


@pytest.mark.parametrize("mode", MODES)
def test_every_passage_is_asked_once_and_labelled_in_its_place(few, tmp_path, capsys, mode):
    with FakeTeacher(answers_of(few)) as server:
        assert run(tmp_path, server, "--mode", mode, "--poll", 0.01) == 0
        assert set(server.answered.values()) == {1} and len(server.answered) == 60
        assert_all_labelled(tmp_path, few)
        first = (tmp_path / "labels.jsonl").read_bytes()
        # a second run has nothing to ask, and writes the same.
        assert run(tmp_path, server, "--mode", mode, "--poll", 0.01) == 0
        assert server.answered.total() == 60
    assert (tmp_path / "labels.jsonl").read_bytes() == first
    assert "60 labels from 60 passages" in capsys.readouterr().err


def test_the_published_prompt_goes_out_and_what_the_user_gave(few, tmp_path):
    seen = []
    with FakeTeacher(lambda message: seen.append(message) or "[]") as server:
        assert run(tmp_path, server) == 0
    assert len(seen) == 60 and all(
        message.startswith("Given a passage, your task is to extract all entities and identify their entity types.")
        for message in seen
    )
    assert {message.split("Passage: ", 1)[1] for message in seen} == {passage["text"] for passage, _ in few}


PASSING = [
    Fault("rate_limit", times=5, retry_after=0.05),
    Fault("rate_limit", times=5),
    Fault("rate_limit", times=3, retry_after=0.05, retry_form="ms"),
    Fault("server_error", times=5, status=500),
    Fault("server_error", times=5, status=502),
    Fault("server_error", times=2, status=503, retry_after=0.02),
    Fault("cut_body", times=5),
    Fault("reset", times=5),
    Fault("empty_choices", times=5),
    Fault("null_content", times=2),
    Fault("wrong_json", times=5),
    Fault("wrong_shape", times=5),
    Fault("redirect", times=3),
    Fault("gzip", times=3),
    Fault("duplicate_headers", times=3),
    Fault("no_usage", times=3),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.retry_after}")
def test_what_passes_is_tried_again(few, tmp_path, fault):
    with FakeTeacher(answers_of(few), [fault]) as server:
        assert run(tmp_path, server) == 0
        assert set(server.answered.values()) == {1} and len(server.answered) == 60
    rows = labels(tmp_path)
    assert [row["id"] for row in rows] == [passage["id"] for passage, _ in few]


def test_all_of_it_at_once(few, tmp_path):
    faults = [
        Fault(kind, probability=0.08)
        for kind in ("rate_limit", "server_error", "cut_body", "reset", "empty_choices", "wrong_json", "gzip")
    ]
    with FakeTeacher(answers_of(few), faults, seed=3) as server:
        assert run(tmp_path, server, "--retries", 12) == 0
        assert set(server.answered.values()) == {1} and len(server.answered) == 60
    assert_all_labelled(tmp_path, few)


@pytest.mark.parametrize("fault", [Fault("hang", times=3), Fault("slow", times=3, seconds=30)], ids=lambda f: f.kind)
def test_a_server_that_is_silent_or_drips_is_left_and_asked_again(few, tmp_path, fault):
    with FakeTeacher(answers_of(few), [fault]) as server:
        assert run(tmp_path, server, "--timeout", 0.5) == 0
    assert_all_labelled(tmp_path, few)


def test_no_more_requests_at_a_time_than_allowed(few, tmp_path):
    with FakeTeacher(answers_of(few), delay=0.01) as server:
        assert run(tmp_path, server, "--concurrency", 5) == 0
        assert server.max_in_flight == 5


def test_the_pace_falls_when_the_server_takes_fewer(few, tmp_path, monkeypatch):
    # eight at once are more than it takes: refused ones come back, and all are answered.
    slowed = []
    slow_down = Pace.slow_down
    monkeypatch.setattr(Pace, "slow_down", lambda pace, at: (slow_down(pace, at), slowed.append(pace.slots)))
    with FakeTeacher(answers_of(few), delay=0.01, concurrent=2) as server:
        assert run(tmp_path, server, "--concurrency", 8, "--retries", 30) == 0
        assert server.answered.total() == 60 and len(slowed) == server.requests - 60
    assert slowed and slowed[0] == 4 and min(slowed) <= 4
    assert_all_labelled(tmp_path, few)


def test_rate_limit_headers_are_heeded(few, tmp_path):
    # ten in a while, and the headers say when none is left: none is sent to be refused.
    with FakeTeacher(answers_of(few), requests=10, window=0.3) as server:
        assert run(tmp_path, server, "--concurrency", 1) == 0
        assert server.answered.total() == server.requests == 60


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("insufficient_quota", "the account has no credit left"),
        ("bad_key", "set OPENAI_API_KEY"),
        ("model_not_found", "check --model and --base-url"),
    ],
)
def test_what_will_not_pass_stops_the_run_and_keeps_what_is_paid(few, tmp_path, capsys, kind, said):
    with FakeTeacher(answers_of(few), [Fault(kind, after=20)], delay=0.002) as server:
        assert run(tmp_path, server, "--concurrency", 4) == 1
        assert server.requests <= 20 + 4, "each that was under way, and no more"
        paid = server.answered.total()
    shown = capsys.readouterr().err
    assert said in shown and "Run the same command again" in shown and "Traceback" not in shown
    assert len(labels(tmp_path)) == paid == 20
    with FakeTeacher(answers_of(few)) as server:
        assert run(tmp_path, server) == 0
        assert server.answered.total() == 60 - paid
    assert_all_labelled(tmp_path, few)


def test_the_key_is_in_no_message_and_no_file(few, tmp_path, capsys):
    # the server says the key in its error, as some do.
    with FakeTeacher(answers_of(few), [Fault("bad_key", after=5)]) as server:
        assert run(tmp_path, server) == 1
        assert run(tmp_path, server, "--debug") == 1
        assert server.keys_seen == {KEY}
    out, err = capsys.readouterr()
    assert KEY not in out + err and "***" in err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and all(KEY.encode() not in path.read_bytes() for path in files)


def test_a_key_at_the_place_where_a_message_is_cut_is_masked_whole(few, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k" * 400)
    with FakeTeacher(answers_of(few), [Fault("bad_key")]) as server:
        assert run(tmp_path, server) == 1
    assert "kkk" not in capsys.readouterr().err


def test_a_key_in_an_answer_reaches_no_file(few, tmp_path):
    with FakeTeacher(lambda message: f'[("{KEY}", "person")]') as server:
        for mode in MODES:
            assert run(tmp_path, server, "--mode", mode, "--poll", 0.01, output=f"{mode}.jsonl") == 0
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize("key", ["sk-abc\ndef", "sk-é", "sk-\x00"])
def test_a_key_that_is_none_is_refused_unseen(few, tmp_path, capsys, monkeypatch, key):
    monkeypatch.setattr("os.environ", os.environ | {"OPENAI_API_KEY": key})
    with FakeTeacher(answers_of(few)) as server:
        assert run(tmp_path, server) == 1 and server.calls == 0
    err = capsys.readouterr().err
    assert "OPENAI_API_KEY holds a character that no key has" in err and "abc" not in err


def test_a_finished_store_needs_no_server_and_no_key(few, tmp_path, monkeypatch):
    with FakeTeacher(answers_of(few)) as server:
        assert run(tmp_path, server) == 0
    (tmp_path / "labels.jsonl").unlink()
    monkeypatch.delenv("OPENAI_API_KEY")
    assert run(tmp_path, None) == 0
    assert_all_labelled(tmp_path, few)


def test_without_a_key_or_a_server_nothing_begins(few, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert run(tmp_path, None) == 1
    assert "set OPENAI_API_KEY" in capsys.readouterr().err
    with FakeTeacher(answers_of(few)) as server:
        # a server of one's own asks for none.
        assert run(tmp_path, server) == 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["context_length_exceeded", "content_policy_violation", "content_filter", "refusal"])
def test_a_passage_that_is_refused_is_set_aside_with_its_reason(few, tmp_path, mode, kind):
    refused = few[7][0]["text"]
    with FakeTeacher(answers_of(few), [Fault(kind, match=refused)]) as server:
        assert run(tmp_path, server, "--mode", mode, "--poll", 0.01) == 0
        asked = server.requests
        assert run(tmp_path, server, "--mode", mode, "--poll", 0.01) == 0
        assert server.requests == asked, "a refusal is an answer"
    (row,) = rejected(tmp_path)
    assert (row["id"], row["text"]) == ("p7", refused) and row["reason"]
    assert [label["id"] for label in labels(tmp_path)] == [f"p{n}" for n in range(60) if n != 7]


def test_a_server_that_answers_nothing_is_given_up(recorded, tmp_path, capsys):
    write_rows(tmp_path / "passages.jsonl", [passage for passage, _ in recorded])
    with FakeTeacher(faults=[Fault("server_error")]) as server:
        assert run(tmp_path, server, "--retries", 1, "--concurrency", 4) == 1
        assert server.requests < 100
    assert "passages in a row were not answered" in capsys.readouterr().err


def test_a_server_that_is_not_there(few, tmp_path, capsys):
    with FakeTeacher() as server:
        pass
    assert run(tmp_path, server, "--retries", 1) == 1
    assert "connection failed" in capsys.readouterr().err


def test_a_few_passages_that_fail_are_named_and_asked_again_the_next_time(few, tmp_path, capsys):
    broken = few[3][0]["text"]
    with FakeTeacher(answers_of(few), [Fault("server_error", match=broken)]) as server:
        assert run(tmp_path, server, "--retries", 2) == 1
        assert server.answered.total() == 59
    assert "given up: 1 x HTTP 500" in capsys.readouterr().err
    assert len(labels(tmp_path)) == 59
    with FakeTeacher(answers_of(few)) as server:
        assert run(tmp_path, server) == 0
        assert list(server.answered.values()) == [1]
    assert_all_labelled(tmp_path, few)


def test_a_wait_of_a_day_stops_the_run(few, tmp_path, capsys):
    with FakeTeacher(answers_of(few), [Fault("rate_limit", after=5, retry_after=86400)]) as server:
        assert run(tmp_path, server, "--concurrency", 1) == 1
        assert server.requests == 6
    assert "asks to wait 86,400 s" in capsys.readouterr().err


# ---- kept answers


@pytest.mark.parametrize(
    ("change", "asked_again"),
    [
        ((), 0),
        (("--concurrency", "3"), 0),
        (("--variant", "definition"), 60),
        (("--structured",), 60),
        (("--parameters", '{"temperature": 1, "max_tokens": 1024}'), 60),
        (("--parameters", '{"max_tokens": 1024, "temperature": 0}'), 0),
        (("--model", "gpt-4o"), 60),
    ],
    ids=str,
)
def test_an_answer_is_kept_for_its_model_prompt_and_parameters(few, tmp_path, change, asked_again):
    with FakeTeacher() as server:
        assert run(tmp_path, server) == 0
        assert run(tmp_path, server, *change) == 0
        assert server.requests == 60 + asked_again
        # the first answers are still there.
        assert run(tmp_path, server) == 0
        assert server.requests == 60 + asked_again


def test_passages_of_the_same_text_are_asked_once(tmp_path):
    rows = [{"id": str(n), "text": f"Ann met {'Bob' if n % 2 else 'Eve'}.", "source": "x"} for n in range(6)]
    write_rows(tmp_path / "passages.jsonl", rows)
    with FakeTeacher(lambda message: '[("Ann", "person")]') as server:
        assert run(tmp_path, server) == 0
        assert server.requests == 2
    made = labels(tmp_path)
    assert [row["id"] for row in made] == list("012345")
    assert all(row["entities"] == [{"text": "Ann", "type": "person"}] and row["source"] == "x" for row in made)


def test_bad_records_are_set_aside_before_anything_is_sent(tmp_path, capsys):
    rows = [{"id": "1", "text": "Ann"}, {"id": "2"}, {"id": 3, "text": "x"}, {"id": "4", "text": "half \ud83d"}, 5]
    write_rows(tmp_path / "passages.jsonl", rows)
    with FakeTeacher() as server:
        assert run(tmp_path, server) == 0
        assert server.requests == 1
    assert [row["reason"] for row in rejected(tmp_path)] == ["bad_record"] * 4
    assert "line 2" in rejected(tmp_path)[0]["detail"]
    assert "4 bad_record" in capsys.readouterr().err


def test_a_line_that_is_no_json_is_set_aside_too(tmp_path):
    lines = [
        '\ufeff{"id": "1", "text": "Ann"}',
        "{bad",
        "[" * 100_000,
        '{"id": "2", "text": "Bob", "n": ' + "9" * 5000 + "}",
    ]
    (tmp_path / "passages.jsonl").write_text("\r\n".join([*lines, '{"id": "3", "text": "Eve"}']), encoding="utf-8")
    with FakeTeacher() as server:
        assert run(tmp_path, server) == 0
    assert [row["id"] for row in labels(tmp_path)] == ["1", "3"]
    assert [row["reason"] for row in rejected(tmp_path)] == ["bad_record"] * 3
    assert "line 3: not JSON" in rejected(tmp_path)[1]["detail"]


def test_the_output_never_takes_the_place_of_the_input(few, tmp_path, capsys):
    before = (tmp_path / "passages.jsonl").read_bytes()
    with FakeTeacher() as server:
        assert run(tmp_path, server, output="passages.jsonl") == 1 and server.calls == 0
    assert (tmp_path / "passages.jsonl").read_bytes() == before
    assert "would write over --passages" in capsys.readouterr().err


def test_a_run_that_got_nothing_leaves_an_earlier_output(few, tmp_path):
    (tmp_path / "labels.jsonl").write_text("earlier\n")
    with FakeTeacher(faults=[Fault("bad_key")]) as server:
        assert run(tmp_path, server) == 1
    assert (tmp_path / "labels.jsonl").read_text() == "earlier\n"


def test_an_answer_that_cannot_be_read_is_kept_whole(tmp_path):
    write_rows(tmp_path / "passages.jsonl", [{"id": "1", "text": "Ann"}, {"id": "2", "text": "Bob"}])
    with FakeTeacher(lambda message: "There is nobody here." if message.endswith("Ann") else "[]") as server:
        assert run(tmp_path, server) == 0
    (row,) = rejected(tmp_path)
    assert row["id"] == "1" and row["answer"] == "There is nobody here." and row["reason"]
    assert [row["entities"] for row in labels(tmp_path)] == [[]]


def test_a_type_of_which_nothing_is_left_is_never_asked_as_one_that_is_not_there(tmp_path):
    texts = [f"Ann saw Oslo, {n}." for n in range(12)] + ["Rome in May"]
    write_rows(tmp_path / "passages.jsonl", [{"id": str(n), "text": text} for n, text in enumerate(texts)])
    said = {True: '[("Ann", "person"), ("OSLO", "city"), ("x", "else")]', False: '[("Rome", "city"), ("May", "month")]'}
    with FakeTeacher(lambda message: said["Ann" in message]) as server:
        assert run(tmp_path, server) == 0
    assert labels(tmp_path)[0]["teacher"]["left_out_types"] == ["city", "else"]
    with pytest.raises(SystemExit) as left:
        run_command(
            conversations.main,
            [f"--labels={tmp_path / 'labels.jsonl'}", f"--output={tmp_path / 'conversations.jsonl'}"],
        )
    assert left.value.code == 0
    *asked, _ = [row["conversations"][2:] for _, row in read_rows(tmp_path / "conversations.jsonl")]
    for turns in asked:
        assert {turn["value"] for turn in turns[::2]} == {
            f"What describes {t} in the text?" for t in ("person", "month")
        }


def test_an_answer_cut_at_its_limit_keeps_its_whole_pairs_and_says_so(tmp_path):
    write_rows(tmp_path / "passages.jsonl", [{"id": "1", "text": "Ann met Bob in Oslo."}])
    answer = '[("Ann", "person"), ("Oslo", "a city or any other place with a very long name")]'
    with FakeTeacher(lambda message: answer, [Fault("length")]) as server:
        assert run(tmp_path, server) == 0
    (row,) = labels(tmp_path)
    assert row["entities"] == [{"text": "Ann", "type": "person"}] and row["teacher"]["cut"] is True


# ---- kills


def popen(tmp_path, server, *more):
    command = [sys.executable, "-m", "data_prep.label", *arguments(tmp_path, server, *more)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("mode", MODES)
def test_killed_at_any_moment_it_goes_on(recorded, tmp_path, mode):
    chosen = recorded[:600]
    write_rows(tmp_path / "passages.jsonl", [passage for passage, _ in chosen])
    moments = random.Random(5)
    more = "--mode", mode, "--poll", 0.2, "--concurrency", 4
    before: Counter[str] = Counter()
    with FakeTeacher(answers_of(chosen), delay=0.01) as server:
        for _ in range(3):
            process = popen(tmp_path, server, *more)
            # from when it first talks to the server, which is where it can lose something.
            begun, deadline = server.calls, time.monotonic() + 60
            while server.calls == begun and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.6 if mode == "async" else 0.15))
            assert process.poll() is None, "it was over before it could be killed"
            process.send_signal(signal.SIGKILL)
            process.communicate()
            # asked again is at most what was on its way at the last kill: answered, but not yet heard.
            again = sum(server.answered[message] - count for message, count in before.items())
            assert again <= (0 if mode == "batch" else 4)
            before = server.answered.copy()
        process = popen(tmp_path, server, *more)
        assert process.communicate()[1].count("Traceback") == 0 and process.returncode == 0
        # only what was under way at a kill can have been paid for twice: in a batch not even that.
        twice = server.answered.total() - 600
        assert len(server.answered) == 600 and 0 <= twice <= (0 if mode == "batch" else 3 * 4)
    assert [row["id"] for row in labels(tmp_path)] == [passage["id"] for passage, _ in chosen]


def test_killed_beside_a_server_that_knows_its_requests_nothing_is_billed_twice(recorded, tmp_path):
    chosen = recorded[:200]
    write_rows(tmp_path / "passages.jsonl", [passage for passage, _ in chosen])
    with FakeTeacher(answers_of(chosen), delay=0.02, idempotent=True) as server:
        process = popen(tmp_path, server, "--concurrency", 8)
        while server.requests < 50 and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.communicate()
        assert run(tmp_path, server, "--concurrency", 8) == 0
        assert set(server.answered.values()) == {1} and len(server.answered) == 200


def test_one_process_at_a_time(few, tmp_path, capsys):
    with FakeTeacher(answers_of(few), delay=0.5) as server:
        process = popen(tmp_path, server, "--concurrency", 2)
        while server.requests == 0 and process.poll() is None:
            time.sleep(0.005)
        assert run(tmp_path, server) == 1
        process.kill()
        process.communicate()
    assert "another run has it open" in capsys.readouterr().err


def test_a_store_that_is_none_is_left_alone(few, tmp_path, capsys):
    (tmp_path / "labels.jsonl.store").write_bytes(b"not a database, and longer than a header of one" * 100)
    with FakeTeacher(answers_of(few)) as server:
        assert run(tmp_path, server) == 1
        assert server.requests == 0
    assert "labels.jsonl.store: the store of answers cannot be used" in capsys.readouterr().err


# ---- money


def test_a_dry_run_sends_nothing(few, tmp_path, capsys):
    assert run(tmp_path, None, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "60 requests to send" in out and "USD" in out and not (tmp_path / "labels.jsonl.store").exists()
    with FakeTeacher(answers_of(few), [Fault("insufficient_quota", after=45)]) as server:
        assert run(tmp_path, server, "--concurrency", 1) == 1
        asked = server.requests
        assert run(tmp_path, server, "--dry-run") == 0
        assert server.requests == asked
    assert "15 requests to send" in capsys.readouterr().out


@pytest.mark.parametrize("mode", MODES)
def test_the_cost_never_passes_its_limit(few, tmp_path, capsys, mode):
    table = tmp_path / "prices.json"
    # a dollar a token of the answer and none of the prompt: each answer of "[]" costs what the server counts.
    table.write_text(json.dumps({"date": "today", "batch_factor": 0.5, "models": {MODEL: {"input": 0, "output": 1e6}}}))
    factor = 0.5 if mode == "batch" else 1.0
    more = ["--prices", table, "--parameters", '{"max_tokens": 30}', "--mode", mode, "--poll", 0.01]
    with FakeTeacher() as server:
        for limit, expected in ((10, 1), (40 * factor, 1), (10_000, 0)):
            assert run(tmp_path, server, *more, "--max-cost", limit) == expected
            # the fake server counts one token for "[]".
            assert server.answered.total() * factor <= limit
            assert ("--max-cost" in capsys.readouterr().err) == bool(expected)
        assert set(server.answered.values()) == {1} and len(server.answered) == 60


def test_a_stop_is_heard_by_those_who_wait_for_the_budget(few, tmp_path):
    table = tmp_path / "prices.json"
    table.write_text(json.dumps({"date": "x", "batch_factor": 0.5, "models": {MODEL: {"input": 0, "output": 1e6}}}))
    more = ["--prices", table, "--parameters", '{"max_tokens": 30}', "--max-cost", 65, "--concurrency", 8]
    with FakeTeacher(answers_of(few), [Fault("bad_key", times=1)], delay=0.05) as server:
        assert run(tmp_path, server, *more) == 1
        # two fit into the budget at a time: the one that stopped the run and the one beside it.
        assert server.requests == 2


def test_an_answer_that_was_lost_counts_with_its_highest_cost(few, tmp_path):
    table = tmp_path / "prices.json"
    table.write_text(json.dumps({"date": "x", "batch_factor": 0.5, "models": {MODEL: {"input": 0, "output": 1e6}}}))
    more = ["--prices", table, "--parameters", '{"max_tokens": 30}', "--retries", 3, "--max-cost", 100]
    with FakeTeacher(faults=[Fault("cut_body")]) as server:
        assert run(tmp_path, server, *more) == 1
        # three lost answers may have cost 30 each; a fourth could pass 100.
        assert server.requests == 3


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--model", "llama-9"], "has no price of 'llama-9'"),
        (["--prices", "nowhere.json"], "nowhere.json: no such file"),
        (["--parameters", "{"], "not JSON"),
        (["--parameters", "[]"], "expected a JSON object"),
        (["--parameters", '{"model": "x"}'], "must not set model"),
        (["--parameters", "{}", "--max-cost", "1"], "--max-cost needs a limit"),
        (["--parameters", '{"max_tokens": null}'], "max_tokens must be a whole number of at least 1, found null"),
        (["--parameters", '{"max_tokens": -1}'], "max_tokens must be a whole number of at least 1, found -1"),
        (["--concurrency", "0"], "--concurrency must be at least 1"),
        (["--timeout", "0"], "--timeout must be more than 0"),
        (["--max-cost", "nan"], "--max-cost must be at least 0"),
        (["--passages", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
        (["--base-url", "not a url"], "base-url"),
    ],
)
def test_wrong_options_are_named_before_anything_is_sent(few, tmp_path, capsys, more, said):
    assert run(tmp_path, None, *more, "--retries", 0) == 1
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err


def test_a_model_without_a_price_can_be_free(few, tmp_path):
    with FakeTeacher(answers_of(few)) as server:
        assert run(tmp_path, server, "--model", "llama-9", "--no-cost", "--max-cost", 0) == 0
        assert server.answered.total() == 60


# ---- batches

BATCH = ["--mode", "batch", "--poll", 0.01]


def test_sent_and_left_and_collected_later(few, tmp_path, capsys):
    with FakeTeacher(answers_of(few)) as server:
        assert run(tmp_path, server, *BATCH, "--no-wait") == 0
        assert "60 requests are under way" in capsys.readouterr().err
        assert not (tmp_path / "labels.jsonl").exists()
        runs = 1
        while not (tmp_path / "labels.jsonl").exists():
            runs += 1
            assert run(tmp_path, server, *BATCH, "--no-wait") == 0 and runs < 10
        assert set(server.answered.values()) == {1}
    assert_all_labelled(tmp_path, few)


def test_waves_stay_under_the_limits(few, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "MOST_REQUESTS", 25)
    with FakeTeacher(answers_of(few), batch_lines=25) as server:
        assert run(tmp_path, server, *BATCH) == 0
        assert set(server.answered.values()) == {1} and len(server.answered) == 60
    monkeypatch.setattr(batch, "MOST_BYTES", 40_000)
    with FakeTeacher(answers_of(few), batch_bytes=40_000) as server:
        assert run(tmp_path, server, *BATCH, output="others.jsonl") == 0
        assert server.answered.total() == 60


BATCH_FAULTS = [
    Fault("batch_expired", times=2),
    Fault("batch_failed", times=2),
    Fault("token_limit_exceeded", times=2),
    Fault("server_error", times=7),
    Fault("rate_limit", times=7),
    Fault("empty_choices", times=3),
    Fault("errors_in_output", times=1),
    Fault("duplicate_line", times=1),
    Fault("unknown_custom_id", times=1),
    Fault("missing_custom_id", times=1),
    Fault("cut_file", times=1),
    Fault("cut_body", times=1, on="GET /files/*/content"),
    Fault("server_error", times=1, on="POST /files"),
    Fault("server_error", times=1, on="POST /batches"),
    Fault("late_error", times=1, on="POST /batches"),
    Fault("rate_limit", times=1, on="POST /batches"),
    Fault("server_error", times=2, on="GET /batches/*"),
    Fault("reset", times=1, on="GET /batches/*"),
]


@pytest.mark.parametrize("fault", BATCH_FAULTS, ids=lambda fault: f"{fault.kind}-{fault.on.replace('/', '.')}")
def test_what_goes_wrong_with_a_batch_is_asked_again_and_nothing_else(few, tmp_path, fault):
    with FakeTeacher(answers_of(few), [fault]) as server:
        assert run(tmp_path, server, *BATCH) == 0
        assert set(server.answered.values()) == {1} and len(server.answered) == 60
    assert_all_labelled(tmp_path, few)


def test_a_batch_that_is_never_taken_ends_with_the_servers_reason(few, tmp_path, capsys):
    with FakeTeacher(answers_of(few), [Fault("batch_failed")]) as server:
        assert run(tmp_path, server, *BATCH) == 1
    err = capsys.readouterr().err
    assert "given up: 60 x batch failed" in err and "Traceback" not in err


class Killed(BaseException):
    """Stands for a SIGKILL at a place in the code: nothing after it runs."""


@pytest.mark.parametrize(
    "place", ["upload", "begin_wave", "create_batch", "name_batch", "batch", "download", "end_wave"]
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_step_of_a_batch_nothing_is_paid_twice(few, tmp_path, monkeypatch, place, when):
    owner = label.AnswerStore if place in ("begin_wave", "name_batch", "end_wave") else label.Teacher
    original = getattr(owner, place)
    kill = True

    def killed(self, *given):
        nonlocal kill
        if kill and when == "before":
            kill = False
            raise Killed
        result = original(self, *given)
        if kill and owner is label.AnswerStore:
            kill = False
            raise Killed
        return result

    async def killed_later(self, *given):
        nonlocal kill
        if kill and when == "before":
            kill = False
            raise Killed
        result = await original(self, *given)
        if kill:
            kill = False
            raise Killed
        return result

    monkeypatch.setattr(owner, place, killed if owner is label.AnswerStore else killed_later)
    with FakeTeacher(answers_of(few)) as server:
        with pytest.raises(Killed):
            label.main(arguments(tmp_path, server, *BATCH))
        assert not kill
        assert run(tmp_path, server, *BATCH) == 0
        assert set(server.answered.values()) == {1} and len(server.answered) == 60
    assert_all_labelled(tmp_path, few)


def test_left_and_expired_the_rest_is_sent_again_in_the_run_that_finds_it(few, tmp_path):
    with FakeTeacher(answers_of(few), [Fault("batch_expired", times=1)]) as server:
        assert run(tmp_path, server, *BATCH, "--no-wait") == 0
        assert run(tmp_path, server, *BATCH) == 0
        assert set(server.answered.values()) == {1} and len(server.answered) == 60
    assert_all_labelled(tmp_path, few)


def test_a_batch_is_priced_as_it_was_sent(few, tmp_path, capsys):
    with FakeTeacher(answers_of(few)) as server:
        assert run(tmp_path, server, *BATCH, "--no-wait") == 0
        assert run(tmp_path, server, *BATCH, "--no-cost") == 0
    assert "0.0000 USD" not in capsys.readouterr().err


def test_a_batch_of_another_server_stops_the_run_and_one_that_is_gone_does_not(few, tmp_path, capsys):
    with FakeTeacher(answers_of(few)) as first:
        assert run(tmp_path, first, *BATCH, "--no-wait") == 0
        port = first.port
    with FakeTeacher(answers_of(few)) as other:
        assert run(tmp_path, other, *BATCH) == 1 and other.answered.total() == 0
    assert "run with that --base-url to collect it" in capsys.readouterr().err
    with FakeTeacher(answers_of(few), port=port) as forgetful:
        assert run(tmp_path, forgetful, *BATCH) == 0
        assert len(forgetful.answered) == 60
    assert "its requests count with their highest cost" in capsys.readouterr().err


def test_no_credit_for_a_batch(few, tmp_path, capsys):
    with FakeTeacher(answers_of(few), [Fault("insufficient_quota", on="POST /batches")]) as server:
        assert run(tmp_path, server, *BATCH) == 1
    assert "no credit left" in capsys.readouterr().err
    with FakeTeacher(answers_of(few)) as server:
        assert run(tmp_path, server, *BATCH) == 0


def test_a_reply_without_end_is_broken_off(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data_prep.teacher.transport.MOST_BYTES", 100_000)
    with FakeTeacher(lambda message: "x" * 200_000) as server:
        assert run(tmp_path, server, "--retries", 0) == 1
    assert "the reply has more than 100,000 bytes" in capsys.readouterr().err
