"""The prompt is the published one to the letter, and what extraction asks begins what training saw."""

import json
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import pytest
from byte_level import write_directory
from hypothesis import example, given, settings
from hypothesis import strategies as st

from uner_jax.records import InputError, read_rows
from uner_jax.template import (
    ACKNOWLEDGEMENT,
    all_in_one_turn,
    answer_turn,
    encode_context,
    encode_conversation,
    encode_prompt,
    encode_question,
    passage_turn,
    question_turn,
)
from uner_jax.tokenizer import load_tokenizer

NAMES = "llama2", "tok512", "smollm2", "qwen"
WITH_BOS = "llama2", "tok512"
SCHEMES = "whole", "released"
FRAGMENTS = [
    "</s>", "<s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<0x0A>", "USER:", " ASSISTANT:",
    "ASSISTANT: ", '"', "'", "\\", "[]", '["x"]', "", " ", "   ", "\t", "\n", "\r\n", "\x00", "▁", "👩‍🚀", "e\u0301",
    "Ω", "123", ":", " :",
]  # fmt: skip
strings = st.lists(st.sampled_from(FRAGMENTS) | st.text(st.characters(codec="utf-8"), max_size=4), max_size=6).map(
    "".join
)


@dataclass
class Tokenizers:
    """The tokenizers, each read when it is first asked for."""

    paths: dict

    def __getitem__(self, name):
        return self._load(self.paths[name])

    @staticmethod
    @cache
    def _load(path):
        return load_tokenizer(path)


@pytest.fixture(scope="session")
def tokenizers(shared_data, llama_tokenizer_path, smollm2_path, tmp_path_factory):
    tok512 = shared_data / "models" / "stories260K" / "tok512.model"
    qwen = tmp_path_factory.mktemp("qwen")
    write_directory(qwen, [*PUBLISHED, ACKNOWLEDGEMENT] * 2, "qwen2")
    return Tokenizers({"llama2": llama_tokenizer_path, "tok512": tok512, "smollm2": smollm2_path, "qwen": qwen})


@pytest.fixture(scope="session")
def golden(shared_data):
    return [row for _, row in read_rows(shared_data / "golden" / "preprocess2_llama.jsonl")]


def conversation(first_turn, *questions, acknowledgement=ACKNOWLEDGEMENT):
    """The conversation of a first turn and of pairs of question and answer."""
    values = [first_turn, acknowledgement, *(value for pair in questions for value in pair)]
    turns = [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]
    return {"id": "a", "conversations": turns}


def asked(passage, *questions, dataset=None):
    """The conversation of a passage and of pairs of entity type and spans."""
    turns = [(question_turn(entity_type), answer_turn(spans)) for entity_type, spans in questions]
    return conversation(passage_turn(passage, dataset), *turns)


def segments(ids, eos_id):
    """The runs of ids between EOS and EOS; the last one is what follows the last EOS."""
    runs = [[]]
    for token in ids:
        if token == eos_id:
            runs.append([])
        else:
            runs[-1].append(token)
    return runs


def scored(ids, mask):
    """The runs of ids that are in the loss."""
    return [[token for token, _ in run] for kept, run in groupby(zip(ids, mask, strict=True), lambda t: t[1]) if kept]


EXAMPLE = asked("Zoë Müller lives in 東京.", ("person", ["Zoë Müller"]), ("date", []))
# the words of the paper's Figure 2, between one end of turn and the next.
PUBLISHED = [
    "A virtual assistant answers questions from a user based on the provided text. "
    "USER: Text: Zoë Müller lives in 東京. ASSISTANT: I've read this text.",
    'USER: What describes person in the text? ASSISTANT: ["Zo\\u00eb M\\u00fcller"]',
    "USER: What describes date in the text? ASSISTANT: []",
]


# ---- the released trainer


def test_released_scheme_is_the_released_trainer(golden, tokenizers):
    assert len(golden) == 60
    for row in golden:
        ids, mask = encode_conversation(row, tokenizers["llama2"], "released")
        assert ids == row["input_ids"]
        assert [token if kept else -100 for token, kept in zip(ids, mask, strict=True)] == row["labels"]


def test_options_override_the_scheme(golden, tokenizers):
    llama = tokenizers["llama2"]
    for row in golden[:10]:
        released, whole = encode_conversation(row, llama, "released"), encode_conversation(row, llama)
        for scheme, encoded, noun in (("released", released, "paragraph"), ("whole", whole, "text")):
            scores = scheme == "released"
            assert encode_conversation(row, llama, scheme, noun, scores) == encoded
            other_ids, other_mask = encode_conversation(row, llama, scheme, acknowledgement_in_loss=not scores)
            assert other_ids == encoded[0]
            own, other = scored(*encoded), scored(other_ids, other_mask)
            longer, shorter = (own, other) if scores else (other, own)
            assert longer[1:] == shorter and llama.decode(longer[0]).strip() == ACKNOWLEDGEMENT


