"""The misbehaving teacher: each fault does what it says, and what is billed is what was answered whole."""

import email.utils
import gzip
import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
from fake_teacher import FakeTeacher, Fault, digest, duration
from hypothesis import given, settings
from hypothesis import strategies as st

KEY = "sk-test"
ANSWER = '[("Ann", "person"), ("Ulm", "city")]'


@contextmanager
def client_of(teacher: FakeTeacher, **options):
    with openai.OpenAI(base_url=teacher.url, api_key=KEY, max_retries=0, timeout=options.pop("timeout", 20)) as client:
        yield client


@contextmanager
def serving(*faults: Fault, **options):
    answer = options.pop("answer", lambda message: ANSWER)
    with FakeTeacher(answer, faults, **options) as teacher, client_of(teacher) as client:
        yield teacher, client


def ask(client: openai.OpenAI, message: str = "hello", **options):
    options = {"model": "m", "messages": [{"role": "user", "content": message}]} | options
    return client.chat.completions.create(**options)


def post(teacher: FakeTeacher, body: bytes | dict, path: str = "/v1/chat/completions", **headers: str):
    """Status, headers and body as they are on the wire."""
    body = json.dumps(body).encode() if isinstance(body, dict) else body
    connection = http.client.HTTPConnection("127.0.0.1", teacher.port, timeout=20)
    sent = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"} | headers
    try:
        connection.request("POST", path, body, sent)
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        connection.close()


def question(message: str = "hello") -> dict:
    return {"model": "m", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": message}]}


def test_an_answer_has_the_documented_shape():
    with serving() as (teacher, client):
        raw = client.chat.completions.with_raw_response.create(**question("Ann in Ulm"))
        made = raw.parse()
        assert made.object == "chat.completion" and made.model == "m" and made.id.startswith("chatcmpl-")
        assert made.choices[0].message.content == ANSWER and made.choices[0].finish_reason == "stop"
        assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens > 0
        assert raw.headers["x-request-id"] and raw.headers["x-ratelimit-remaining-requests"] == "999999"
        assert raw.headers["x-ratelimit-reset-requests"][-1] == "s" and raw.headers["x-ratelimit-limit-tokens"]
        assert [model.id for model in client.models.list()]
        assert teacher.answered == {"Ann in Ulm": 1} and teacher.requests == 1
        assert teacher.keys_seen == {KEY} and teacher.max_in_flight == 1


def test_durations_are_written_as_documented():
    assert [duration(seconds) for seconds in (0, 0.012, 1.2, 59, 360)] == ["0ms", "12ms", "1.2s", "59s", "6m0s"]


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (question(), {"Authorization": "Basic x"}, 401),
        (question(), {"Content-Type": "text/plain"}, 400),
        (b"{", {}, 400),
        (b"\xff", {}, 400),
        (b"", {}, 400),
        ([], {}, 400),
        ({"messages": []}, {}, 400),
        (question() | {"messages": "x"}, {}, 400),
        (question() | {"messages": [{"role": "system", "content": "s"}]}, {}, 400),
        (question() | {"stream": True}, {}, 400),
    ],
)
def test_what_is_no_chat_request_is_refused(body, headers, status):
    with FakeTeacher() as teacher:
        body = json.dumps(body).encode() if isinstance(body, list) else body
        found, _, text = post(teacher, body, **headers)
        assert found == status and json.loads(text)["error"]["message"]
        assert teacher.requests == 1 and not teacher.answered
        assert post(teacher, question(), "/v1/nowhere")[0] == 404
        assert post(teacher, question())[0] == 200


@pytest.mark.parametrize(
    ("kind", "error", "code"),
    [
        ("rate_limit", openai.RateLimitError, "rate_limit_exceeded"),
        ("insufficient_quota", openai.RateLimitError, "insufficient_quota"),
        ("bad_key", openai.AuthenticationError, "invalid_api_key"),
        ("model_not_found", openai.NotFoundError, "model_not_found"),
        ("context_length_exceeded", openai.BadRequestError, "context_length_exceeded"),
        ("content_policy_violation", openai.BadRequestError, "content_policy_violation"),
        ("server_error", openai.InternalServerError, None),
        ("late_error", openai.InternalServerError, None),
    ],
)
def test_a_refusal_is_one_of_the_api_and_bills_nothing(kind, error, code):
    with serving(Fault(kind, times=1)) as (teacher, client):
        with pytest.raises(error) as raised:
            ask(client)
        assert raised.value.code == code and (KEY in str(raised.value)) == (kind == "bad_key")
        assert not teacher.answered and teacher.requests == 1
        assert ask(client).choices and teacher.answered == {"hello": 1}


