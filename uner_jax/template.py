"""The prompt of UniversalNER: its words, its token ids and its loss mask, all made here and nowhere else.

Source of the words: arXiv 2308.03279 Figure 2 and the public code of universal-ner. A conversation
is a passage, its acknowledgement, then a question and an answer for each entity type:

    A virtual assistant answers ... USER: Text: {passage} ASSISTANT: I've read this text.</s>
    USER: What describes {type} in the text? ASSISTANT: {answer}</s>USER: ...

(in one line, nothing between `</s>` and `USER`). The end of a turn is the tokenizer's own EOS id,
set here: the text "</s>" in a passage is text, and ends nothing.
"""

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from itertools import chain
from typing import Literal, Protocol

from uner_jax.records import Conversation, InputError, Turn

Scheme = Literal["whole", "released"]
Noun = Literal["text", "paragraph"]
# what the user says, and the answer
Exchange = tuple[str, str]
# the ids of both with what stands around them, and a byte for each: 1 in the answer and its EOS, else 0
ExchangeIds = tuple["array[int]", bytes]

ACKNOWLEDGEMENT = "I've read this text."
# The paper and the released inference say "text"; the released trainer says "paragraph".
SCHEME_NOUN: dict[str, Noun] = {"whole": "text", "released": "paragraph"}


class TextTokenizer(Protocol):
    """What the template needs of a tokenizer: see `uner_jax.tokenizer.Tokenizer`."""

    @property
    def bos_id(self) -> int | None: ...  # noqa: D102
    @property
    def eos_id(self) -> int: ...  # noqa: D102
    @property
    def adds_bos(self) -> bool: ...  # noqa: D102
    def encode_batch(self, texts: list[str]) -> Sequence[Sequence[int]]: ...  # noqa: D102


def opening(noun: Noun) -> str:
    """The words before the first human turn."""
    return f"A virtual assistant answers questions from a user based on the provided {noun}. USER: "


def passage_turn(passage: str, dataset: str | None = None) -> str:
    """The first human turn. With a data set's name it is the dataset-specific template of supervised tuning."""
    return f"Text: {passage}" if dataset is None else f"Dataset: {dataset} \n Text: {passage}"


def question_turn(entity_type: str) -> str:
    """The question for one entity type, or for one definition (the definition variant asks in the same words)."""
    return f"What describes {entity_type} in the text?"


def asked_type(question: str) -> str | None:
    """The entity type that a `question_turn` asks for; None for a question in other words."""
    opening, closing = question_turn("\n").split("\n")
    name = question.removeprefix(opening).removesuffix(closing)
    return name if question == question_turn(name) and name.strip() else None


def all_in_one_turn(entity_types: Sequence[str]) -> str:
    """One question for all types, the paper's ablation; its answer is a JSON object from type to spans."""
    return f"What describes each of these types in the text: {', '.join(entity_types)}?"


def answer_turn(spans: Iterable[str]) -> str:
    """The answer to a question: a JSON list of the spans, in ASCII, `[]` for none."""
    return json.dumps(list(spans))


def conversation_of(name: str, first_turn: str, questions: Iterable[tuple[str, Iterable[str]]]) -> Conversation:
    """The conversation with that id that begins with `passage_turn(...)` and asks for types, each with its spans."""
    values = [first_turn, ACKNOWLEDGEMENT]
    for entity_type, spans in questions:
        values += [question_turn(entity_type), answer_turn(spans)]
    turns: list[Turn] = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]
    return {"id": name, "conversations": turns}


def encode_conversation(
    conversation: Conversation,
    tokenizer: TextTokenizer,
    scheme: Scheme = "whole",
    noun: Noun | None = None,
    acknowledgement_in_loss: bool | None = None,
) -> tuple[list[int], list[int]]:
    """Token ids of a conversation and, of equal length, its loss mask in {0, 1}.

    `whole`: the ids of the text as one string, so that `encode_prompt` is an exact prefix; the answers
    and their EOS are in the loss. `released`: token for token what the released trainer makes, which
    encodes "ASSISTANT: " and the answer apart and has the acknowledgement in the loss too. The last
    two arguments override what the scheme says. Raises InputError if the tokenizer joins the end of a
    prompt with the start of an answer.
    """
    ((tokens, mask),) = encode_conversations([conversation], tokenizer, scheme, noun, acknowledgement_in_loss)
    return tokens.tolist(), list(mask)