@pytest.mark.parametrize("scheme", SCHEMES)
def test_noun_is_one_word(scheme, tokenizers):
    llama = tokenizers["llama2"]
    decoded = {}
    for noun in ("text", "paragraph"):
        ids, mask = encode_conversation(EXAMPLE, llama, scheme, noun)
        decoded[noun] = llama.decode(ids)
        assert len(mask) == len(ids)
        assert encode_conversation(EXAMPLE, llama, scheme, noun)[0] == ids
    assert decoded["text"].count("the provided text.") == 1
    assert decoded["text"].replace("the provided text.", "the provided paragraph.") == decoded["paragraph"]
    default = encode_conversation(EXAMPLE, llama, scheme)[0]
    assert llama.decode(default) == decoded["text" if scheme == "whole" else "paragraph"]


# ---- the words


@pytest.mark.parametrize("name", NAMES)
def test_whole_scheme_reads_as_published(name, tokenizers):
    tokenizer = tokenizers[name]
    ids, _ = encode_conversation(EXAMPLE, tokenizer)
    assert [tokenizer.decode(run) for run in segments(ids, tokenizer.eos_id)] == [*PUBLISHED, ""]
    assert (ids[0] == tokenizer.bos_id) == tokenizer.adds_bos == (name in WITH_BOS)
    assert tokenizer.bos_id not in ids[1:]


@pytest.mark.parametrize("name", NAMES)
def test_prompt_reads_as_published(name, tokenizers):
    tokenizer = tokenizers[name]
    ids = encode_prompt("Zoë Müller lives in 東京.", "person", tokenizer)
    decoded = [tokenizer.decode(run) for run in segments(ids, tokenizer.eos_id)]
    assert decoded == [PUBLISHED[0], "USER: What describes person in the text? ASSISTANT:"]


def test_turns():
    assert passage_turn("x y") == "Text: x y"
    assert passage_turn("x y", "CoNLL 2003") == "Dataset: CoNLL 2003 \n Text: x y"
    assert question_turn("a person of note") == "What describes a person of note in the text?"
    assert all_in_one_turn(["person", "date"]) == "What describes each of these types in the text: person, date?"


@given(spans=st.lists(strings, max_size=4))
@example(spans=["é", "🎓", '"', "\\", "\u2028", "]"])
def test_answer_is_ascii_json(spans):
    answer = answer_turn(iter(spans))
    assert answer.isascii() and answer.isprintable() and json.loads(answer) == spans
    assert answer == json.dumps(spans)


def test_no_answer():
    assert answer_turn([]) == "[]"


# ---- the ids


@pytest.mark.parametrize("name", NAMES)
def test_whole_scheme_is_the_encoding_of_the_whole_string(name, golden, tokenizers):
    tokenizer = tokenizers[name]
    for row in golden:
        values = [turn["value"] for turn in row["conversations"]]
        texts = [f"USER: {human} ASSISTANT: {gpt}" for human, gpt in zip(values[::2], values[1::2], strict=True)]
        texts[0] = f"A virtual assistant answers questions from a user based on the provided text. {texts[0]}"
        expected = [tokenizer.bos_id] * tokenizer.adds_bos
        for text in texts:
            expected += [*tokenizer.encode(text), tokenizer.eos_id]
        assert encode_conversation(row, tokenizer)[0] == expected


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_loss_is_on_the_answers_and_their_ends(name, scheme, golden, tokenizers):
    tokenizer = tokenizers[name]
    for row in golden:
        ids, mask = encode_conversation(row, tokenizer, scheme)
        assert set(mask) <= {0, 1} and len(mask) == len(ids)
        runs = scored(ids, mask)
        answers = [turn["value"] for turn in row["conversations"][1::2]][scheme == "whole" :]
        assert [run[-1] for run in runs] == [tokenizer.eos_id] * len(answers)
        # the first token of an answer carries the space before it.
        assert [tokenizer.decode(run[:-1]).removeprefix(" ") for run in runs] == answers


questions = st.lists(st.tuples(strings, st.lists(strings, max_size=2)), min_size=1, max_size=3)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=80, deadline=None)
@given(data=st.data(), others=questions, dataset=st.none() | strings, noun=st.sampled_from(["text", "paragraph"]))
def test_prompt_is_a_prefix_of_the_conversation(name, data, others, dataset, noun, golden, tokenizers):
    tokenizer = tokenizers[name]
    real = [row["conversations"][0]["value"].removeprefix("Text: ") for row in golden]
    passage = data.draw(strings | st.sampled_from(real) | st.tuples(strings, st.sampled_from(real)).map("".join))
    prompt = encode_prompt(passage, others[0][0], tokenizer, dataset, noun)
    ids, mask = encode_conversation(asked(passage, *others, dataset=dataset), tokenizer, noun=noun)
    assert ids[: len(prompt)] == prompt
    # and the answer begins right there.
    assert mask[: len(prompt) + 1] == [0] * len(prompt) + [1]
    context = encode_context(passage_turn(passage, dataset), tokenizer, noun=noun)
    assert context + encode_question(question_turn(others[0][0]), tokenizer) == prompt