def test_a_bad_gateway_speaks_html():
    with FakeTeacher(faults=[Fault("server_error", status=502)]) as teacher:
        status, headers, body = post(teacher, question())
        assert status == 502 and headers["content-type"] == "text/html" and body.startswith(b"<html>")


def test_retry_after_comes_in_every_form():
    forms = [Fault("rate_limit", times=1, retry_after=1.5, retry_form=form) for form in ("seconds", "ms", "date")]
    with FakeTeacher(faults=[*forms, Fault("rate_limit", times=1)]) as teacher:
        seconds, ms, date, none = (post(teacher, question())[1] for _ in range(4))
        assert seconds["retry-after"] == "1.5" and ms["retry-after-ms"] == "1500"
        at = email.utils.parsedate_to_datetime(date["retry-after"]).timestamp()
        assert 0 < at - time.time() + 1 < 60
        assert not any(name in headers for headers in (ms, none) for name in ("retry-after",))
        assert post(teacher, question())[0] == 200


@pytest.mark.parametrize("kind", ["hang", "reset", "cut_body", "wrong_json"])
def test_what_does_not_arrive_whole_is_not_billed(kind):
    with serving(Fault(kind, times=1)) as (teacher, client):
        with client_of(teacher, timeout=1) as hasty, pytest.raises((openai.APIConnectionError, ValueError)):
            ask(hasty)
        assert not teacher.answered and teacher.requests == 1
        assert ask(client).choices[0].message.content == ANSWER and teacher.answered == {"hello": 1}


def test_cut_bodies_promise_more_than_they_hold():
    with FakeTeacher(faults=[Fault("cut_body")]) as teacher, pytest.raises(http.client.IncompleteRead):
        post(teacher, question())


def test_a_client_that_goes_away_is_not_billed(tmp_path):
    log = tmp_path / "log.jsonl"
    with FakeTeacher(faults=[Fault("slow", seconds=0.5, times=1)], log=log) as teacher:
        with client_of(teacher) as client, socket.create_connection(("127.0.0.1", teacher.port)) as gone:
            body = json.dumps(question()).encode()
            head = "POST /v1/chat/completions HTTP/1.1", "Authorization: Bearer k", f"Content-Length: {len(body)}"
            gone.sendall("\r\n".join([*head, "Content-Type: application/json", "", ""]).encode() + body)
            assert gone.recv(20).startswith(b"HTTP/1.1 200")
            gone.close()
            assert ask(client, "other").choices
        while "client_gone" not in log.read_text():
            time.sleep(0.01)
        assert teacher.answered == {"other": 1} and teacher.requests == 2


@pytest.mark.parametrize("kind", ["slow", "gzip", "duplicate_headers", "redirect"])
def test_what_arrives_oddly_is_billed_once(kind):
    with serving(Fault(kind, seconds=0.2)) as (teacher, client):
        assert ask(client).choices[0].message.content == ANSWER
        assert teacher.answered == {"hello": 1} and teacher.requests == 1 + (kind == "redirect")


def test_gzip_is_gzip():
    with FakeTeacher(faults=[Fault("gzip")]) as teacher:
        _, headers, body = post(teacher, question())
        assert headers["content-encoding"] == "gzip" and json.loads(gzip.decompress(body))["choices"]


@pytest.mark.parametrize(
    ("kind", "content", "reason", "billed"),
    [
        ("length", ANSWER[:18], "length", 1),
        ("content_filter", "", "content_filter", 1),
        ("refusal", None, "stop", 1),
        ("null_content", None, "stop", 0),
        ("no_usage", ANSWER, "stop", 1),
    ],
)
def test_an_answer_may_be_odd(kind, content, reason, billed):
    with serving(Fault(kind)) as (teacher, client):
        made = ask(client)
        assert (made.choices[0].message.content, made.choices[0].finish_reason) == (content, reason)
        assert bool(made.choices[0].message.refusal) == (kind == "refusal")
        assert (made.usage is None) == (kind == "no_usage")
        assert teacher.answered.total() == billed


@pytest.mark.parametrize("kind", ["empty_choices", "wrong_shape"])
def test_a_body_without_an_answer_is_not_billed(kind):
    with serving(Fault(kind)) as (teacher, client):
        assert not ask(client).choices and not teacher.answered and teacher.requests == 1


