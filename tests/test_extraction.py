"""Answers do not depend on how they are batched, windows lose nothing, and every entity stands where it says."""

import dataclasses
import json
import math
import re
from collections import Counter
from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import blank_model

from uner_jax.extraction.answers import parse_answer
from uner_jax.extraction.engine import Engine, Generation, Request
from uner_jax.extraction.extractor import Extraction, Extractor
from uner_jax.extraction.grounding import Grammar, satisfies
from uner_jax.extraction.options import Options
from uner_jax.extraction.pool import DECODE_STEPS, Answer, DecodePool
from uner_jax.extraction.prefill import Branch
from uner_jax.extraction.spans import calibrated, flat, ground, merge, occurrences, scored_answer
from uner_jax.extraction.windows import windows
from uner_jax.model.config import LlamaConfig
from uner_jax.model.llama import Llama
from uner_jax.model.parameters import abstract_model
from uner_jax.model.stages import Stages
from uner_jax.records import InputError
from uner_jax.template import answer_turn, encode_answer
from uner_jax.tokenizer import load_tokenizer

# R requests, T tokens, V vocabulary

LONGEST = 120  # no multiple of the engine's buckets
NEW_TOKENS = 40
ALIKE = 20  # tokens that several contexts begin with
CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=LONGEST,
)
NO_EOS = CONFIG.vocab_size  # an id that is never written


# ---- the engine


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly(quick_compilation):
    """Most programs here run a few times, and compiling them is what takes the time."""


@cache
def model(dtype=jnp.float32) -> Llama:
    """A model whose weights are wide, so that its answers wander."""
    random = np.random.default_rng(0)
    abstract = abstract_model(CONFIG, compute_dtype=dtype)
    return jax.tree.map(lambda x: jnp.asarray(random.normal(0, 0.5, x.shape), dtype), abstract)


@cache
def requests() -> tuple[Request, ...]:
    """Contexts of many lengths with one to five questions each, in no order; some requests are there twice.

    All questions on one of the contexts begin alike, and one has nothing behind that. Three contexts begin alike, of
    which one has nothing behind that.
    """
    random = np.random.default_rng(1)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(random.integers(CONFIG.vocab_size, size=count).tolist())

    contexts = [ids(count) for count in (1, 9, 30, 30, 31, 63, 64, 65, 80)]
    made = [Request(context, ids(1 + number % 30)) for number, context in enumerate(contexts * 3)]
    made += [Request(contexts[2], ids(size)) for size in (16, 17)] + [Request(ids(LONGEST - 10), ids(9))]
    context, beginning = ids(40), ids(5)
    made += [Request(context, beginning + ids(size)) for size in (0, 1, 4)]
    made += [Request(context[:ALIKE] + ids(size), ids(3)) for size in (0, 7, 33)]
    made += [made[3], made[3], made[20]]
    return tuple(made[place] for place in random.permutation(len(made)))


@cache
def written() -> tuple[tuple[tuple[int, ...], tuple[float, ...]], ...]:
    """What greedy decoding writes after each prompt, and the log-probabilities, by whole forward passes."""
    prompts = [[*request.context, *request.question] for request in requests()]
    rows = np.arange(len(prompts))
    lengths = np.array([len(prompt) for prompt in prompts])
    tokens_RT = np.zeros((len(prompts), LONGEST + NEW_TOKENS + 1), np.int32)
    for row, prompt in enumerate(prompts):
        tokens_RT[row, : len(prompt)] = prompt
    forward = jax.jit(lambda model, tokens_RT: jax.nn.log_softmax(model(tokens_RT)))
    log_probs_RN = []
    for step in range(NEW_TOKENS):
        log_probs_RTV = np.asarray(forward(model(), tokens_RT[:, :LONGEST]))
        # a row at the model's limit is read no further; what is made up for it is cut off below.
        log_probs_RV = log_probs_RTV[rows, np.minimum(lengths + step, LONGEST) - 1]
        tokens_RT[rows, lengths + step] = log_probs_RV.argmax(-1)
        log_probs_RN.append(log_probs_RV.max(-1))
    found = []
    for row, length in enumerate(lengths.tolist()):
        room = min(NEW_TOKENS, LONGEST - length + 1)
        found.append(
            (
                tuple(tokens_RT[row, length : length + room].tolist()),
                tuple(float(x[row]) for x in log_probs_RN[:room]),
            )
        )
    return tuple(found)


def expected(place: int, eos_id: int, max_new_tokens: int) -> Generation:
    tokens, log_probs = (values[:max_new_tokens] for values in written()[place])
    if eos_id not in tokens:
        return Generation(tokens, log_probs, ended=False)
    end = tokens.index(eos_id)
    return Generation(tokens[:end], log_probs[:end], True, log_probs[end])


@cache
def frequent_eos() -> int:
    """The id that cuts the answers at the most different places."""
    places = {id: {tokens.index(id) for tokens, _ in written() if id in tokens} for id in range(CONFIG.vocab_size)}
    return max(places, key=lambda id: len(places[id]))


def assert_same_answer(found: Generation, wanted: Generation):
    assert (found.tokens, found.ended) == (wanted.tokens, wanted.ended)
    np.testing.assert_allclose(found.log_probs, wanted.log_probs, rtol=0, atol=1e-4)
    assert found.end_log_prob == pytest.approx(wanted.end_log_prob, rel=0, abs=1e-4)


def generate(asked: list[Request], eos_id: int, batch_size: int = 32, max_new_tokens: int = NEW_TOKENS, **options):
    found = list(Engine(model(), eos_id, batch_size, max_new_tokens, **options).generate(asked))
    assert sorted(place for place, _ in found) == list(range(len(asked)))
    return dict(found)