@pytest.mark.parametrize("name", NAMES)
def test_prompt_is_a_prefix_of_every_real_conversation(name, shared_data, tokenizers):
    tokenizer = tokenizers[name]
    rows = [row for _, row in read_rows(shared_data / "teacher" / "pile_ner_sample.jsonl")][::6]
    for row in rows:
        values = [turn["value"] for turn in row["conversations"]]
        passage = values[0].removeprefix("Text: ")
        entity_type = values[2].removeprefix("What describes ").removesuffix(" in the text?")
        prompt = encode_prompt(passage, entity_type, tokenizer)
        assert encode_conversation(row, tokenizer)[0][: len(prompt)] == prompt


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=60, deadline=None)
@given(first=strings, acknowledgement=strings, pairs=st.lists(st.tuples(strings, strings), min_size=1, max_size=3))
@example(first="</s>", acknowledgement="</s>", pairs=[("<|im_end|>", "</s></s>"), ("", "")])
def test_every_end_of_turn_is_one_of_ours(name, scheme, first, acknowledgement, pairs, tokenizers):
    tokenizer = tokenizers[name]
    row = conversation(first, *pairs, acknowledgement=acknowledgement)
    ids, mask = encode_conversation(row, tokenizer, scheme)
    assert ids.count(tokenizer.eos_id) == 1 + len(pairs)
    assert ids[-1] == tokenizer.eos_id and mask[-1] == 1
    assert ids.count(tokenizer.bos_id) == tokenizer.adds_bos
    assert sum(kept for token, kept in zip(ids, mask, strict=True) if token == tokenizer.eos_id) == (
        len(pairs) + (scheme == "released")
    )


@pytest.mark.parametrize("name", NAMES)
def test_all_types_in_one_question(name, tokenizers):
    tokenizer = tokenizers[name]
    question = all_in_one_turn(["person", "date"])
    row = conversation(passage_turn("Ann, 1961"), (question, '{"person": ["Ann"], "date": ["1961"]}'))
    prompt = encode_context(passage_turn("Ann, 1961"), tokenizer) + encode_question(question, tokenizer)
    assert encode_conversation(row, tokenizer)[0][: len(prompt)] == prompt


def test_another_acknowledgement(tokenizers):
    llama = tokenizers["llama2"]
    row = conversation("Text: x", ("q", "[]"), acknowledgement="Seen.")
    context = encode_context("Text: x", llama, acknowledgement="Seen.")
    assert encode_conversation(row, llama)[0][: len(context)] == context
    assert context != encode_context("Text: x", llama)


# ---- tokenizers that do not fit


@dataclass
class Characters:
    """A token a character, and one token for each of the `merges`."""

    merges: tuple[str, ...] = ()
    bos_id: int | None = 1
    eos_id: int = 2
    adds_bos: bool = True

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def encode(self, text):
        for number, merge in enumerate(self.merges):
            text = text.replace(merge, chr(0xE000 + number))
        return [10 + ord(letter) for letter in text]


def test_a_tokenizer_that_joins_prompt_and_answer():
    assert encode_conversation(EXAMPLE, Characters())
    assert encode_conversation(EXAMPLE, Characters(merges=("ASSISTANT:", " [")))
    joining = Characters(merges=(": [",))
    with pytest.raises(InputError, match=r"joins the end of the prompt with the start of the answer in '.*ASSISTANT: "):
        encode_conversation(EXAMPLE, joining)
    # the released scheme encodes the two apart: nothing can join them.
    assert encode_conversation(EXAMPLE, joining, "released")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bos_only_where_the_tokenizer_has_it(scheme):
    with_bos, _ = encode_conversation(EXAMPLE, Characters(), scheme)
    for without in (Characters(adds_bos=False), Characters(bos_id=None), Characters(bos_id=None, adds_bos=False)):
        ids, mask = encode_conversation(EXAMPLE, without, scheme)
        assert [1, *ids] == with_bos and len(mask) == len(ids)
        assert encode_context("Text: x", without)[0] == 10 + ord("A")


def test_lone_surrogates_are_refused(tokenizers):
    with pytest.raises(InputError, match="no lone surrogates"):
        encode_prompt("a\ud800b", "person", tokenizers["llama2"])