@pytest.mark.parametrize("wrong", [{"kind": "no"}, {"retry_form": "days"}, {"on": "POST /v1/files"}, {"on": "files"}])
def test_a_fault_that_could_never_strike_is_refused(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        Fault(**{"kind": "hang"} | wrong)


def test_faults_are_counted_matched_and_combined():
    faults = [
        Fault("server_error", match="odd", times=1, each=True),
        Fault("insufficient_quota", after=3, match="even"),
        Fault("length", match="both"),
        Fault("gzip", match="both"),
    ]
    with serving(*faults) as (_, client):
        for message in ("odd 1", "odd 2"):
            with pytest.raises(openai.InternalServerError):
                ask(client, message)
            assert ask(client, message).choices
        assert ask(client, "both").choices[0].finish_reason == "length"
        assert [ask(client, f"even {n}").choices[0].finish_reason for n in range(3)] == ["stop"] * 3
        with pytest.raises(openai.RateLimitError):
            ask(client, "even 3")


def test_chance_depends_on_seed_and_message_and_not_on_threads():
    def struck(seed: int, order: list[int]) -> set[int]:
        with FakeTeacher(faults=[Fault("server_error", probability=0.3)], seed=seed) as teacher:
            with ThreadPoolExecutor(8) as pool:
                statuses = pool.map(lambda n: post(teacher, question(f"q{n}"))[0], order)
            return {n for n, status in zip(order, statuses, strict=True) if status == 500}

    numbers = list(range(200))
    assert struck(1, numbers) == struck(1, numbers[::-1]) != struck(2, numbers)
    assert 30 < len(struck(1, numbers)) < 90


def test_counts_are_right_under_32_threads(tmp_path):
    log = tmp_path / "log.jsonl"
    faults = [Fault(kind, probability=0.15) for kind in ("server_error", "cut_body", "reset")]
    with serving(*faults, log=log) as (teacher, client):

        def insist(number: int) -> int:
            for attempt in range(1, 100):
                try:
                    assert ask(client, f"q{number}").choices
                    return attempt
                except (openai.APIConnectionError, openai.InternalServerError):
                    continue
            raise AssertionError("a hundred failures in a row")

        with ThreadPoolExecutor(32) as pool:
            attempts = sum(pool.map(insist, range(300)))
        assert teacher.answered == {f"q{number}": 1 for number in range(300)}
        assert teacher.requests == attempts > 330 and 1 < teacher.max_in_flight <= 32
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert len(lines) == attempts and {line["path"] for line in lines} == {"/v1/chat/completions"}
        whole = sorted(line["message"] for line in lines if line["outcome"] == "answered")
        assert whole == sorted(digest(f"q{number}") for number in range(300))
        assert KEY not in log.read_text()


def test_the_window_is_never_over_full():
    started = time.monotonic()
    with serving(requests=5, window=0.4) as (teacher, client):

        def insist(number: int) -> None:
            while True:
                try:
                    ask(client, f"q{number}")
                    return
                except openai.RateLimitError as error:
                    assert error.code == "rate_limit_exceeded" and error.response.headers["retry-after"] == "1"
                    time.sleep(int(error.response.headers["retry-after-ms"]) / 1000)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(insist, range(20)))
        assert teacher.answered.total() == 20 and teacher.requests > 20
        # 20 requests, 5 a window: three windows lie between the first and the last, however busy the machine is.
        assert time.monotonic() - started >= 3 * 0.4


def test_more_than_the_cap_at_once_is_refused():
    gate = threading.Event()
    limited = serving(answer=lambda message: gate.wait(20) and "[]", concurrent=2)
    with limited as (teacher, client), ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ask, client, name) for name in "ab"]
        while teacher.max_in_flight < 2:
            time.sleep(0.01)
        with pytest.raises(openai.RateLimitError):
            ask(client, "c")
        gate.set()
        assert all(done.result().choices for done in waiting)
        assert ask(client, "c").choices and teacher.answered.total() == 3


def test_an_idempotency_key_is_billed_once():
    numbers = itertools.count()
    served = serving(Fault("cut_body", times=1), answer=lambda message: str(next(numbers)), idempotent=True)
    with served as (teacher, client):
        with pytest.raises(openai.APIConnectionError):
            ask(client, extra_headers={"Idempotency-Key": "k"})
        same = [ask(client, extra_headers={"Idempotency-Key": "k"}).choices[0].message.content for _ in range(2)]
        assert same[0] == same[1] and teacher.answered == {"hello": 1}
        with pytest.raises(openai.ConflictError):
            ask(client, "another", extra_headers={"Idempotency-Key": "k"})
        assert ask(client).choices[0].message.content != same[0] and teacher.answered == {"hello": 2}