def test_the_requests_are_worth_asking():
    answers = {tokens for tokens, _ in written()}
    assert len(requests()) > 32 > len(set(requests())) - 5
    assert len(answers) > len(set(requests())) // 2
    assert len({len(request.context) + len(request.question) for request in requests()}) > 15
    eos = frequent_eos()
    ends = {tokens.index(eos) if eos in tokens else None for tokens, _ in written()}
    assert None in ends and len(ends) > 5


# some answers never end where others often do: one batch size is enough for the case that none does.
@pytest.mark.parametrize(("eos", "batch_size"), [("never", 32), ("often", 32), ("often", 3), ("often", 1)])
def test_answers_are_those_of_whole_forward_passes(eos, batch_size):
    eos_id = NO_EOS if eos == "never" else frequent_eos()
    found = generate(list(requests()), eos_id, batch_size)
    for place in range(len(requests())):
        assert_same_answer(found[place], expected(place, eos_id, NEW_TOKENS))


def test_in_bfloat16_each_token_is_the_likeliest_but_for_rounding():
    """Products in bfloat16 are not those of float32 on every CPU, and some CPUs lack some of them."""
    asked, of_bfloat16 = list(requests())[:12], model(jnp.bfloat16)
    found = dict(Engine(of_bfloat16, NO_EOS, 8, 12).generate(asked))
    forward = jax.jit(lambda model, tokens_RT: model(tokens_RT).astype(jnp.float32))
    for place, request in enumerate(asked):
        prompt, answer = [*request.context, *request.question], list(found[place].tokens)
        tokens_RT = np.zeros((1, LONGEST), np.int32)
        tokens_RT[0, : len(prompt) + len(answer) - 1] = [*prompt, *answer[:-1]]
        logits_TV = np.asarray(forward(of_bfloat16, tokens_RT))[0, len(prompt) - 1 :][: len(answer)]
        gaps_T = logits_TV.max(-1) - logits_TV[np.arange(len(answer)), answer]
        assert gaps_T.max() < 0.5 < np.median(logits_TV.max(-1) - np.median(logits_TV, -1))


def test_an_answer_copies_from_where_its_last_tokens_stand_first():
    branch = Branch(0, 0, 0, (5, 6, 7, 8, 6, 7, 9, 5), 0, (1,), (), (), ())

    def copied(*tokens, count=3):
        return Answer(branch, list(tokens), []).copied(count)

    assert copied(6) == (7, 8, 6) and copied(3, 6, 7) == (8, 6, 7) and copied(8, 6, 7, count=4) == (9, 5)
    assert copied() == copied(4) == () and copied(9) == (5,)


@pytest.mark.parametrize("copied", [1, 4])
@pytest.mark.parametrize("batch_size", [2, 32])
def test_guessed_copies_change_no_answer(copied, batch_size):
    found = generate(list(requests()), frequent_eos(), batch_size, copied=copied)
    for place in range(len(requests())):
        assert_same_answer(found[place], expected(place, frequent_eos(), NEW_TOKENS))


