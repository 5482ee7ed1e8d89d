"""The demo over HTTP: what it answers, what it refuses, and that nothing that is sent to it ends it."""

import http.client
import inspect
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import CONFIG, blank_model, random_model

from uner_jax import cli
from uner_jax.extraction.engine import Engine, Generation
from uner_jax.extraction.extractor import Extraction, Extractor
from uner_jax.records import InputError
from uner_jax.view.demo import server as server_module
from uner_jax.view.demo import visit
from uner_jax.view.demo.guard import fault, known_names
from uner_jax.view.demo.page import answer, demo_page
from uner_jax.view.demo.question import Limits, Question, read_question
from uner_jax.view.demo.server import DemoServer
from uner_jax.weights.hf import write_hf

ROOT = Path(__file__).parent.parent
LIMITS = Limits(characters=200, types=3, type_characters=20, waiting=1)
TEXT = "Ada of the University of London <b>London</b>"
KNOWN = {"person": ["Ada"], "place": ["London"], "school": ["University of London", "of London <b"], "no": []}


@pytest.fixture(scope="module")
def hf_path(tok512, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    write_hf(random_model(), tok512, directory)
    return directory


class Answers:
    """Stands for the engine's decoding: lists the names of KNOWN that are in the passage, one question at a time.

    While `go` is clear it holds the model; `most` is how many extractions were in it at once.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.go, self.begun = threading.Event(), threading.Semaphore(0)
        self.go.set()
        self.inside = self.most = 0

    def __call__(self, engine, asked):
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.begun.release()
        assert self.go.wait(60)
        for place, request in enumerate(asked):
            passage = self._tokenizer.decode(request.context)
            (label,) = re.findall(r"What describes (.*) in the text", self._tokenizer.decode(request.question))
            if label == "crash":
                self.inside -= 1
                raise ZeroDivisionError("of the model")
            names = json.dumps([name for name in KNOWN.get(label, ()) if name in passage])
            ids = tuple(self._tokenizer.encode(names))
            yield place, Generation(ids, (-0.01,) * len(ids), True)
        self.inside -= 1


@pytest.fixture
def answers(tok512, monkeypatch):
    made = Answers(tok512)
    monkeypatch.setattr(Engine, "generate", lambda self, asked: made(self, asked))
    yield made
    made.go.set()


@contextmanager
def serving(extractor, limits=LIMITS, host="127.0.0.1"):
    with DemoServer(host, 0, "tiny", limits) as server:
        server.extractor = extractor
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def demo(tok512, answers):
    with serving(Extractor(blank_model(CONFIG), tok512)) as server:
        yield server


def call(server, method, path, body=None, headers=None):
    """Status, headers and body of one request."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)) as connection:
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read().decode()


def ask(server, text=TEXT, labels=("person", "place", "school"), headers=None):
    """Status and answer of a question."""
    body = json.dumps({"text": text, "labels": list(labels)})
    status, _, found = call(server, "POST", "/extract", body, {"Content-Type": "application/json", **(headers or {})})
    return status, json.loads(found)


class Asking(threading.Thread):
    """A question that is asked while the test goes on."""

    def __init__(self, server, **question):
        super().__init__()
        self._server, self._question = server, question
        self.start()

    def run(self):
        self.reply = ask(self._server, **self._question)

    def done(self):
        self.join(60)
        return self.reply


class Markup(HTMLParser):
    """The elements of a document, and its text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


# ---- the page


def test_the_page_asks_nothing_of_anybody_else(demo):
    status, headers, page = call(demo, "GET", "/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert policy["script-src"].startswith("'sha256-") and policy["frame-ancestors"] == "'none'"
    elements = Markup(page).elements
    assert not [attributes for _, attributes in elements if "src" in attributes]
    assert {attributes["href"] for _, attributes in elements if "href" in attributes} == {"data:,"}
    assert "url(" not in page and "@import" not in page and "//" not in re.sub(r"^\s*// .*$", "", page, flags=re.M)


def test_the_page_knows_its_limits_and_examples_within_them(demo):
    (setup,) = re.findall(r'<script type="application/json" id="setup">(.*?)</script>', call(demo, "GET", "/")[2])
    setup = json.loads(setup)
    assert setup["limits"] == {"characters": 200, "types": 3, "type_characters": 20, "waiting": 1}
    assert len({example["name"] for example in setup["examples"]}) == len(setup["examples"]) > 5
    for example in setup["examples"]:
        question = read_question(json.dumps(example).encode(), Limits())
        assert question == (example["text"], example["labels"])


def test_the_name_of_the_model_is_only_a_name():
    plain, hostile = (demo_page(name, LIMITS).html for name in ("tiny", '"><script>$x</script>&amp;'))
    shape = [[(tag, sorted(attributes)) for tag, attributes in Markup(page).elements] for page in (plain, hostile)]
    assert shape[0] == shape[1] and '"><script>$x</script>&amp;' in Markup(hostile).text


# ---- the answer


def test_entities_come_with_offsets_colours_and_marks(demo):
    status, found = ask(demo)
    assert status == 200
    spans = {(entity["label"], entity["start"], entity["end"]) for entity in found["entities"]}
    assert spans == {
        ("person", 0, 3), ("school", 11, 31), ("school", 22, 34), ("place", 25, 31), ("place", 35, 41),
    }  # fmt: skip
    assert all(TEXT[entity["start"] : entity["end"]] == entity["text"] for entity in found["entities"])
    assert [(kind["label"], kind["count"]) for kind in found["types"]] == [("person", 1), ("place", 2), ("school", 2)]
    assert (found["chunks"], found["ungrounded"], found["cut"]) == (1, 0, 0)
    marks = [attributes for tag, attributes in Markup(found["html"]).elements if tag == "mark"]
    assert sum("last" in mark["class"].split() for mark in marks) == 5
    colour = {kind["label"]: kind["colour"] for kind in found["types"]}
    assert all(mark["class"].startswith(colour[mark["data-label"]]) for mark in marks)


def test_a_model_s_own_answer_is_served(tok512):
    """With a small model that decodes in earnest; what it writes is noise, and none of it is in the text."""
    with serving(Extractor(random_model(), tok512, max_new_tokens=3)) as server:
        status, found = ask(server, labels=["person", "place"])
    assert status == 200 and found["labels"] == ["person", "place"] and found["chunks"] == 1
    assert found["cut"] + found["ungrounded"] > 0 or not found["entities"]


HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</div></article>", "&lt;", "\0", "$x", "'"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(HOSTILE) | st.characters(codec="utf-8"), min_size=1).map("".join))
def test_hostile_text_and_types_stay_text(text):
    def shape(text, label):
        entity = {"start": 0, "end": len(text), "text": text, "label": label, "score": 0.5}
        found = answer(Question(text, [label]), Extraction([entity], 1, 0, 0), 0.1)
        return [(tag, sorted(attributes)) for tag, attributes in Markup(found["html"]).elements]

    assert shape(text, text) == shape("a", "b")


def test_what_is_lost_is_said():
    found = answer(Question("a", ["b"]), Extraction([], 3, 2, 1), 1.25)
    said = Markup(found["html"]).text
    assert "1.2 s · read in 3 windows · left out 2 answers of the model" in said and "1 answer cut" in said


# ---- limits


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"text": "x" * 201, "labels": ["a"]}, "The text has 201 characters, and the demo reads 200"),
        ({"text": " \n", "labels": ["a"]}, "There is no text yet"),
        ({"text": 7, "labels": ["a"]}, '"text" must be a string'),
        ({"labels": ["a"]}, '"text" must be a string'),
        ({"text": "x", "labels": []}, "There is no entity type yet"),
        ({"text": "x", "labels": [" "]}, "There is no entity type yet"),
        ({"text": "x", "labels": "person"}, '"labels" must be a list of strings'),
        ({"text": "x", "labels": [None]}, '"labels" must be a list of strings'),
        ({"text": "x", "labels": ["a", "b", "c", "d"]}, "These are 4 entity types, and the demo looks for 3"),
        ({"text": "x", "labels": ["a" * 21]}, "has 21 characters; a type has 20 at most"),
        ({"text": "\ud800", "labels": ["a"]}, "surrogate"),
        ([], "must be a JSON object"),
        (b"{", "no JSON"),
        (b"", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 5000, "no JSON"),
        (b"1" * 5000, "no JSON"),
    ],
)
def test_a_question_that_is_wrong_is_told_why(demo, body, message):
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, _, found = call(demo, "POST", "/extract", sent, {"Content-Type": "application/json"})
    assert status == 400 and message in json.loads(found)["error"]
    assert ask(demo)[0] == 200


def test_the_longest_question_fits_in_any_script(demo):
    limits = demo.limits
    labels = [f"{n}" * 1 + "𝒳" * (limits.type_characters - 1) for n in range(limits.types)]
    body = json.dumps({"text": "🎓" * limits.characters, "labels": labels})
    assert len(body) <= limits.body_bytes
    assert read_question(body.encode(), limits).labels == labels
    assert ask(demo, "é" * limits.characters)[0] == 200


def test_a_body_that_is_too_long_is_refused_in_words(demo):
    status, found = ask(demo, "x" * (1 << 19))
    assert status == 413 and "too long: the demo reads 200 characters" in found["error"]


@pytest.mark.parametrize("length", [None, "-1", "many", "9" * 30, "²"])
def test_a_length_must_be_said(demo, length):
    said = "" if length is None else f"Content-Length: {length}\r\n"
    head = f"POST /extract HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{said}\r\n"
    assert b" 411 " in exchange(demo, head.encode("latin-1")).splitlines()[0]


def test_paths_and_methods(demo):
    for method, path, status in (
        ("GET", "/extract", 405), ("POST", "/", 405), ("GET", "/../etc/passwd", 404), ("GET", "/?x", 200),
        ("OPTIONS", "/extract", 501), ("PUT", "/", 501),
    ):  # fmt: skip
        found, headers, _ = call(demo, method, path)
        assert found == status, (method, path)
        assert headers["X-Content-Type-Options"] == "nosniff" and "Access-Control-Allow-Origin" not in headers


# ---- one at a time


def test_one_is_read_one_waits_and_a_third_is_turned_away(demo, answers):
    answers.go.clear()
    first = Asking(demo, labels=["person"])
    assert answers.begun.acquire(timeout=60)
    second = Asking(demo, labels=["place"])
    wait_for(demo.line.places, 0)
    body = json.dumps({"text": TEXT, "labels": ["person"]})
    status, headers, found = call(demo, "POST", "/extract", body, {"Content-Type": "application/json"})
    assert status == 503 and headers["Retry-After"] == "5"
    assert json.loads(found)["error"] == "1 texts wait for the model already; try again in a moment"
    # the page itself needs no model.
    assert call(demo, "GET", "/")[0] == 200
    answers.go.set()
    replies = [first.done(), second.done()]
    assert [(status, found["labels"]) for status, found in replies] == [(200, ["person"]), (200, ["place"])]
    assert answers.most == 1
    assert ask(demo)[0] == 200


def wait_for(places, free):
    """Until so many places are free."""
    while places.free != free:
        threading.Event().wait(0.005)


def test_a_reader_who_leaves_gives_the_place_back(demo, answers, monkeypatch):
    monkeypatch.setattr(visit, "LOOK_SECONDS", 0.01)
    answers.go.clear()
    first = Asking(demo)
    assert answers.begun.acquire(timeout=60)
    body = json.dumps({"text": TEXT, "labels": ["person"]}).encode()
    with closing(socket.create_connection(("127.0.0.1", demo.server_port), 60)) as leaving:
        leaving.sendall(request(body))
        wait_for(demo.line.places, 0)
    wait_for(demo.line.places, 1)
    answers.go.set()
    assert first.done()[0] == 200 and ask(demo)[0] == 200
    assert answers.begun.acquire(timeout=60) and not answers.begun.acquire(blocking=False)


def test_an_answer_that_takes_too_long_is_given_up(demo, answers, monkeypatch):
    monkeypatch.setattr(visit, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(visit, "ANSWER_SECONDS", 0.05)
    answers.go.clear()
    status, found = ask(demo)
    assert status == 504 and "took more than" in found["error"]
    answers.go.set()
    monkeypatch.undo()


def test_who_waits_when_the_demo_ends_is_told(tok512, answers, monkeypatch):
    monkeypatch.setattr(visit, "LOOK_SECONDS", 0.01)
    with serving(Extractor(blank_model(CONFIG), tok512)) as server:
        answers.go.clear()
        first = Asking(server)
        assert answers.begun.acquire(timeout=60)
        second = Asking(server)
        wait_for(server.line.places, 0)
        closing_line = threading.Thread(target=server.line.close)
        closing_line.start()
        assert second.done() == (503, {"error": "the demo is ending"})
        answers.go.set()
        assert first.done()[0] == 200
        closing_line.join()
        assert ask(server) == (503, {"error": "the demo is ending"})


def test_a_model_that_fails_fails_for_one(demo, capsys):
    status, found = ask(demo, labels=["crash"])
    assert status == 500 and "ZeroDivisionError" in found["error"] and "of the model" not in found["error"]
    assert "ZeroDivisionError: of the model" in capsys.readouterr().err
    assert ask(demo)[0] == 200


def test_texts_are_not_printed(demo, capsys):
    assert ask(demo)[0] == 200
    call(demo, "GET", "/")
    assert re.fullmatch(r"45 characters, 3 types: 5 entities in \d+\.\d s\n", capsys.readouterr().err)


# ---- whatever is sent


def request(body, *lines):
    head = [
        "POST /extract HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*head, *lines, "", ""]).encode() + body


def exchange(server, sent):
    """What comes back for these bytes, until the server ends the connection."""
    with closing(socket.create_connection(("127.0.0.1", server.server_port), 60)) as connection:
        connection.sendall(sent)
        received = b""
        while more := connection.recv(65536):
            received += more
        return received


@pytest.mark.parametrize(
    "sent",
    [
        b"\0\xff\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nHost\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: [\r\n\r\n", b"POST /extract HTTP/1.1\r\nHost: localhost\r\nOrigin: http://[\r\n\r\n",
    ],
)  # fmt: skip
def test_nonsense_is_refused_and_harms_nobody(demo, sent, capsys):
    assert re.match(rb"(HTTP/1\.0 4\d\d |HTTP/1\.0 505 |\{|$)", exchange(demo, sent))
    assert ask(demo)[0] == 200
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("sent", [b"", b"POST /ex", request(b"{}")[:-1], request(b"{}")[:-40]])
def test_a_request_that_does_not_end_is_ended(demo, sent, monkeypatch, capsys):
    monkeypatch.setattr(visit, "REQUEST_SECONDS", 0.1)
    reply = exchange(demo, sent)
    assert b" 200 " not in reply.partition(b"\r\n")[0]
    assert ask(demo)[0] == 200
    assert "Traceback" not in capsys.readouterr().err


def test_a_connection_that_says_nothing_does_not_hold_up_the_end(monkeypatch):
    monkeypatch.setattr(visit, "REQUEST_SECONDS", 1e6)
    monkeypatch.setattr(visit.Visit, "timeout", None)
    with serving(None) as server:
        idle = socket.create_connection(("127.0.0.1", server.server_port), 60)
        while not server.reading:
            threading.Event().wait(0.005)
    with closing(idle):
        assert idle.recv(1) == b"" and not server.reading


def test_too_many_connections_are_turned_away(tok512, answers, monkeypatch):
    monkeypatch.setattr(server_module, "CONNECTIONS", 1)
    with serving(Extractor(blank_model(CONFIG), tok512), Limits(waiting=0)) as server:
        with closing(socket.create_connection(("127.0.0.1", server.server_port), 60)) as idle:
            idle.sendall(b"GET / HTTP/1.1\r\n")
            wait_for(server.connections, 0)
            assert exchange(server, b"").startswith(b"HTTP/1.0 503 ")
        wait_for(server.connections, 1)
        assert ask(server)[0] == 200


# ---- other sites


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "http://localhost"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example"},
        {"Host": "evil.example:7860", "Origin": "http://evil.example:7860"},
        {"Host": "localhost.evil.example"},
        {"Host": ""},
        {"Host": "127.0.0.1.evil.example"},
    ],
)
def test_a_page_of_another_site_is_refused(demo, answers, headers):
    status, found = ask(demo, headers=headers)
    assert status == 403 and found.keys() == {"error"}
    assert not answers.begun.acquire(blocking=False)
    if "Host" in headers:
        assert call(demo, "GET", "/", headers=headers)[0] == 403


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
def test_a_form_cannot_ask(demo, kind):
    body = json.dumps({"text": TEXT, "labels": ["person"]})
    assert call(demo, "POST", "/extract", body, {"Content-Type": kind})[0] == 415


def test_the_own_page_is_let_in_also_through_a_tunnel(demo):
    port = demo.server_port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "LOCALHOST:8000", "[::1]:8000"):
        for more in ({}, {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}):
            assert ask(demo, headers={"Host": host, **more})[0] == 200, (host, more)


def test_the_name_of_the_machine_counts_where_others_may_come():
    def let_in(host, bound):
        headers = http.client.HTTPMessage()
        headers["Host"] = host
        return fault(headers, known_names(bound)) is None

    mine = socket.gethostname()
    assert let_in(f"{mine}:7860", "0.0.0.0") and let_in("ner.example:7860", "ner.example")
    assert not let_in("ner.example", "0.0.0.0")
    assert mine in ("localhost", "127.0.0.1") or not let_in(mine, "127.0.0.1")


# ---- the command


def test_it_listens_to_this_machine_alone_unless_told():
    assert inspect.signature(cli.demo).parameters["host"].default == "127.0.0.1"
    with serving(None) as server:
        assert server.socket.getsockname()[0] == "127.0.0.1"
        assert server.url == f"http://127.0.0.1:{server.server_port}/"


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded(demo):
    with pytest.raises(InputError, match=rf"--port {demo.server_port}: .*--port 0 takes any free port"):
        server_module.serve_demo("tiny", "127.0.0.1", demo.server_port, LIMITS, lambda: pytest.fail("loaded"))


def start(*arguments):
    command = [sys.executable, "-m", "uner_jax.cli", "demo", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_end(hf_path, number):
    with start("--model", hf_path, "--port", 0, "--max-characters", 60, "--max-new-tokens", 2) as process:
        line = process.stderr.readline()
        try:
            (url,) = re.findall(r"^(http://127\.0\.0\.1:\d+/) shows the demo of .*; Ctrl-C ends it$", line)
            with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)) as connection:
                body = json.dumps({"text": TEXT, "labels": ["person"]})
                connection.request("POST", "/extract", body, {"Content-Type": "application/json"})
                found = json.loads(connection.getresponse().read())
            assert found["labels"] == ["person"] and found["chunks"] == 1
        finally:
            process.send_signal(number)
        error = process.stderr.read()
        assert process.wait(60) == 0, error
    assert "Traceback" not in error and "ending" in error


def test_a_path_that_is_no_model_ends_the_command(tmp_path):
    with start("--model", tmp_path / "absent", "--port", 0) as process:
        error = process.stderr.read()
        assert process.wait(60) == 1 and error.startswith(f"error: {tmp_path / 'absent'}: ")