@settings(max_examples=50, deadline=None)
@given(text=st.text(st.characters(), min_size=1))
def test_any_text_goes_there_and_back(echo, text):
    teacher, _ = echo
    _, _, body = post(teacher, question(text))
    assert json.loads(body)["choices"][0]["message"]["content"] == text and teacher.answered[text] >= 1


@pytest.fixture(scope="module")
def echo():
    with serving(answer=lambda message: message) as served:
        yield served


def rows_of(names, **body) -> list[dict]:
    line = {"method": "POST", "url": "/v1/chat/completions"}
    return [line | {"custom_id": name, "body": question(f"about {name}") | body} for name in names]


def send(client: openai.OpenAI, rows: list, **metadata: str):
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    uploaded = client.files.create(file=("input.jsonl", content), purpose="batch")
    assert uploaded.bytes == len(content) and client.files.content(uploaded.id).read() == content
    return client.batches.create(
        input_file_id=uploaded.id, endpoint="/v1/chat/completions", completion_window="24h", metadata=metadata
    )


def finish(client: openai.OpenAI, name: str):
    """The batch at its end, and the statuses on the way."""
    seen = []
    while not seen or seen[-1].status not in ("completed", "failed", "expired", "cancelled"):
        seen.append(client.batches.retrieve(name))
    return seen[-1], [batch.status for batch in seen]


def read(client: openai.OpenAI, name: str | None) -> list[dict]:
    return [json.loads(line) for line in client.files.content(name).text.split("\n") if line] if name else []


NAMES = [f"n{number}" for number in range(20)]