def test_right_guesses_save_steps(monkeypatch):
    """Answers that are known to be copied: a context that holds its own answer."""
    eos, steps = NO_EOS, []
    short = [request for request in requests() if len(request.context) < LONGEST // 2][:4]
    repeating = list({request.context: request for request in short}.values())
    answers = [generate([request], eos)[0].tokens for request in repeating]
    monkeypatch.setattr(Answer, "copied", lambda self, count: answer[len(self.tokens) :][:count])
    write = DecodePool.write_copying
    monkeypatch.setattr(DecodePool, "write_copying", lambda pool, count: steps.append(1) or write(pool, count))
    for request, answer in zip(repeating, answers, strict=True):
        steps.clear()
        assert generate([request], eos, copied=4)[0].tokens == answer
        assert len(steps) == -(-(len(answer) - 1) // 5)


@pytest.mark.parametrize("seed", range(3))
def test_answers_do_not_depend_on_the_other_requests(seed):
    random = np.random.default_rng(seed)
    places = random.permutation(len(requests()))[: (40, 20, 7)[seed]].tolist()
    found = generate([requests()[place] for place in places], frequent_eos())
    for number, place in enumerate(places):
        assert_same_answer(found[number], expected(place, frequent_eos(), NEW_TOKENS))


def test_what_contexts_begin_with_is_read_once_a_row(monkeypatch):
    rows, read = [], Stages.read
    monkeypatch.setattr(Stages, "read", lambda self, *args: rows.extend(np.asarray(args[0])) or read(self, *args))
    beginning = next(request.context for request in requests() if len(request.context) == ALIKE)
    places = [place for place, request in enumerate(requests()) if request.context[:ALIKE] == beginning]
    found = generate([requests()[place] for place in places], frequent_eos())
    for number, place in enumerate(places):
        assert_same_answer(found[number], expected(place, frequent_eos(), NEW_TOKENS))
    (row,) = rows
    starts = [start for start in range(len(row)) if tuple(row[start : start + ALIKE]) == beginning]
    assert starts == [0] and len({requests()[place].context for place in places}) == 4


@pytest.mark.parametrize("max_new_tokens", [1, 5, NEW_TOKENS])
def test_a_limit_of_new_tokens_ends_an_answer(max_new_tokens):
    found = generate(list(requests()), frequent_eos(), max_new_tokens=max_new_tokens)
    for place in range(len(requests())):
        assert_same_answer(found[place], expected(place, frequent_eos(), max_new_tokens))
    cut = [answer for answer in found.values() if not answer.ended]
    assert cut and max(len(answer.tokens) for answer in cut) == max_new_tokens


def test_the_length_of_the_model_ends_an_answer():
    found = generate(list(requests()), NO_EOS)
    # the last token stands at the limit: it is written, and cannot be read.
    room = [LONGEST - len(request.context) - len(request.question) + 1 for request in requests()]
    assert min(room) == 2 and sum(count < NEW_TOKENS for count in room) > 1
    assert [len(found[place].tokens) for place in range(len(room))] == [min(count, NEW_TOKENS) for count in room]
    assert not any(answer.ended for answer in found.values())


@cache
def first_words() -> tuple[int, ...]:
    """What most answers begin with."""
    return Counter(tokens[:2] for tokens, _ in written()).most_common(1)[0][0]


@pytest.mark.parametrize("batch_tokens", [64, 2048])
@pytest.mark.parametrize("agreed", [1, 2])
def test_a_draft_changes_no_answer(agreed, batch_tokens):
    # the draft of two is read whole where the first two words are followed by the end; nearly everywhere it is not.
    draft = first_words()[:agreed]
    found = generate(list(requests()), frequent_eos(), draft=draft, batch_tokens=batch_tokens)
    for place in range(len(requests())):
        assert_same_answer(found[place], expected(place, frequent_eos(), NEW_TOKENS))


def test_a_draft_that_is_the_whole_answer_needs_no_decoding(monkeypatch):
    place = next(place for place, (tokens, _) in enumerate(written()) if len(set(tokens[:4])) == 4)
    *draft, eos_id = written()[place][0][:4]
    monkeypatch.setattr(DecodePool, "write", None)
    (found,) = generate([requests()[place]], eos_id, draft=draft).values()
    assert_same_answer(found, expected(place, eos_id, NEW_TOKENS))
    assert found.draft_log_prob == pytest.approx(sum(found.log_probs) + found.end_log_prob, abs=1e-6)


def test_the_probability_of_the_draft_is_that_of_reading_it():
    draft, eos_id = (3, 7), 11
    found = generate(list(requests()), eos_id, draft=draft)
    for place, request in enumerate(requests()):
        tokens = [*request.context, *request.question, *draft]
        if len(tokens) > LONGEST:
            continue
        log_probs_TV = np.asarray(jax.nn.log_softmax(model()(np.asarray([tokens], np.int32)))[0])
        wanted = sum(log_probs_TV[place - 4, token] for place, token in enumerate((*draft, eos_id), len(tokens) + 1))
        assert found[place].draft_log_prob == pytest.approx(float(wanted), abs=1e-4)


def test_the_pool_stays_full_while_there_is_more_to_write(monkeypatch):
    alive = []
    write = DecodePool.write

    def watched(self, *arguments):
        alive.append((len(self.answers), self.rows))
        return write(self, *arguments)

    monkeypatch.setattr(DecodePool, "write", watched)
    generate(list(requests()), frequent_eos(), batch_size=8)
    # 34 answers: those that end make room, and when nothing more comes the pool shrinks.
    full = [count for count, rows in alive if rows == 8]
    left = sum(1 for tokens, _ in written() if frequent_eos() not in tokens[:1])
    assert all(count == 8 for count in full[: (left - 8) // 8]) and len(full) > 3
    assert alive[-1][1] < 8


def test_an_answer_within_a_constraint_is_the_likeliest_at_each_step():
    """Even ids only, and after 5 tokens nothing but the end."""
    eos_id = 11
    places = list(range(0, len(requests()), 3))

    class Even:
        def __init__(self):
            self.tokens = []

        def allowed(self) -> np.ndarray:
            ids = [eos_id] if len(self.tokens) == 5 else range(0, CONFIG.vocab_size, 2)
            bits = np.zeros(CONFIG.vocab_size, np.uint8)
            bits[list(ids)] = 1
            return np.packbits(bits, bitorder="little").view(np.int32)

        def written(self, token: int) -> None:
            self.tokens.append(token)

    engine = Engine(model(), eos_id, 4, NEW_TOKENS)
    asked = [requests()[place] for place in places]
    found = dict(engine.generate_within(asked, [Even() for _ in asked]))
    assert len(found) == len(asked)
    for number, request in enumerate(asked):
        tokens = [*request.context, *request.question]
        room = min(5, LONGEST - len(tokens) + 1)
        assert found[number].ended == (len(tokens) + 5 <= LONGEST) and len(found[number].tokens) == room
        for token, log_prob in zip(found[number].tokens, found[number].log_probs, strict=True):
            row_V = np.asarray(jax.nn.log_softmax(model()(np.asarray([tokens], np.int32)))[0, -1])
            assert token == 2 * row_V[::2].argmax()
            assert log_prob == pytest.approx(float(row_V[token]), abs=1e-4)
            tokens.append(token)


def test_a_context_with_more_questions_than_a_row_has_room_for():
    random = np.random.default_rng(5)
    context = tuple(random.integers(CONFIG.vocab_size, size=40).tolist())
    asked = [Request(context, tuple(random.integers(CONFIG.vocab_size, size=20).tolist())) for _ in range(70)]
    together = generate(asked, NO_EOS, max_new_tokens=3)
    for place in (0, 33, 69):
        (alone,) = generate([asked[place]], NO_EOS, max_new_tokens=3).values()
        assert_same_answer(together[place], alone)


def test_nothing_is_asked():
    assert generate([], 0) == {}


@pytest.mark.parametrize("extra", [0, 1, 1000])
def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(extra):
    asked = [Request((1, 2), (3,)), Request((1,) * 100, (2,) * (LONGEST - 100 + extra))]
    message = f"a prompt of {LONGEST + extra} tokens leaves no room for an answer: the model reads {LONGEST}"
    with pytest.raises(InputError, match=message):
        list(Engine(model(), 0).generate(asked))


@pytest.mark.parametrize("sizes", [{"batch_size": 0}, {"max_new_tokens": 0}, {"batch_size": -1}])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(InputError, match="must be at least 1"):
        Engine(model(), 0, **sizes)


# ---- windows


class Tokenizers(dict):
    """Tokenizers by name; a failing example shows no vocabularies."""

    def __repr__(self) -> str:
        return "tokenizers"


@pytest.fixture(scope="session")
def tokenizers(tok512, llama_tokenizer_path, smollm2_path):
    llama2, smollm2 = load_tokenizer(llama_tokenizer_path), load_tokenizer(smollm2_path)
    return Tokenizers(tok512=tok512, llama2=llama2, smollm2=smollm2)


PIECES = st.sampled_from(
    [
        *(" ", "  ", " " * 9, "\n", "\r\n", "\t", "\u3000", "\u200b", "\x00", "=", "=" * 16, "a", "the", "Lovelace"),
        *("1234", "é", "e\u0301", "東京", "😀", "👩\u200d👩\u200d👧", "ﷺ", "</s>", "x" * 70),
    ]
)
TEXTS = st.lists(PIECES, max_size=60).map("".join)
KINDS = st.sampled_from(["tok512", "llama2", "smollm2"])


def tokens_in(text: str, tokenizer) -> int:
    return len(tokenizer.offsets(text))


@settings(max_examples=500, deadline=None)
@given(text=TEXTS, kind=KINDS, size=st.integers(1, 40), overlap=st.integers(0, 40))
def test_windows_cover_the_text_and_fit(text, kind, size, overlap, tokenizers):
    tokenizer = tokenizers[kind]
    found = windows(text, tokenizer, size, overlap)
    assert found[0][0] == 0 and found[-1][1] == len(text)
    for (start, end), (next_start, next_end) in pairwise(found):
        assert start < next_start <= end
        # of some size, a window gets farther than its overlap reaches back.
        assert end < next_end or size < 16 or overlap > size // 4
    for start, end in found:
        assert tokens_in(text[start:end], tokenizer) <= size or end - start == 1
    if tokens_in(text, tokenizer) <= size:
        assert found == [(0, len(text))]


@settings(max_examples=50, deadline=None)
@given(
    words=st.lists(st.sampled_from(["Ada", "Lovelace", "in", "Zürich", "東京", "1835.", "😀"]), min_size=100),
    spaces=st.lists(st.sampled_from([" ", "\n", "\r\n", " \u3000"]), min_size=1, max_size=9),
    kind=KINDS,
    size=st.integers(64, 100),
)
def test_windows_of_prose_cut_no_word_and_overlap(words, spaces, kind, size, tokenizers):
    tokenizer = tokenizers[kind]
    text = "".join(word + spaces[number % len(spaces)] for number, word in enumerate(words))
    overlap = size // 4
    found = windows(text, tokenizer, size, overlap)
    if tokens_in(text, tokenizer) > size:
        assert len(found) > 1
    for (_, end), (next_start, _) in pairwise(found):
        assert next_start < end
        assert text[next_start - 1].isspace() and not text[next_start].isspace()
        assert text[end].isspace()
        shared = sum(next_start <= first < last <= end for first, last in tokenizer.offsets(text))
        assert 0 < shared <= overlap


LONG = {
    "one word": "x" * 20_000,
    "no spaces": "東京は日本の首都である。" * 2_000,
    "prose": "Ada Lovelace moved to London in 1835 and met Charles Babbage there. " * 300,
    "white space": " " * 20_000,
    # few tokens for many characters, then many for few: half of the characters is not half of the tokens.
    "rules": ("=" * 960 + " " + "東京" * 60) * 20,
    "emoji": "👩‍👩‍👧" * 3_000,
}


@pytest.mark.parametrize("kind", ["tok512", "llama2", "smollm2"])
@pytest.mark.parametrize("name", LONG)
def test_long_documents_take_linear_work(name, kind, tokenizers):
    read = []

    class Counted:
        def offsets(self, text):
            read.append(len(text))
            return tokenizers[kind].offsets(text)

    text, size = LONG[name], 256
    found = windows(text, Counted(), size, size // 4)
    assert found[0][0] == 0 and found[-1][1] == len(text)
    assert len(found) <= 1 + 4 * tokens_in(text, tokenizers[kind]) / size
    assert sum(read) <= 6 * len(text)
    assert all(start < next_start <= end for (start, end), (next_start, _) in pairwise(found))
    assert all(tokens_in(text[start:end], tokenizers[kind]) <= size for start, end in found)


# ---- spans

UNICODE = st.text(st.sampled_from("aAbé\u0301e😀𝒳𐍈\u200d👩 \r\n\ud7ff東"), max_size=30)


@settings(max_examples=500)
@given(text=UNICODE, part=UNICODE.filter(lambda part: len(part) < 4))
def test_occurrences_are_those_of_a_regular_expression(text, part):
    found = list(occurrences(text, part))
    assert found == ([match.span() for match in re.finditer(re.escape(part), text)] if part else [])
    assert all(text[start:end] == part for start, end in found)


class Letters:
    """A tokenizer whose ids are code points."""

    def decode(self, ids):
        return "".join(map(chr, ids))


@settings(max_examples=300)
@given(
    items=st.lists(st.text(st.sampled_from('ab,]["\\ é😀'), min_size=1, max_size=5).filter(str.strip), max_size=5),
    ascii=st.booleans(),
    data=st.data(),
)
def test_a_score_is_the_probability_of_the_tokens_of_the_item(items, ascii, data):
    answer = json.dumps(items, ensure_ascii=ascii)
    log_probs = data.draw(st.lists(st.floats(-3, 0), min_size=len(answer), max_size=len(answer)))
    parsed, scores = scored_answer(Generation(tuple(map(ord, answer)), tuple(log_probs), True), Letters())
    assert [item.text for item in parsed.items] == items
    place = 1
    for item, score in zip(items, scores, strict=True):
        literal = json.dumps(item, ensure_ascii=ascii)
        inside = log_probs[place + 1 : place + len(literal) - 1]
        assert score == pytest.approx(math.exp(sum(inside))) and 0 <= score <= 1
        place += len(literal) + 2


@pytest.mark.parametrize("kind", ["tok512", "llama2", "smollm2"])
@pytest.mark.parametrize("items", [["😀"], ["a😀", "b"], ["𐍈", "東京 é"], ["Ada Lovelace", "London"], ["😀😀", "😀"]])
def test_a_character_of_several_tokens_counts_with_all_of_them(items, kind, tokenizers):
    tokenizer = tokenizers[kind]
    answer = json.dumps(items, ensure_ascii=False)
    spans, ids = tokenizer.offsets(answer), tokenizer.encode(answer)
    log_probs = [-0.01 * 2**-place for place in range(len(ids))]
    parsed, scores = scored_answer(Generation(tuple(ids), tuple(log_probs), True), tokenizer)
    assert [item.text for item in parsed.items] == items
    for item, score in zip(parsed.items, scores, strict=True):
        # a token without a character of its own continues the one before it.
        inside = [
            start < item.end and end > item.start if start < end else item.start < end <= item.end
            for start, end in spans
        ]
        assert score == pytest.approx(math.exp(sum(np.array(log_probs)[inside])), rel=1e-12)


def test_log_probs_above_zero_by_rounding_make_no_score_above_one():
    (_, (score,)) = scored_answer(Generation(tuple(map(ord, '["a"]')), (0.0, 0.0, 1e-7, 0.0, 0.0), True), Letters())
    assert score == 1.0


def test_every_occurrence_is_listed_and_what_is_not_there_is_counted():
    answer = parse_answer('["é", "e", "x", "xx", "é"]')
    spans, missing = ground("é e é", "letter", answer, [0.5, 0.4, 0.3, 0.2, 0.1])
    assert missing == 2
    assert [(span["start"], span["end"], span["score"]) for span in spans] == [
        (0, 1, 0.5),
        (4, 5, 0.5),
        (2, 3, 0.4),
        (0, 1, 0.1),
        (4, 5, 0.1),
    ]


SPANS = st.lists(
    st.builds(
        lambda start, size, label, score: {
            "start": start,
            "end": start + size,
            "text": "x" * size,
            "label": label,
            "score": score,
        },
        st.integers(0, 3),
        st.integers(1, 3),
        st.sampled_from("ab"),
        st.floats(0, 1),
    ),
    max_size=20,
)


@given(spans=SPANS, random=st.randoms())
def test_merging_keeps_each_span_once_with_its_best_score(spans, random):
    merged = merge(spans)
    keys = [(span["start"], span["end"], span["label"]) for span in merged]
    assert set(keys) == {(span["start"], span["end"], span["label"]) for span in spans} and len(set(keys)) == len(keys)
    for span in merged:
        same = [s["score"] for s in spans if all(s[name] == span[name] for name in ("start", "end", "label"))]
        assert span["score"] == max(same)
    # in the order of the text, the longer first where two begin together; the order given does not matter.
    assert keys == sorted(keys, key=lambda key: (key[0], -key[1], key[2]))
    assert merge(random.sample(spans, len(spans))) == merged


# ---- the extractor

READS = dataclasses.replace(CONFIG, vocab_size=512, max_position_embeddings=512)
DOCUMENT = "Ada Lovelace met Charles Babbage in London. 😀 Zu\u0308rich liegt am Zürichsee.\r\n"
FREE = Options(grounding="none")
KNOWN = {
    "person": ["Ada Lovelace", "Charles Babbage", "Babbage"],
    "location": ["London", "Zu\u0308rich", "Zürichsee"],
    "smiley": ["😀"],
    "name": ["Ada", "Ada Lovelace", "London"],
    "nothing": [],
}


@pytest.fixture
def extractor(tok512, monkeypatch):
    """An extractor whose engine knows the names of KNOWN: it lists those that stand in the passage."""

    def answers(self, asked):
        for place in reversed(range(len(asked))):
            passage, label = read(asked[place], tok512)
            listed = [name for name in KNOWN[label] if name in passage]
            yield place, said(json.dumps(listed, ensure_ascii=False), tok512)

    monkeypatch.setattr(Engine, "generate", answers)
    return Extractor(blank_model(READS), tok512, options=FREE)


def read(request, tokenizer) -> tuple[str, str]:
    """The passage and the label that a request asks for, from its ids alone."""
    context, question = tokenizer.decode(request.context), tokenizer.decode(request.question)
    (passage,) = re.findall(r"provided text\. USER: Text: (.*) ASSISTANT: I've read this text\.", context, re.DOTALL)
    (label,) = re.findall(r"USER: What describes (.*) in the text\? ASSISTANT:", question)
    assert len(request.context) + len(request.question) < READS.max_position_embeddings
    return passage, label


def said(answer: str, tokenizer, log_prob: float = -0.01, ended: bool = True) -> Generation:
    ids = tuple(tokenizer.encode(answer))
    return Generation(ids, (log_prob,) * len(ids), ended)


def mentions(text: str, labels) -> set[tuple[int, int, str]]:
    return {
        (*match.span(), label)
        for label in labels
        for name in KNOWN[label]
        for match in re.finditer(re.escape(name), text)
    }


def keys(spans):
    return [(span["start"], span["end"], span["label"]) for span in spans]


def assert_true_spans(text, spans):
    for span in spans:
        assert list(span) == ["start", "end", "text", "label", "score"]
        assert text[span["start"] : span["end"]] == span["text"]
        assert 0 < span["score"] <= 1
    assert len(set(keys(spans))) == len(spans)


def test_entities_of_a_short_text(extractor):
    (found,) = extractor.extract([DOCUMENT], list(KNOWN))
    assert_true_spans(DOCUMENT, found.entities)
    assert set(keys(found.entities)) == mentions(DOCUMENT, KNOWN)
    assert (found.chunks, found.ungrounded, found.cut) == (1, 0, 0)
    assert extractor.predict_entities(DOCUMENT, list(KNOWN)) == found.entities
    # a span inside of another, and one span of two labels, are entities of their own.
    assert {(0, 12, "person"), (0, 12, "name"), (0, 3, "name")} < set(keys(found.entities))


@pytest.mark.parametrize("repeats", [2, 5, 40])
def test_offsets_of_a_long_text_are_the_documents(repeats, extractor, tok512):
    text = "".join(f"{number}. {DOCUMENT}" for number in range(repeats))
    (found,) = extractor.extract([text], list(KNOWN))
    assert_true_spans(text, found.entities)
    assert set(keys(found.entities)) == mentions(text, KNOWN)
    assert keys(found.entities) == sorted(keys(found.entities), key=lambda key: (key[0], -key[1], key[2]))
    assert (found.chunks > 1) == (tokens_in(text, tok512) > 210) and (repeats == 2 or found.chunks > repeats // 5)


def test_an_entity_in_two_windows_is_one_with_the_best_score(extractor, tok512, monkeypatch):
    text = "".join(f"{number}. {DOCUMENT}" for number in range(10))
    sure = {}

    def answers(self, asked):
        for place, request in enumerate(asked):
            passage, _ = read(request, tok512)
            sure[passage] = -0.1 / (place + 1)
            yield place, said('["London"]', tok512, sure[passage])

    monkeypatch.setattr(Engine, "generate", answers)
    (found,) = extractor.extract([text], ["location"])
    assert found.chunks == len(sure) > 2
    assert set(keys(found.entities)) == {(*match.span(), "location") for match in re.finditer("London", text)}
    tokens = sum(end > 2 and start < 8 for start, end in tok512.offsets('["London"]'))
    seen_twice = 0
    for span in found.entities:
        around = [
            math.exp(tokens * log_prob)
            for passage, log_prob in sure.items()
            if text.index(passage) <= span["start"] and span["end"] <= text.index(passage) + len(passage)
        ]
        assert span["score"] == pytest.approx(max(around))
        seen_twice += len(around) > 1
    assert seen_twice


def test_the_order_of_the_labels_does_not_matter(extractor):
    text, labels = DOCUMENT * 3, list(KNOWN)
    expected_spans = extractor.predict_entities(text, labels)
    assert expected_spans
    for order in (labels[::-1], labels[2:] + labels[:2], labels + labels):
        assert extractor.predict_entities(text, order) == expected_spans
    alone = [span for label in labels for span in extractor.predict_entities(text, [label])]
    assert merge(alone) == expected_spans


def test_many_texts_are_answered_as_one(extractor):
    texts = [DOCUMENT * 3, "", "London", DOCUMENT, "nothing here", " \n ", "London"]
    labels = [["person"], ["person"], ["location", "name"], ["smiley"], ["name"], ["name"], []]
    found = extractor.extract(texts, labels)
    assert [one.entities for one in found] == extractor.inference(texts, labels)
    for text, wanted, one in zip(texts, labels, found, strict=True):
        assert one.entities == extractor.predict_entities(text, wanted)
        assert set(keys(one.entities)) == mentions(text, wanted)
    assert [one.chunks for one in found] == [one.chunks and one.chunks for one in found]
    assert found[1] == found[5] == Extraction([], 0)
    assert extractor.inference(texts, ["location"]) == extractor.inference(texts, [["location"]] * len(texts))
    assert extractor.inference(tuple(texts), ("location",)) == extractor.inference(texts, ["location"])
    assert extractor.inference([], ["location"]) == extractor.inference([], []) == []


def test_no_labels_no_questions(extractor):
    assert extractor.extract([DOCUMENT, DOCUMENT], []) == [Extraction([], 1)] * 2


ANSWERS = {
    '["London", "Paris", "london", ""]': (1, 2, 0, True),
    "I do not know.": (0, 0, 0, True),
    "": (0, 0, 0, True),
    '["London", "Ada Love': (1, 0, 1, False),
    '["Pari': (0, 0, 1, False),
    '["Lon\\u0064on", "Z\\u00fcrichsee"]': (2, 0, 0, True),
    '["Zürich"]': (1, 0, 0, True),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_is_wrong_with_an_answer_is_counted(answer, extractor, tok512, monkeypatch):
    entities, ungrounded, cut, ended = ANSWERS[answer]
    monkeypatch.setattr(Engine, "generate", lambda self, asked: [(0, said(answer, tok512, ended=ended))])
    (found,) = extractor.extract([DOCUMENT], ["location"])
    assert_true_spans(DOCUMENT, found.entities)
    assert (len(found.entities), found.ungrounded, found.cut) == (entities, ungrounded, cut)


WRONG = {
    "a text that is none": (["a", 5], ["x"], "a text must be a string, found int"),
    "no texts": (None, ["x"], "texts must be a list of strings, found None"),
    "one text": ("a", ["x"], "texts must be a list of strings, found 'a'"),
    "one label": (["a"], "person", "labels must be a list of strings, found 'person'"),
    "no labels": (["a"], None, "labels must be a list of strings, found None"),
    "labels of one text a string": (["a", "b"], [["x"], "person"], "the labels of a text must be .* found 'person'"),
    "labels of one text none": (["a", "b"], [["x"], None], "the labels of a text must be .* found None"),
    "a label that is none": (["a"], [["x", 3]], "a label must be a non-empty string, found 3"),
    "a blank label": (["a"], ["x", " "], "a label must be a non-empty string, found ' '"),
    "labels of labels": (["a"], [[["x"]]], r"a label must be a non-empty string, found \['x'\]"),
    "too few lists": (["a", "b"], [["x"]], "2 texts, but 1 lists of labels"),
    "a lone surrogate": (["a\ud800"], ["x"], "no lone surrogates"),
    "a lone surrogate in a label": (["a"], ["\ud800"], "no lone surrogates"),
    "a label without end": (["a"], ["person " * 100], "'person person .*' makes a question of .* tokens; more than"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_types_are_refused(name, extractor):
    texts, labels, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        extractor.extract(texts, labels)


def test_a_document_is_checked_alone(extractor):
    extractor.check(DOCUMENT, ["a", "a"])
    for text, labels in ((5, ["a"]), ("\ud800", ["a"]), ("a", [["a"]]), ("a", "a"), ("a", ["b" * 500]), ("a", [""])):
        with pytest.raises(InputError):
            extractor.check(text, labels)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS.map(lambda text: text * 5), longest=st.integers(260, 600), letters=st.integers(1, 200))
def test_a_prompt_always_fits(text, longest, letters, tok512):
    """With the longest label that is taken, whatever the text: half of the room that is left is the answer's."""
    extractor = Extractor(blank_model(dataclasses.replace(READS, max_position_embeddings=longest)), tok512)
    asked = []
    extractor._engine.generate = lambda requests: asked.extend(requests) or []
    label = "q" * letters
    try:
        extractor.check(text, [label])
    except InputError:
        with pytest.raises(InputError, match="makes a question of"):
            extractor.extract([text], [label])
        return
    extractor.extract([text], [label])
    assert bool(asked) == bool(text.strip())
    list(extractor._engine._trees(asked))  # refuses what does not fit
    assert all(longest - len(request.context) - len(request.question) > 10 for request in asked)


@pytest.mark.parametrize("longest", [1, 64, 128, 200])
def test_a_model_too_short_for_the_prompt_is_refused(longest, tok512):
    with pytest.raises(InputError, match=f"the model reads {longest} tokens, which is too few"):
        Extractor(blank_model(dataclasses.replace(READS, max_position_embeddings=longest)), tok512)


def wide_model(longest: int) -> Llama:
    """A model that knows nothing."""
    random = np.random.default_rng(0)
    config = dataclasses.replace(READS, max_position_embeddings=longest)
    return jax.tree.map(lambda x: jnp.asarray(random.normal(0, 0.5, x.shape), jnp.float32), abstract_model(config))


def test_the_real_engine_answers_the_extractor(tok512):
    """The whole way, with a model that knows nothing: every answer is counted as something."""
    extractor = Extractor(wide_model(260), tok512, batch_size=4, max_new_tokens=3, options=FREE)
    found = extractor.extract([DOCUMENT, DOCUMENT * 3], ["person", "x"])
    assert [one.cut for one in found] == [2 * one.chunks for one in found] and found[1].chunks > 1
    assert [one.questions for one in found] == [2 * one.chunks for one in found]
    assert DECODE_STEPS > 3


HOSTILE = [
    'a "quoted" \\ back\\slash',
    "e\u0301 é 👩\u200d👩\u200d👧 𝒳",
    "tab\tand\r\nline",
    "東京都に行く",
    "[] ] [ ,",
    "x" * 40,
]


@pytest.mark.parametrize("text", [DOCUMENT, *HOSTILE])
def test_answers_that_are_held_to_the_passage_stand_in_it(text, tok512):
    held = Extractor(wide_model(512), tok512, batch_size=4, max_new_tokens=40, options=Options())
    asked = ["person", "x", "a y"]
    (found,) = held.extract([text], asked)
    assert_true_spans(text, found.entities)
    assert found.held > 0 and found.ungrounded == 0
    assert {span["label"] for span in found.entities} <= set(asked)
    assert all(span["text"].strip() == span["text"] for span in found.entities)


def test_an_answer_that_is_sound_is_not_written_again(tok512, monkeypatch):
    answers = ['["Ada Lovelace", "London"]', "[]", '["Paris"]', "nothing", '["Lon']
    monkeypatch.setattr(
        Engine,
        "generate",
        lambda self, asked: [(n, said(answer, tok512, ended=n < 4)) for n, answer in enumerate(answers)],
    )
    again = []

    def within(self, asked, constraints):
        again.extend(read(request, tok512)[1] for request in asked)
        return [(n, said(' ["London"]', tok512)) for n in range(len(asked))]

    monkeypatch.setattr(Engine, "generate_within", within)
    (found,) = Extractor(blank_model(READS), tok512).extract([DOCUMENT], list("abcde"))
    # what was cut has no whole item, and is not asked for again.
    assert again == ["c", "d"] and (found.held, found.cut, found.empty) == (2, 1, 1)
    assert keys(found.entities) == [(0, 12, "a"), (36, 42, "a"), (36, 42, "c"), (36, 42, "d")]


def test_an_answer_that_no_constraint_can_be_made_for_stays(tok512, monkeypatch):
    monkeypatch.setattr(Engine, "generate", lambda self, asked: [(0, said('["London", "Paris"]', tok512))])
    monkeypatch.setattr(Grammar, "constraint", lambda *arguments: None)
    (found,) = Extractor(blank_model(READS), tok512).extract([DOCUMENT], ["city"])
    assert keys(found.entities) == [(36, 42, "city")] and (found.ungrounded, found.held) == (1, 0)


@pytest.mark.parametrize("kind", ["tok512", "llama2", "smollm2"])
def test_a_constraint_allows_every_list_of_words_of_the_passage(kind, tokenizers):
    tokenizer = tokenizers[kind]
    grammar = Grammar(tokenizer, tokenizer.vocab_size)
    words = DOCUMENT.split()
    for items in ([], ["Ada Lovelace", "London"], ["😀 Zu\u0308rich"], words, words[3:4] * 3):
        ids = encode_answer(answer_turn(items), tokenizer)
        constraint = grammar.constraint(DOCUMENT, "substring").again()
        for token in (*ids, tokenizer.eos_id):
            assert constraint.allowed()[token // 32] >> (token % 32) & 1, (items, token)
            constraint.written(token)
    refused = encode_answer(answer_turn(["Paris"]), tokenizer)
    constraint = grammar.constraint(DOCUMENT, "substring")
    allowed = []
    for token in refused:
        allowed.append(constraint.allowed()[token // 32] >> (token % 32) & 1)
        if not allowed[-1]:
            break
        constraint.written(token)
    assert allowed[-1] == 0


SATISFYING = {
    ' ["London"]': (True, True),
    "[]": (True, True),
    ' ["Paris"]': (False, True),
    ' [""]': (False, False),
    ' [" London"]': (False, True),
    ' ["London",]': (False, False),
    ' {"a": 1}': (False, False),
    " [5]": (False, False),
    "London": (False, False),
    ' ["Z\\u00fcrichsee"]': (True, True),
    ' ["Zürichsee"]': (False, False),
}


@pytest.mark.parametrize("answer", SATISFYING)
def test_what_satisfies_a_constraint(answer):
    substring, listed = SATISFYING[answer]
    assert satisfies(answer, DOCUMENT, "substring") == substring
    assert satisfies(answer, DOCUMENT, "json") == listed
    assert satisfies(answer, DOCUMENT, "none")


def test_options_change_what_is_found(extractor, tok512):
    def found(labels=("name", "person"), **options):
        options = dataclasses.replace(FREE, **options)
        return Extractor(blank_model(READS), tok512, options=options).extract([DOCUMENT * 2], labels)[0]

    plain = found()
    assert len(plain.entities) == 2 * 6
    assert keys(found(occurrences="first").entities) == keys(plain.entities)[:6]
    kept = found(flat=True).entities
    assert kept == flat(plain.entities) and 0 < len(kept) < len(plain.entities)
    score = plain.entities[0]["score"]
    assert not found(threshold=score + 1e-6).entities or found(threshold=score + 1e-6).entities != plain.entities
    assert found(temperature=2.0).entities[0]["score"] < score
    described = found(labels={"human": "person", "city": "location"})
    assert {span["label"] for span in described.entities} == {"human", "city"} and len(described.entities) == 2 * 6
    assert set(described.none) == {"human", "city"} and all(0 <= value <= 1 for value in described.none.values())


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(1, 6), st.sampled_from("ab"), st.sampled_from([0.2, 0.5, 0.9])),
        max_size=12,
    )
)
def test_flat_spans_do_not_overlap_and_each_that_is_left_out_meets_a_better_one(drawn):
    spans = [
        {"start": start, "end": start + size, "text": "x" * size, "label": label, "score": score}
        for start, size, label, score in drawn
    ]
    kept = flat(spans)
    assert all(one["end"] <= other["start"] for one, other in pairwise(kept))
    for span in spans:
        if span not in kept:
            rivals = [k for k in kept if k["start"] < span["end"] and span["start"] < k["end"]]
            size = span["end"] - span["start"]
            assert any((k["score"], k["end"] - k["start"]) >= (span["score"], size) for k in rivals)
    assert flat(list(reversed(spans))) == kept


@given(st.floats(0, 1), st.floats(0.1, 10))
def test_a_temperature_softens_and_keeps_the_order(probability, temperature):
    soft = calibrated(probability, temperature)
    assert 0 <= soft <= 1
    if temperature > 1:
        assert abs(soft - 0.5) <= abs(probability - 0.5) + 1e-12
    assert calibrated(probability, 1.0) == probability


@pytest.mark.parametrize(
    "wrong", [{"threshold": -0.1}, {"threshold": 1.1}, {"temperature": 0.0}, {"question": "What is it?"}]
)
def test_options_that_mean_nothing_are_refused(wrong):
    with pytest.raises(InputError, match="found"):
        Options(**wrong)


def test_a_window_ends_with_a_sentence(tok512):
    text = " ".join(f"Sentence {number} has some words in it." for number in range(60))
    spans = windows(text, tok512, 100, 10)
    assert len(spans) > 3 and all(text[:end].endswith(".") for _, end in spans)