def encode_conversations(
    conversations: Sequence[Conversation],
    tokenizer: TextTokenizer,
    scheme: Scheme = "whole",
    noun: Noun | None = None,
    acknowledgement_in_loss: bool | None = None,
    known: MutableMapping[Exchange, ExchangeIds] | None = None,
) -> list[tuple["array[int]", bytes]]:
    """`encode_conversation` of each of them, the ids as an array of C int and the mask as bytes.

    Several times as fast as one after the other: a question that comes again with the same answer is encoded
    once, all in one batch. `known` takes what was encoded from call to call of the same tokenizer and scheme.
    """
    encode = _encode_whole if scheme == "whole" else _encode_released
    if acknowledgement_in_loss is None:
        acknowledgement_in_loss = scheme == "released"
    turns_of = [_turns(conversation) for conversation in conversations]
    start = opening(noun or SCHEME_NOUN[scheme])
    firsts = encode([(f"{start}{human}", answer) for (human, answer), *_ in turns_of], tokenizer)
    encoded = _encode_questions(chain.from_iterable(turns[1:] for turns in turns_of), encode, tokenizer, known)
    joined = []
    for turns, (ids, mask) in zip(turns_of, firsts, strict=True):
        tokens = array("i", _start(tokenizer))
        masks = [bytes(len(tokens)), mask if acknowledgement_in_loss else bytes(len(mask))]
        tokens.extend(ids)
        for ids, mask in map(encoded.__getitem__, turns[1:]):
            tokens.extend(ids)
            masks.append(mask)
        joined.append((tokens, b"".join(masks)))
    return joined


def _encode_questions(
    turns: Iterable[Exchange],
    encode: Callable[[Sequence[Exchange], TextTokenizer], Iterator[ExchangeIds]],
    tokenizer: TextTokenizer,
    known: MutableMapping[Exchange, ExchangeIds] | None,
) -> dict[Exchange, ExchangeIds]:
    known = {} if known is None else known
    distinct = dict.fromkeys(turns)
    encoded = {turn: known[turn] for turn in distinct if turn in known}
    new = [turn for turn in distinct if turn not in encoded]
    for turn, ids in zip(new, encode([(f"USER: {human}", answer) for human, answer in new], tokenizer), strict=True):
        encoded[turn] = known[turn] = ids
    return encoded


def _turns(conversation: Conversation) -> list[Exchange]:
    values = [turn["value"] for turn in conversation["conversations"]]
    return list(zip(values[::2], values[1::2], strict=True))


def encode_prompt(
    passage: str,
    entity_type: str,
    tokenizer: TextTokenizer,
    dataset: str | None = None,
    noun: Noun = "text",
) -> list[int]:
    """The ids that ask for one entity type of a passage, up to and with "ASSISTANT:"."""
    context = encode_context(passage_turn(passage, dataset), tokenizer, noun=noun)
    return context + encode_question(question_turn(entity_type), tokenizer)


def encode_context(
    first_turn: str,
    tokenizer: TextTokenizer,
    acknowledgement: str = ACKNOWLEDGEMENT,
    noun: Noun = "text",
) -> list[int]:
    """The ids that all questions on a passage share: the passage and its acknowledgement, with their EOS."""
    (ids,) = tokenizer.encode_batch([f"{opening(noun)}{first_turn} ASSISTANT: {acknowledgement}"])
    return [*_start(tokenizer), *ids, tokenizer.eos_id]


def encode_question(question: str, tokenizer: TextTokenizer) -> list[int]:
    """The ids of a later human turn, up to and with "ASSISTANT:"."""
    (ids,) = tokenizer.encode_batch([f"USER: {question} ASSISTANT:"])
    return list(ids)


def encode_answer(answer: str, tokenizer: TextTokenizer) -> list[int]:
    """The ids of an answer behind "ASSISTANT:", without the EOS that ends it."""
    prompt_ids, ids = tokenizer.encode_batch(["ASSISTANT:", f"ASSISTANT: {answer}"])
    return list(ids[len(prompt_ids) :])


def _start(tokenizer: TextTokenizer) -> list[int]:
    return [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []


def _encode_whole(turns: Sequence[Exchange], tokenizer: TextTokenizer) -> Iterator[ExchangeIds]:
    prompts = [f"{human} ASSISTANT:" for human, _ in turns]
    full = [f"{prompt} {answer}" for prompt, (_, answer) in zip(prompts, turns, strict=True)]
    encoded = tokenizer.encode_batch(prompts + full)
    for prompt_ids, full_ids, text in zip(encoded[: len(turns)], encoded[len(turns) :], full, strict=True):
        if full_ids[: len(prompt_ids)] != prompt_ids:
            raise InputError(
                f"the tokenizer joins the end of the prompt with the start of the answer in {text[-80:]!r}: "
                "a model trained on these ids would never see them at extraction"
            )
        yield _with_mask(prompt_ids, full_ids[len(prompt_ids) :], tokenizer.eos_id)


def _encode_released(turns: Sequence[Exchange], tokenizer: TextTokenizer) -> Iterator[ExchangeIds]:
    humans, answers = [human for human, _ in turns], [answer for _, answer in turns]
    header, *encoded = tokenizer.encode_batch(["ASSISTANT: ", *humans, *answers])
    for human_ids, answer_ids in zip(encoded[: len(turns)], encoded[len(turns) :], strict=True):
        yield _with_mask([*human_ids, *header], answer_ids, tokenizer.eos_id)


def _with_mask(prompt_ids: Sequence[int], answer_ids: Sequence[int], eos_id: int) -> ExchangeIds:
    ids = array("i", prompt_ids)
    ids.extend(answer_ids)
    ids.append(eos_id)
    return ids, bytes(len(prompt_ids)) + b"\1" * (len(answer_ids) + 1)