def test_a_batch_goes_its_way():
    with serving() as (teacher, client):
        made = send(client, rows_of(NAMES), run="7")
        assert made.status == "validating" and made.metadata == {"run": "7"} and made.request_counts.total == 0
        batch, statuses = finish(client, made.id)
        assert statuses == ["in_progress", "finalizing", "completed"] and batch.error_file_id is None
        assert batch.request_counts.model_dump() == {"total": 20, "completed": 20, "failed": 0}
        rows = read(client, batch.output_file_id)
        found = [row["custom_id"] for row in rows]
        assert sorted(found) == sorted(NAMES) and found != NAMES
        assert all(row["response"]["status_code"] == 200 and row["error"] is None for row in rows)
        assert rows[0]["response"]["body"]["choices"][0]["message"]["content"] == ANSWER
        assert finish(client, made.id)[0] == batch
        assert teacher.answered == {f"about {name}": 1 for name in NAMES} and teacher.requests == 0
        assert client.files.delete(batch.input_file_id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(batch.input_file_id)


def test_a_clock_moves_batches_on_too():
    clock = [0.0]
    with serving(clock=lambda: clock[0]) as (_, client):
        made = send(client, rows_of(NAMES))
        seen = []
        for clock[0] in (0.5, 0.9, 1.0, 3.5, 9.0):
            seen.append(client.batches.retrieve(made.id).status)
        assert seen == ["validating", "validating", "in_progress", "completed", "completed"]


def test_batches_are_listed_newest_first():
    with serving() as (_, client):
        made = [send(client, rows_of(["a", "b"]), number=str(number)) for number in range(5)]
        page = client.batches.list(limit=2)
        assert [batch.id for batch in page.data] == [made[4].id, made[3].id] and page.has_more
        assert [batch.metadata["number"] for batch in client.batches.list(limit=2)] == list("43210")
        assert not client.batches.list(after=made[1].id, limit=5).has_more


@pytest.mark.parametrize(("polls", "done"), [(0, 0), (1, 10)])
def test_a_cancelled_batch_keeps_what_was_done(polls, done):
    with serving() as (teacher, client):
        made = send(client, rows_of(NAMES))
        for _ in range(polls):
            client.batches.retrieve(made.id)
        assert client.batches.cancel(made.id).status == "cancelling"
        batch, _ = finish(client, made.id)
        assert batch.status == "cancelled" and teacher.answered.total() == done
        assert len(read(client, batch.output_file_id)) == done and len(read(client, batch.error_file_id)) == 20 - done
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(made.id)


@pytest.mark.parametrize("kind", ["batch_failed", "token_limit_exceeded"])
def test_a_batch_may_fail(kind):
    with serving(Fault(kind, match="about n3")) as (teacher, client):
        batch, statuses = finish(client, send(client, rows_of(NAMES)).id)
        assert statuses == ["failed"] and batch.errors.data[0].code == kind and batch.errors.data[0].message
        assert not batch.output_file_id and not teacher.answered
        assert finish(client, send(client, rows_of(["a", "b"])).id)[0].status == "completed"


def test_an_expired_batch_names_what_is_unfinished():
    with serving(Fault("batch_expired")) as (teacher, client):
        batch, _ = finish(client, send(client, rows_of(NAMES)).id)
        output, errors = read(client, batch.output_file_id), read(client, batch.error_file_id)
        assert batch.status == "expired" and len(output) == len(errors) == 10
        assert all(row["error"]["code"] == "batch_expired" and row["response"] is None for row in errors)
        assert sorted(row["custom_id"] for row in output + errors) == sorted(NAMES)
        assert teacher.answered == {f"about {row['custom_id']}": 1 for row in output}


@pytest.mark.parametrize("stray", [False, True])
def test_requests_in_a_batch_may_fail(stray):
    faults = [
        Fault("server_error", match="n1"),
        Fault("rate_limit", match="n2"),
        Fault("context_length_exceeded", match="n3"),
        Fault("null_content", match="n4"),
        Fault("missing_custom_id", match="n5"),
        Fault("duplicate_line", match="n6"),
        Fault("unknown_custom_id", match="n7"),
    ]
    with serving(*faults, *[Fault("errors_in_output")] * stray) as (teacher, client):
        batch, _ = finish(client, send(client, rows_of(NAMES[:9])).id)
        output, errors = read(client, batch.output_file_id), read(client, batch.error_file_id)
        statuses = {row["custom_id"]: row["response"]["status_code"] for row in (output if stray else errors)}
        assert {name: statuses[name] for name in ("n1", "n2", "n3")} == {"n1": 500, "n2": 429, "n3": 400}
        assert len(errors) == (0 if stray else 3)
        names = sorted(row["custom_id"] for row in output + errors)
        assert names == ["n0", "n1", "n2", "n3", "n4", "n6", "n6", "n7", "n8", "unknown n7"]
        assert teacher.answered == {f"about {name}": 1 for name in ("n0", "n6", "n7", "n8")}


def test_the_first_download_may_be_cut():
    # the input is downloaded first, by `send`.
    with serving(Fault("cut_file", after=1, times=1)) as (_, client):
        batch, _ = finish(client, send(client, rows_of(NAMES)).id)
        with pytest.raises(json.JSONDecodeError):
            read(client, batch.output_file_id)
        assert len(read(client, batch.output_file_id)) == 20


def test_uploads_and_creations_may_fail_before_or_after_they_are_done():
    faults = [
        Fault("server_error", on="POST /files", times=1),
        Fault("rate_limit", on="POST /batches", times=1),
        Fault("late_error", on="POST /batches", times=1),
    ]
    with serving(*faults) as (_, client):
        with pytest.raises(openai.InternalServerError):
            send(client, rows_of(NAMES))
        with pytest.raises(openai.RateLimitError):
            send(client, rows_of(NAMES))
        assert not client.batches.list().data
        with pytest.raises(openai.InternalServerError):
            send(client, rows_of(NAMES), run="7")
        (lost,) = client.batches.list()
        assert lost.metadata == {"run": "7"} and finish(client, lost.id)[0].status == "completed"


BAD_INPUTS = {
    "no JSON": [*rows_of("a"), "x"],
    "custom_id": [*rows_of("ba"), *rows_of("a")],
    "url": [*rows_of("a"), rows_of("b")[0] | {"url": "/v1/embeddings"}],
    "method": [*rows_of("a"), rows_of("b")[0] | {"method": "GET"}],
    "one model": [*rows_of("a"), *rows_of("b", model="other")],
    "messages": [*rows_of("a"), *rows_of("b", messages=[])],
    "lines": rows_of("abcdef"),
    "bytes": rows_of("a", user="x" * 5000),
    "empty": [],
}


@pytest.mark.parametrize("wrong", BAD_INPUTS)
def test_a_bad_input_file_is_refused(wrong):
    with serving(batch_lines=5, batch_bytes=4000) as (_, client):
        assert send(client, rows_of("abcde")).id
        with pytest.raises(openai.BadRequestError) as raised:
            send(client, BAD_INPUTS[wrong])
        lines = len(BAD_INPUTS[wrong])
        assert f"Line {lines}" in str(raised.value) or wrong in ("lines", "bytes", "empty")


def start(tmp_path: Path, *options: object) -> tuple[subprocess.Popen, str]:
    """The command, and its address once it listens."""
    port = tmp_path / "port"
    port.unlink(missing_ok=True)
    command = [sys.executable, Path(__file__).with_name("fake_teacher.py"), "--port-file", port, *options]
    process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE)
    while not port.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    return process, f"http://127.0.0.1:{port.read_text().strip()}/v1"


