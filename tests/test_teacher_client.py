"""What an error means, how long to wait, how many requests at a time, and what they cost."""

import asyncio
import email.utils
import json
import sqlite3
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.teacher.batch import _reply as batch_reply
from data_prep.teacher.client import LONGEST_WAIT, PATIENCE, backoff
from data_prep.teacher.cost import actual_cost, highest_cost, load_price
from data_prep.teacher.faults import TeacherFault, exhausted_for, raise_error_in, retry_after, status_fault
from data_prep.teacher.job import Job, MalformedReplyError, Reply, read_reply
from data_prep.teacher.pace import Pace
from data_prep.teacher.prompts import load_prompt
from data_prep.teacher.store import AnswerStore, Wave
from uner_jax.records import InputError, read_rows
from uner_jax.tokenizer import load_tokenizer

JOB = Job("gpt-4o-mini", load_prompt("type"), {"temperature": 0, "max_tokens": 100})


@pytest.mark.parametrize(
    ("status", "error", "verdict"),
    [
        (429, {"code": "rate_limit_exceeded"}, "limited"),
        (429, {"code": "insufficient_quota"}, "stop"),
        (429, {}, "limited"),
        (401, {}, "stop"),
        (402, {}, "stop"),
        (403, {}, "stop"),
        (404, {"code": "model_not_found"}, "stop"),
        (400, {"code": "context_length_exceeded"}, "refused"),
        (400, {"code": "content_policy_violation"}, "refused"),
        (400, {"message": "This model's maximum context length is 4096 tokens"}, "refused"),
        (413, {}, "refused"),
        (400, {"code": "unsupported_parameter"}, "failed"),
        (422, {}, "failed"),
        (408, {}, "retry"),
        (500, {}, "retry"),
        (529, {}, "retry"),
    ],
)
def test_a_status_has_a_consequence(status, error, verdict):
    assert status_fault(status, {"error": error}, {}).verdict == verdict
    assert status_fault(status, error, {}).verdict == verdict


@given(
    st.integers(300, 599),
    st.recursive(st.none() | st.text() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)),
)
def test_any_error_body_is_a_fault(status, body):
    assert str(status) in str(status_fault(status, body, {}))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Wed, 21 Oct 99999 07:28:00 GMT"}, None),
        ({"retry-after-ms": "x", "retry-after": "2"}, 2.0),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after(headers) == seconds


def test_retry_after_a_date():
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    assert 95 < retry_after({"retry-after": date}) <= 100
    assert retry_after({"retry-after": email.utils.formatdate(time.time() - 100, usegmt=True)}) is None


@pytest.mark.parametrize(
    ("left", "reset", "seconds"),
    [("0", "1.2s", 1.2), ("0", "6m0s", 360.0), ("0", "12ms", 0.012), ("0", "1h2m3s", 3723.0), ("5", "6m0s", 0.0)],
)
@pytest.mark.parametrize("what", ["requests", "tokens"])
def test_rate_limit_headers(left, reset, seconds, what):
    headers = {f"x-ratelimit-remaining-{what}": left, f"x-ratelimit-reset-{what}": reset}
    assert exhausted_for(headers) == pytest.approx(seconds)


@given(st.integers(1, 2000), st.none() | st.floats(0, PATIENCE))
def test_waits_are_bounded_and_as_long_as_asked(attempt, asked):
    wait = backoff(TeacherFault("retry", "x", asked), attempt)
    assert 0 < wait <= LONGEST_WAIT if asked is None else asked <= wait <= asked + 0.1


def test_too_long_a_wait_stops_the_run():
    with pytest.raises(TeacherFault, match="asks to wait 1,000 s") as raised:
        backoff(TeacherFault("limited", "busy", 1000.0), 1)
    assert raised.value.verdict == "stop"


def test_the_pace_halves_once_a_round_and_grows_back():
    async def scenario():
        pace = Pace(8)
        async with pace.slot() as first, pace.slot() as second:
            pace.slow_down(first)
            pace.slow_down(second)  # hit the same limit at the same time
        assert pace.slots == 4
        async with pace.slot() as third:
            pace.slow_down(third)
        assert pace.slots == 2
        for _ in range(100):
            pace.succeeded()
        assert pace.slots == 8

    asyncio.run(scenario())


def test_no_more_slots_than_the_pace_allows_and_none_in_a_pause():
    async def scenario():
        pace, busy, most = Pace(3), 0, 0
        begun = time.monotonic()
        pace.pause(0.05)

        async def work():
            nonlocal busy, most
            async with pace.slot() as started:
                assert started >= begun + 0.05
                busy += 1
                most = max(most, busy)
                await asyncio.sleep(0.001)
                busy -= 1

        await asyncio.gather(*(work() for _ in range(20)))
        assert most == 3

    asyncio.run(scenario())


# ---- replies


