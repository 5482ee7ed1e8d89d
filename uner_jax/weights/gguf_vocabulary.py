"""A tokenizer as the fields of a GGUF file, tried before they are written: they must give the ids that it gives."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType

from uner_jax.records import InputError
from uner_jax.tokenizer import Tokenizer, load_tokenizer

# what llama.cpp calls the ways to cut text before byte-level BPE; the first that gives the same ids is taken.
PRE = "smollm", "llama-bpe", "smaug-bpe", "qwen2", "gpt-2", "default"
PROBES = (
    "A virtual assistant answers questions from a user based on the provided text. USER: Text: Ada ASSISTANT:",
    " two  spaces\n\nlines\r\n\ttabs   ",
    "it's 1234567 o'clock, naïve café déjà-vu 東京 🤖 ¼ e=mc² http://a.b/c?d=1_2",
    '["Ada Lovelace", "\\u00e9"] </s> <s> {x} DON\'T ÀÉÎ ﬁ \u200b',
)


def add_vocabulary(writer: GGUFWriter, tokenizer: Tokenizer, size: int) -> None:
    """Add the tokens, padded to `size`, and how text becomes them.

    Raises InputError for a tokenizer that none of llama.cpp's ways that are known here gives the ids of.
    """
    state = json.loads(tokenizer.backend.to_str())
    for fields in _candidates(tokenizer, state, size):
        if _gives_the_same_ids(fields, tokenizer):
            _add(writer, fields)
            return
    raise InputError("the tokenizer cuts text in a way that is not known as one of llama.cpp; use convert to-hf")


def write_head(writer: GGUFWriter) -> None:
    """Write all that stands before the tensors."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def _candidates(tokenizer: Tokenizer, state: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    tokens, types = _tokens(state, size)
    fields = {"tokens": tokens, "types": types, "ids": ids, "adds_bos": tokenizer.adds_bos}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]]
    if "ByteLevel" in json.dumps(state["decoder"]):
        for pre in PRE:
            yield fields | {"model": "gpt2", "pre": pre, "merges": merges}
        return
    fields |= {"model": "llama", "pre": "default", "scores": _scores(tokens, merges)}
    # llama.cpp itself keeps repeated spaces, whatever the last field says: its ids of them may differ.
    for prefix, strip in product((True, False), (False, True)):
        yield fields | {"prefix": prefix, "strip": strip}


def _tokens(state: dict[str, Any], size: int) -> tuple[list[str], list[TokenType]]:
    by_id = {id: token for token, id in state["model"]["vocab"].items()}
    added = {token["id"]: token for token in state["added_tokens"]}
    count = max(size, max(by_id, default=-1) + 1, max(added, default=-1) + 1)
    if count > size:
        raise InputError(f"the tokenizer has {count:,} tokens, and the model {size:,}; llama.cpp needs as many")
    tokens, types = [], []
    for id in range(count):
        token = added[id]["content"] if id in added else by_id.get(id)
        tokens.append(f"[PAD{id}]" if token is None else token)
        types.append(_type(id, token, added, state["model"]))
    return tokens, types


def _type(id: int, token: str | None, added: dict[int, dict[str, Any]], model: dict[str, Any]) -> TokenType:
    if token is None:
        return TokenType.UNUSED
    if id in added:
        if not added[id]["special"]:
            return TokenType.USER_DEFINED
        return TokenType.UNKNOWN if token == model.get("unk_token") else TokenType.CONTROL
    is_byte = model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x")
    return TokenType.BYTE if is_byte else TokenType.NORMAL


def _scores(tokens: list[str], merges: list[str]) -> list[float]:
    """Scores in whose order SentencePiece merges as these merges are ordered; what no merge makes comes last."""
    rank: dict[str, int] = {}
    for merge in merges:
        rank.setdefault("".join(merge.split(" ")), len(rank))
    return [-float(rank.get(token, len(rank))) for token in tokens]


def _gives_the_same_ids(fields: dict[str, Any], tokenizer: Tokenizer) -> bool:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "vocabulary.gguf"
        with closing(GGUFWriter(path, "llama")) as writer:
            _add(writer, fields)
            write_head(writer)
        try:
            read = load_tokenizer(path)
        except InputError:  # a way that is not known here
            return False
    same = (read.bos_id, read.eos_id, read.adds_bos) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos)
    return same and read.encode_batch(list(PROBES)) == tokenizer.encode_batch(list(PROBES))


def _add(writer: GGUFWriter, fields: dict[str, Any]) -> None:
    writer.add_tokenizer_model(fields["model"])
    writer.add_tokenizer_pre(fields["pre"])
    writer.add_token_list(fields["tokens"])
    writer.add_token_types(fields["types"])
    if "merges" in fields:
        writer.add_token_merges(fields["merges"])
    if "scores" in fields:
        writer.add_token_scores(fields["scores"])
        writer.add_add_space_prefix(fields["prefix"])
        writer.add_remove_extra_whitespaces(fields["strip"])
    adders = {"bos": writer.add_bos_token_id, "eos": writer.add_eos_token_id, "pad": writer.add_pad_token_id}
    for name, id in fields["ids"].items():
        if id is not None:
            adders[name](id)
    writer.add_add_bos_token(fields["adds_bos"])