def test_the_command_survives_being_killed(tmp_path, shared_data):
    rows = [json.loads(line)["conversations"] for line in open_lines(shared_data)]
    passages = {turns[0]["value"].removeprefix("Text: "): turns[3]["value"] for turns in rows}
    recorded, log = tmp_path / "recorded.jsonl", tmp_path / "log.jsonl"
    recorded.write_text("".join(json.dumps({"passage": p, "answer": a}) + "\n" for p, a in passages.items()))
    options = ["--answers", recorded, "--log", log, "--state", tmp_path / "state"]
    options += ["--fault", '{"kind": "reset", "times": 1}']
    process, url = start(tmp_path, *options)
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=1) as client:
        for passage, answer in list(passages.items())[:5]:
            assert ask(client, f"Given a passage.\n\nPassage: {passage}").choices[0].message.content == answer
        made = send(client, rows_of(NAMES))
        assert client.batches.retrieve(made.id).status == "in_progress"
    process.kill()
    assert process.communicate()[1] == b""
    again, url = start(tmp_path, *options, "--port", url.split(":")[2].split("/")[0])
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
        assert finish(client, made.id)[1] == ["finalizing", "completed"]
    again.send_signal(signal.SIGTERM)
    assert again.communicate()[1] == b"" and again.returncode == 0
    outcomes = [json.loads(line)["outcome"] for line in log.read_text().splitlines()]
    assert outcomes.count("answered") == 25 and outcomes.count("reset") == 1
    assert KEY not in (tmp_path / "state").read_text()


def test_counts_faults_and_batches_survive_in_the_state(tmp_path):
    options = {"state": tmp_path / "state", "idempotent": True}
    faults = [Fault("server_error", times=1), Fault("batch_expired", times=1)]
    key = {"extra_headers": {"Idempotency-Key": "k"}}
    with serving(*faults, **options) as (teacher, client):
        with pytest.raises(openai.InternalServerError):
            ask(client, "é\u2028")
        first = ask(client, "é\u2028", **key)
        made = send(client, rows_of(NAMES))
    with options["state"].open("ab") as torn:
        torn.write(b'[["answered", "never", ')
    with serving(*faults, **options) as (teacher, client):
        assert ask(client, "é\u2028", **key) == first and teacher.answered == {"é\u2028": 1} and teacher.requests == 3
        assert finish(client, made.id)[0].status == "expired"
        assert finish(client, send(client, rows_of(NAMES)).id)[0].status == "completed"
    with serving(*faults, **options) as (teacher, client):
        assert teacher.answered.total() == 1 + 10 + 20 and teacher.answered["never"] == 0
        assert [batch.status for batch in client.batches.list()] == ["completed", "expired"]


def test_the_server_ends_although_a_client_hangs():
    with serving(Fault("hang")) as (teacher, client), ThreadPoolExecutor(1) as pool:
        hung = pool.submit(ask, client)
        while not teacher.requests:
            time.sleep(0.01)
        teacher.__exit__()
        assert isinstance(hung.exception(), openai.APIConnectionError) and not teacher.answered


def test_an_answer_that_cannot_be_made_is_an_error():
    with serving(answer=lambda message: {"good": "[]"}[message]) as (teacher, client):
        with pytest.raises(openai.InternalServerError):
            ask(client, "bad")
        assert ask(client, "good").choices and teacher.answered == {"good": 1}


def open_lines(shared_data: Path) -> list[str]:
    return (shared_data / "teacher" / "pile_ner_sample.jsonl").read_text(encoding="utf-8").splitlines()


WRONG = ["--fault", '{"kind": "no"}'], ["--answers", os.devnull, "--limits", '{"x": 1}'], ["--port", "99999"]


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_options_are_one_message(wrong):
    command = [sys.executable, str(Path(__file__).with_name("fake_teacher.py")), *wrong]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