def test_a_reply_is_read():
    body = {
        "model": "m",
        "choices": [{"message": {"content": "[]"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
    assert read_reply(body) == Reply("[]", "stop", "m", 3, 1)
    assert read_reply(body | {"usage": None}) == Reply("[]", "stop", "m")


def test_content_in_parts_is_joined():
    parts = [{"type": "text", "text": "[("}, {"type": "text", "text": '"Ann", "person")]'}]
    assert read_reply({"choices": [{"message": {"content": parts}}]}).content == '[("Ann", "person")]'
    with pytest.raises(MalformedReplyError):
        read_reply({"choices": [{"message": {"content": [{"type": "image"}]}}]}).content.encode()


@pytest.mark.parametrize(
    ("code", "verdict"), [("insufficient_quota", "stop"), ("overloaded", "retry"), (None, "retry")]
)
def test_an_error_in_a_reply_of_status_200_is_heard(code, verdict):
    with pytest.raises(TeacherFault) as raised:
        raise_error_in({"error": {"code": code, "message": "no"}})
    assert raised.value.verdict == verdict and not raised.value.maybe_billed
    raise_error_in({"error": None, "choices": [1]})


REPLY = {"choices": [{"message": {"content": "[]"}}], "usage": {"prompt_tokens": 5, "completion_tokens": 1}}


@pytest.mark.parametrize("status", [200, "200", None])
@pytest.mark.parametrize("body", [REPLY, json.dumps(REPLY)], ids=["object", "text"])
def test_a_line_of_a_batch_is_read_in_other_servers_forms(status, body):
    reply = batch_reply({"response": {"status_code": status, "body": body}}, "m")
    assert (reply.content, reply.prompt_tokens) == ("[]", 5)


@given(
    st.recursive(
        st.none() | st.text() | st.integers() | st.booleans(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["choices", "message", "content", "usage", "refusal", "finish_reason"]), x
            )
        ),
    )
)
def test_any_json_is_a_reply_or_malformed(body):
    try:
        reply = read_reply(body)
    except MalformedReplyError:
        return
    assert reply.content.encode("utf-8").decode("utf-8") == reply.content  # a text, without lone surrogates


# ---- cost


def test_the_highest_cost_is_never_below_what_a_tokenizer_makes_of_it(shared_data, llama_tokenizer_path, smollm2_path):
    price = load_price("gpt-4o-mini")
    rows = [row for _, row in read_rows(shared_data / "teacher" / "pile_ner_sample.jsonl")]
    for tokenizer in (load_tokenizer(llama_tokenizer_path), load_tokenizer(smollm2_path)):
        for row in rows[:200]:
            passage = row["conversations"][0]["value"]
            tokens = sum(len(tokenizer.encode(message["content"])) for message in JOB.body(passage)["messages"])
            assert highest_cost(JOB, passage, price) >= price.of(tokens, 100)


def test_prices_of_snapshots_of_batches_and_without_usage():
    price = load_price("gpt-4o-mini")
    assert load_price("gpt-4o-mini-2024-07-18") == price
    # a snapshot may cost more than its family does today: one that is not listed has no price.
    assert load_price("gpt-4o-2024-05-13").input > load_price("gpt-4o").input
    with pytest.raises(InputError, match="has no price of 'gpt-4o-mini-2019-01-01'"):
        load_price("gpt-4o-mini-2019-01-01")
    assert load_price("gpt-4o-mini", batch=True).input == price.input / 2
    assert actual_cost(Reply("x", "stop", "m", 1_000_000, 0), price, 9.0) == pytest.approx(0.15)
    assert actual_cost(Reply("x", "stop", "m"), price, 9.0) == 9.0


@pytest.mark.parametrize(
    "table",
    [
        "",
        "[]",
        "{}",
        '{"date": 1, "batch_factor": 1, "models": {"m": {}}}',
        '{"date": 1, "batch_factor": 1, "models": {"m": {"input": "x", "output": 1}}}',
        '{"date": 1, "batch_factor": 1, "models": {"m": {"input": -1, "output": 1}}}',
        '{"date": 1, "batch_factor": 1, "models": {"m": {"input": NaN, "output": 1}}}',
    ],
)
def test_a_wrong_table_is_named(tmp_path, table):
    (tmp_path / "prices.json").write_text(table)
    with pytest.raises(InputError, match=r"prices\.json: not a table of prices"):
        load_price("m", tmp_path / "prices.json")


# ---- the store


def test_the_key_of_a_request_is_all_of_it():
    other = Job("gpt-4o", JOB.prompt, JOB.parameters), Job(JOB.model, load_prompt("definition"), JOB.parameters)
    more = *other, Job(JOB.model, JOB.prompt, {"temperature": 0, "max_tokens": 101})
    assert len({job.key(text) for job in (JOB, *more) for text in ("a", "b")}) == 8
    assert JOB.key("a") == Job(JOB.model, load_prompt("type"), {"max_tokens": 100, "temperature": 0}).key("a")


def test_what_the_store_holds_survives_and_is_summed(tmp_path):
    with AnswerStore(tmp_path / "s") as store:
        first, second = store.sending("a", 2.0), store.sending("b", 3.0)
        store.answered(first, Reply("[]", "stop", "m", 1, 2), 0.5)
        assert store.cost() == 3.5
        store.not_billed(second)
        store.sending("c", 4.0)
        store.begin_wave(Wave("w", None, "f", "here", 1.0, 2.0), {"d": 1.0, "e": 1.0})
    with AnswerStore(tmp_path / "s") as store:
        assert (store.cost(), store.lost()) == (6.5, 1)
        assert store.answer("a") == Reply("[]", "stop", "m", 1, 2) and store.answer("b") is None
        assert store.open_keys("abcdef") == ["b", "c", "f"], "what is in a wave is not asked again"
        assert store.waves() == [Wave("w", None, "f", "here", 1.0, 2.0)]
        store.name_batch("w", "batch-1")
        assert store.waves() == [Wave("w", "batch-1", "f", "here", 1.0, 2.0)]
        store.end_wave("w", [("d", Reply("x", "stop", "m"), 0.25)], ["e"])
        assert (store.cost(), store.lost(), store.waves()) == (5.75, 2, [])
        assert store.open_keys("abcdef") == ["b", "c", "e", "f"]


def test_a_store_of_another_layout_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "s") as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(InputError, match="a store of layout 99"):
        AnswerStore(tmp_path / "s")
