"""How fast conversations become token ids, beside one tokenizer call a segment: the same corpus, the same run.

python benchmarks/tokenizing.py

Hardware: two CPU cores. Reaches: see benchmarks/results.md.

The released trainer calls a Hugging Face tokenizer for each segment of a conversation, one after the other: the first
line of scheme "released". For "whole" it is our own template with a tokenizer call for each text. Our side makes the
loss masks too, and its seconds hold what it needs to start: its tables, and with two processes both of them. All
ids of both sides are compared.

The corpus is made of real sentences (Pile passages, CrossNER) in new combinations, with questions that were asked
about them. There are few sentences, so few of its words are new to a cache; `--new-words 0.05` replaces every
twentieth word by one that occurs nowhere else. The 882 real conversations, once and from a cold start, are the
hard end.
"""

import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from data_prep.tokens.encoding import QUESTIONS, blocks
from data_prep.tokens.token_cache import Memory, TokenCache
from data_prep.workers import ordered_map
from uner_jax.command import run_command
from uner_jax.records import Conversation, read_rows
from uner_jax.template import ACKNOWLEDGEMENT, Scheme, encode_conversation, encode_conversations, passage_turn
from uner_jax.tokenizer import Tokenizer, load_tokenizer

SHARED = Path(os.environ.get("UNER_SHARED_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
OPENING = "A virtual assistant answers questions from a user based on the provided paragraph. USER: "
WORDS_A_PASSAGE = 150
QUESTIONS_A_PASSAGE = 10

Ids = list[np.ndarray]


def tokenizing(
    conversations: int = 20_000,
    tokenizer: Path = SHARED / "tokenizers" / "llama2.model",
    new_words: float = 0.0,
    seed: int = 0,
) -> None:
    """Compare the ways to tokenize, and print seconds, tokens a second and the ratio to one call a segment.

    Args:
        conversations: Number of conversations of about 500 tokens.
        tokenizer: The tokenizer's file or directory; one that begins a text with BOS.
        new_words: Share of the words that occur nowhere else, 0 to 1.
        seed: Of the corpus.
    """
    loaded = load_tokenizer(tokenizer)
    _compare("recombined sentences", make_corpus(conversations, new_words, random.Random(seed)), loaded)
    _compare("real conversations, once", _read("teacher/pile_ner_sample.jsonl"), loaded)


def _compare(what: str, rows: Sequence[Conversation], tokenizer: Tokenizer) -> None:
    baselines: dict[Scheme, tuple[str, Callable[[Conversation], list[int]]]] = {
        "released": ("a Hugging Face call a segment", _released_encoder(tokenizer)),
        "whole": ("a tokenizer call a text", lambda row: encode_conversation(row, _OneByOne(tokenizer))[0]),
    }
    for scheme, (name, encode) in baselines.items():
        seconds, expected = _time_baseline(encode, rows)
        tokens = sum(map(len, expected))
        print(f"\n{what}, scheme {scheme}: {len(rows):,} conversations, {tokens / len(rows):.0f} tokens each")
        _print(name, seconds, tokens, seconds)
        for workers in (1, 2):
            ours, found = _time_ours(rows, tokenizer, scheme, workers)
            if len(found) != len(expected) or not all(map(np.array_equal, expected, found)):
                sys.exit(f"the ids of {scheme} differ")
            _print(f"ours, {workers} process{'es' * (workers > 1)}", ours, tokens, seconds)


def _released_encoder(tokenizer: Tokenizer) -> Callable[[Conversation], list[int]]:
    # seconds, which the processes of our side would need too
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save(directory)
        hugging_face = AutoTokenizer.from_pretrained(directory)
    return lambda row: released_ids(row, hugging_face, tokenizer.bos_id)


def released_ids(row: Conversation, tokenizer: Any, bos_id: int) -> list[int]:
    """The ids as the released trainer makes them: every segment in a call of its own, one after the other."""
    ids: list[int] = [bos_id]
    for number, turn in enumerate(row["conversations"]):
        if number % 2 == 0:
            text = f"{OPENING if number == 0 else 'USER: '}{turn['value']}"
            ids += tokenizer(text, add_special_tokens=False).input_ids
        else:
            ids += tokenizer("ASSISTANT: ", add_special_tokens=False).input_ids
            ids += tokenizer(f"{turn['value']}</s>", add_special_tokens=False).input_ids
    return ids


class _OneByOne:
    """A tokenizer whose batches are single calls."""

    def __init__(self, tokenizer: Tokenizer):
        self._encode = tokenizer.encode
        self.bos_id, self.eos_id, self.adds_bos = tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self._encode(text) for text in texts]


def _time_baseline(encode: Callable[[Conversation], list[int]], rows: Sequence[Conversation]) -> tuple[float, Ids]:
    seconds, found = 0.0, []
    for block in blocks(rows):
        started = time.perf_counter()
        encoded = list(map(encode, block))
        seconds += time.perf_counter() - started
        found += [np.array(ids, np.int32) for ids in encoded]
    return seconds, found


def _time_ours(rows: Sequence[Conversation], tokenizer: Tokenizer, scheme: Scheme, workers: int) -> tuple[float, Ids]:
    started = time.perf_counter()
    encoded = list(ordered_map(_encode, blocks(rows), workers, _start, (tokenizer, scheme)))
    seconds = time.perf_counter() - started
    return seconds, [np.array(ids, np.int32) for block in encoded for ids, _ in block]


# what a process needs, set by `_start`
_state: dict[str, Any] = {}


def _start(tokenizer: Tokenizer, scheme: Scheme) -> None:
    _state.update(tokenizer=TokenCache(tokenizer), scheme=scheme, known=Memory(QUESTIONS))


def _encode(rows: list[Conversation]) -> Any:
    return encode_conversations(rows, **_state)


def _print(name: str, seconds: float, tokens: int, baseline: float) -> None:
    print(
        f"  {name:34} {seconds:7.2f} s {tokens / seconds / 1e6:7.2f} M tokens/s {baseline / seconds:6.1f} x", flush=True
    )


def make_corpus(count: int, new_words: float, randoms: random.Random) -> list[Conversation]:
    """Conversations of recombined sentences; the same for the same state of `randoms`."""
    pile, crossner = _read("teacher/pile_ner_sample.jsonl"), _read("eval/CrossNER_AI.json")
    sentences = [part for row in pile for part in re.split(r"(?<=[.!?])\s+", row["conversations"][0]["value"][6:])]
    sentences += sorted({row["conversations"][0]["value"][6:] for row in crossner})
    asked = [
        (turns[place]["value"], turns[place + 1]["value"])
        for turns in (row["conversations"] for row in pile + crossner)
        for place in range(2, len(turns), 2)
    ]
    return [_conversation(str(number), sentences, asked, new_words, randoms) for number in range(count)]


def _conversation(
    name: str, sentences: list[str], asked: list[tuple[str, str]], new_words: float, randoms: random.Random
) -> Conversation:
    words: list[str] = []
    while len(words) < WORDS_A_PASSAGE:
        words += randoms.choice(sentences).split(" ")
    for place in range(len(words)):
        if new_words and randoms.random() < new_words:
            words[place] = _new_word(words[place], words[place - 1], randoms)
    turns = [(passage_turn(" ".join(words)), ACKNOWLEDGEMENT), *randoms.sample(asked, QUESTIONS_A_PASSAGE)]
    values = [value for pair in turns for value in pair]
    return {
        "id": name,
        "conversations": [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)],
    }


def _new_word(first: str, second: str, randoms: random.Random) -> str:
    return first[: len(first) // 2 + 1] + second[len(second) // 2 :] + "".join(randoms.choices("aeiorstln", k=4))


def _read(name: str) -> list[Conversation]:
    return [row for _, row in read_rows(SHARED / name)]


def main(arguments: list[str]) -> None:
    """The command line."""
    tyro.cli(tokenizing, prog="python benchmarks/tokenizing.py", args=arguments)


if __name__ == "__main__":
    run_command(main)
