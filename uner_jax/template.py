"""The prompt of UniversalNER: its words, its token ids and its loss mask, all made here and nowhere else.

Source of the words: arXiv 2308.03279 Figure 2 and the public code of universal-ner. A conversation
is a passage, its acknowledgement, then a question and an answer for each entity type:

    A virtual assistant answers ... USER: Text: {passage} ASSISTANT: I've read this text.</s>
    USER: What describes {type} in the text? ASSISTANT: {answer}</s>USER: ...

(in one line, nothing between `</s>` and `USER`). The end of a turn is the tokenizer's own EOS id,
set here: the text "</s>" in a passage is text, and ends nothing.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

from uner_jax.records import Conversation, InputError

Scheme = Literal["whole", "released"]
Noun = Literal["text", "paragraph"]

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
    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...  # noqa: D102


def passage_turn(passage: str, dataset: str | None = None) -> str:
    """The first human turn. With a data set's name it is the dataset-specific template of supervised tuning."""
    return f"Text: {passage}" if dataset is None else f"Dataset: {dataset} \n Text: {passage}"


def question_turn(entity_type: str) -> str:
    """The question for one entity type, or for one definition (the definition variant asks in the same words)."""
    return f"What describes {entity_type} in the text?"


def all_in_one_turn(entity_types: Sequence[str]) -> str:
    """One question for all types, the paper's ablation; its answer is a JSON object from type to spans."""
    return f"What describes each of these types in the text: {', '.join(entity_types)}?"


def answer_turn(spans: Iterable[str]) -> str:
    """The answer to a question: a JSON list of the spans, in ASCII, `[]` for none."""
    return json.dumps(list(spans))


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
    noun = noun or SCHEME_NOUN[scheme]
    if acknowledgement_in_loss is None:
        acknowledgement_in_loss = scheme == "released"
    values = [turn["value"] for turn in conversation["conversations"]]
    encode_turns = _encode_whole if scheme == "whole" else _encode_released
    tokens = _start(tokenizer)
    mask = [0] * len(tokens)
    for number, (prompt_ids, answer_ids) in enumerate(encode_turns(values[::2], values[1::2], tokenizer, noun)):
        in_loss = int(number > 0 or acknowledgement_in_loss)
        tokens += [*prompt_ids, *answer_ids, tokenizer.eos_id]
        mask += [0] * len(prompt_ids) + [in_loss] * (len(answer_ids) + 1)
    return tokens, mask


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
    (ids,) = tokenizer.encode_batch([f"{_opening(first_turn, noun)} ASSISTANT: {acknowledgement}"])
    return [*_start(tokenizer), *ids, tokenizer.eos_id]


def encode_question(question: str, tokenizer: TextTokenizer) -> list[int]:
    """The ids of a later human turn, up to and with "ASSISTANT:"."""
    (ids,) = tokenizer.encode_batch([f"USER: {question} ASSISTANT:"])
    return ids


def _start(tokenizer: TextTokenizer) -> list[int]:
    return [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []


def _opening(first_turn: str, noun: Noun) -> str:
    return f"A virtual assistant answers questions from a user based on the provided {noun}. USER: {first_turn}"


def _human_texts(humans: Sequence[str], noun: Noun) -> list[str]:
    return [_opening(humans[0], noun), *(f"USER: {human}" for human in humans[1:])]


def _encode_whole(humans: Sequence[str], answers: Sequence[str], tokenizer: TextTokenizer, noun: Noun):
    prompts = [f"{human} ASSISTANT:" for human in _human_texts(humans, noun)]
    full = [f"{prompt} {answer}" for prompt, answer in zip(prompts, answers, strict=True)]
    encoded = tokenizer.encode_batch(prompts + full)
    for prompt_ids, full_ids, text in zip(encoded[: len(prompts)], encoded[len(prompts) :], full, strict=True):
        if full_ids[: len(prompt_ids)] != prompt_ids:
            raise InputError(
                f"the tokenizer joins the end of the prompt with the start of the answer in {text[-80:]!r}: "
                "a model trained on these ids would never see them at extraction"
            )
        yield prompt_ids, full_ids[len(prompt_ids) :]


def _encode_released(humans: Sequence[str], answers: Sequence[str], tokenizer: TextTokenizer, noun: Noun):
    texts = _human_texts(humans, noun)
    encoded = tokenizer.encode_batch(["ASSISTANT: ", *texts, *answers])
    header, human_ids, answer_ids = encoded[0], encoded[1 : len(texts) + 1], encoded[len(texts) + 1 :]
    for human, answer in zip(human_ids, answer_ids, strict=True):
        yield human + header, answer
