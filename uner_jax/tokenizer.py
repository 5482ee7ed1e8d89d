"""Text to token ids: one `tokenizers` backend, whatever file the vocabulary came in.

A SentencePiece BPE model (also inside a GGUF) is rebuilt as a fast BPE that gives SentencePiece's own ids.
transformers' `LlamaTokenizer` does not: it differs on leading and repeated spaces. Ids never hold BOS or
EOS: whoever lays out a prompt puts them in, so that the text "</s>" in a passage cannot end a turn.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from uner_jax.gguf_file import read_gguf_head
from uner_jax.records import InputError, atomic_path, write_json

SPACE = "▁"
# SentencePiece's piece types; GGUF's token types have the same numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, _UNUSED, BYTE = range(1, 7)
# where a directory says which token is BOS, EOS and pad.
ID_FILES = "config.json", "generation_config.json"
NAME_FILES = "special_tokens_map.json", "tokenizer_config.json"
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Qwen's differs in this alone: every digit stands for itself.
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

# What a GGUF says of its vocabulary, and as what.
GGUF_FIELDS = {
    "model": str,
    "pre": str,
    "tokens": list,
    "token_type": np.ndarray,
    "scores": np.ndarray,
    "merges": list,
    "bos_token_id": int,
    "eos_token_id": int,
    "padding_token_id": int,
    "add_bos_token": bool,
    "add_space_prefix": bool,
    "remove_extra_whitespaces": bool,
}


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer with the ids and the convention that a prompt needs; `load_tokenizer` makes one.

    `adds_bos` says whether this tokenizer's own convention begins a text with BOS (LLaMA yes, SmolLM2
    no); `encode` never does. `pad_id` is 0 where the tokenizer has no pad.
    """

    backend: tokenizers.Tokenizer
    bos_id: int | None
    eos_id: int
    pad_id: int
    adds_bos: bool

    def __post_init__(self):
        self.backend.no_truncation()
        self.backend.no_padding()
        # a post-processor may trim offsets; what it says about BOS is in adds_bos.
        self.backend.post_processor = None
        # "</s>" in a passage is five characters of text, not the end of a turn.
        self.backend.encode_special_tokens = True

    def __reduce__(self):
        # pickling a backend forgets encode_special_tokens: go through __post_init__ again.
        return Tokenizer, (self.backend, self.bos_id, self.eos_id, self.pad_id, self.adds_bos)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without BOS and EOS; the text of a special token stays text."""
        with _explained():
            return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of every text, in parallel."""
        with _explained():
            return [row.ids for row in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """The code points `[start, end)` of `text` that each token of `encode(text)` stands for.

        They tile the text: where several tokens share a character (bytes of an emoji), the first has
        it and the others are empty, as is the space that the tokenizer itself puts in front.
        """
        with _explained():
            encoding = self.backend.encode(text, add_special_tokens=False)
        spans, done = encoding.offsets, 0
        # the library gives a space put in front the first character's place, which the next token has too.
        if encoding.tokens[:1] == [SPACE] and len(spans) > 1 and spans[1][0] == 0:
            spans[0] = (0, 0)
        for i, (_, end) in enumerate(spans):
            spans[i] = (done, max(end, done))
            done = spans[i][1]
        return spans

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; special tokens are left out."""
        return self.backend.decode(list(ids), skip_special_tokens=True)

    @cached_property
    def vocab_size(self) -> int:
        """The number of ids, added tokens included: every id is below it."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits over all that decides the ids of a text and of BOS and EOS.

        Equal for one tokenizer that came as SentencePiece, as GGUF or as a saved directory.
        """
        state = json.loads(self.backend.to_str())
        parts = {key: state[key] for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
        parts["conventions"] = [self.bos_id, self.eos_id, self.adds_bos]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def save(self, directory: str | os.PathLike) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json`, for `load_tokenizer` and `AutoTokenizer`."""
        backend = tokenizers.Tokenizer.from_str(self.backend.to_str())
        names = {"bos_token": self.bos_id, "eos_token": self.eos_id, "pad_token": self.pad_id}
        special = {token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special}
        # AutoTokenizer turns a named token into a special one: an ordinary token must not be named.
        tokens = {name: backend.id_to_token(id) for name, id in names.items() if id in special}
        if self.adds_bos:
            bos = tokens["bos_token"]
            backend.post_processor = processors.TemplateProcessing(
                single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"], special_tokens=[(bos, self.bos_id)]
            )
        with atomic_path(Path(directory) / "tokenizer.json") as temporary:
            backend.save(str(temporary))
        # the generic class keeps tokenizer.json as it is; LlamaTokenizer would rebuild it, unfaithfully.
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **tokens}
        write_json(Path(directory) / "tokenizer_config.json", config)


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Load a Hugging Face directory, a SentencePiece `.model`, a `tokenizer.json` or a `.gguf`.

    A directory's tokenizer.json goes before its tokenizer.model. Raises InputError that names the file
    for anything else, for a broken file and for a kind of tokenizer that cannot be rebuilt exactly.
    """
    path = Path(path)
    if (path / "tokenizer.json").is_file():
        return _from_hf(path)
    if (path / "tokenizer.model").is_file():
        return _from_sentencepiece(path / "tokenizer.model", path)
    if path.is_file():
        if path.suffix == ".json":
            return _from_hf(path.parent, path.name)
        if path.suffix == ".model":
            return _from_sentencepiece(path, None)
        if path.suffix == ".gguf":
            return _from_gguf(path)
    found = "no such file" if not path.exists() else "a directory without either" if path.is_dir() else "another file"
    raise InputError(
        f"{path}: expected a directory with tokenizer.json or tokenizer.model, or a .model, tokenizer.json "
        f"or .gguf file; found {found}"
    )


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except TypeError as error:
        raise InputError(
            f"a text to tokenize must be a string of Unicode characters, no lone surrogates ({error})"
        ) from error


# ---- SentencePiece, from its own file or from a GGUF


@dataclass(frozen=True)
class _Pieces:
    """A SentencePiece BPE vocabulary: `(text, score, type)` by id, and how it normalizes text."""

    pieces: list[tuple[str, float, int]]
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool

    def of_type(self, *types: int) -> list[str]:
        return [text for text, _, kind in self.pieces if kind in types]


def _from_sentencepiece(path: Path, directory: Path | None) -> Tokenizer:
    # heavy, and not needed for the other forms.
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = vars(sentencepiece_model_pb2)["ModelProto"]()  # made at run time: type checkers do not see it
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise InputError(f"{path}: not a SentencePiece model: {error}") from error
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    facts = [
        ("pieces", "pieces", "pieces" if model.pieces else "none"),
        ("trainer_spec.model_type", "BPE", trainer.ModelType.Name(trainer.model_type)),
        ("trainer_spec.treat_whitespace_as_suffix", False, trainer.treat_whitespace_as_suffix),
        ("normalizer_spec.precompiled_charsmap", b"", normalizer.precompiled_charsmap),
        ("normalizer_spec.escape_whitespaces", True, normalizer.escape_whitespaces),
    ]
    for field, expected, found in facts:
        if found != expected:
            raise InputError(f"{path}: {field} must be {expected!r} to be rebuilt exactly, found {found!r:.60}")
    vocabulary = _Pieces(
        [(piece.piece, piece.score, piece.type) for piece in model.pieces],
        normalizer.add_dummy_prefix,
        normalizer.remove_extra_whitespaces,
    )
    backend = _sentencepiece_backend(vocabulary, path)
    ids = {"bos": trainer.bos_id, "eos": trainer.eos_id, "pad": trainer.pad_id}
    ids = {name: id for name, id in ids.items() if 0 <= id < len(model.pieces)}
    if directory:
        _add_declared(backend, directory)
        # a name says what was meant; the bare ids of old LLaMA configs are wrong (BOS 0, EOS 1).
        ids = _declared_ids(backend, directory, ID_FILES) | ids | _declared_ids(backend, directory, NAME_FILES)
    adds_bos = _read_object(directory / "tokenizer_config.json").get("add_bos_token") if directory else None
    return _tokenizer(backend, ids, adds_bos is not False, path)


def _sentencepiece_backend(vocabulary: _Pieces, path: Path) -> tokenizers.Tokenizer:
    ids = {text: id for id, (text, _, _) in enumerate(vocabulary.pieces)}
    if len(ids) != len(vocabulary.pieces):
        raise InputError(f"{path}: {len(vocabulary.pieces)} pieces, but only {len(ids)} different ones")
    unknown = vocabulary.of_type(UNKNOWN)
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=ids,
            merges=_merges(vocabulary.pieces),
            unk_token=unknown[0] if unknown else None,
            fuse_unk=True,
            byte_fallback=bool(vocabulary.of_type(BYTE)),
        )
    )
    own = vocabulary.of_type(USER_DEFINED)
    if vocabulary.remove_extra_whitespaces and any(SPACE in text for text in own):
        raise InputError(f"{path}: remove_extra_whitespaces beside user-defined pieces with spaces is not supported")
    backend.normalizer = normalizers.Sequence(_normalizers(vocabulary, own))
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * vocabulary.add_dummy_prefix)
    _add_special(backend, vocabulary.of_type(UNKNOWN, CONTROL))
    backend.add_tokens([AddedToken(text, normalized=True) for text in own])
    return backend


def _normalizers(vocabulary: _Pieces, own: list[str]) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if vocabulary.remove_extra_whitespaces:
        strip = [(rf"\A +|[ {SPACE}]+\z", ""), (" {2,}", " ")]
        steps += [normalizers.Replace(Regex(pattern), by) for pattern, by in strip]
    if vocabulary.add_dummy_prefix and own:
        # the library normalizes a user-defined piece too before it looks for it: leave it bare (and with
        # it, unlike SentencePiece, a text that is nothing else).
        bare = "|".join(re.escape(text) for text in own)
        steps.append(normalizers.Replace(Regex(rf"\A(?!(?:{bare})?\z)"), SPACE))
    elif vocabulary.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return [*steps, normalizers.Replace(" ", SPACE)]


def _merges(pieces: list[tuple[str, float, int]]) -> list[tuple[str, str]]:
    """Every way to make a normal piece of two: SentencePiece merges to the best score, leftmost first."""
    parts = {text for text, _, kind in pieces if kind == NORMAL}
    lengths = {len(text) for text in parts}
    ranked = sorted((-score, id, text) for id, (text, score, kind) in enumerate(pieces) if kind == NORMAL)
    return [
        # of equal score the longer left part goes first: a run of one character grows from its left end.
        (text[:cut], text[cut:])
        for _, _, text in ranked
        for cut in range(len(text) - 1, 0, -1)
        # lengths first: a piece as long as a file would else be copied at each of its characters.
        if cut in lengths and len(text) - cut in lengths and text[:cut] in parts and text[cut:] in parts
    ]


# ---- GGUF


def _from_gguf(path: Path) -> Tokenizer:
    fields = _gguf_fields(path)
    kind, pre = fields.get("model"), fields.get("pre", "default")
    if kind == "llama":
        backend, adds_bos = _gguf_sentencepiece(fields, path), True
    elif kind == "gpt2":
        backend, adds_bos = _gguf_byte_level(fields, pre, path), pre == "llama-bpe"
    else:
        raise InputError(f'{path}: tokenizer.ggml.model must be "llama" or "gpt2", found {kind!r}')
    keys = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id"}
    ids = {name: fields[key] for name, key in keys.items() if key in fields}
    return _tokenizer(backend, ids, fields.get("add_bos_token", adds_bos), path)


def _gguf_fields(path: Path) -> dict[str, Any]:
    """The `tokenizer.ggml.*` metadata of a GGUF, by the last part of the name: those of `GGUF_FIELDS`, checked."""
    prefix = "tokenizer.ggml."
    fields = read_gguf_head(path).fields
    found = {key: fields[prefix + key] for key in GGUF_FIELDS if prefix + key in fields}
    for key, value in found.items():
        if not isinstance(value, GGUF_FIELDS[key]) or (isinstance(value, bool) and GGUF_FIELDS[key] is int):
            raise InputError(f"{path}: {prefix}{key} is of another type than llama.cpp gives it: {value!r:.60}")
    for key in ("tokens", "token_type"):
        if key not in found or len(found[key]) != len(found["tokens"]):
            raise InputError(
                f"{path}: {prefix}{key} must be there, one entry a token: the GGUF has no whole vocabulary"
            )
    return found | {key: value.tolist() for key, value in found.items() if isinstance(value, np.ndarray)}


def _gguf_sentencepiece(fields: dict[str, Any], path: Path) -> tokenizers.Tokenizer:
    scores = fields.get("scores", [])
    if len(scores) != len(fields["tokens"]):
        raise InputError(f"{path}: tokenizer.ggml.scores: {len(scores)} entries for {len(fields['tokens'])} tokens")
    pieces = list(zip(fields["tokens"], scores, fields["token_type"], strict=True))
    prefix, strip = fields.get("add_space_prefix", True), fields.get("remove_extra_whitespaces", False)
    return _sentencepiece_backend(_Pieces(pieces, prefix, strip), path)


def _gguf_byte_level(fields: dict[str, Any], pre: str, path: Path) -> tokenizers.Tokenizer:
    ids = {text: id for id, text in enumerate(fields["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in fields.get("merges", [])]
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    after_split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    splits: dict[str, list[Any]] = {
        "default": [plain],
        "gpt-2": [plain],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), plain],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), after_split],
        # the vocabulary of Llama 3 without its BOS, as SmolLM3 has it.
        "smaug-bpe": [pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"), after_split],
        "qwen2": [pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"), after_split],
    }
    if pre not in splits:
        raise InputError(f"{path}: tokenizer.ggml.pre must be one of {', '.join(splits)}, found {pre!r}")
    try:
        model = models.BPE(vocab=ids, merges=merges, ignore_merges=pre in ("llama-bpe", "smaug-bpe"))
    except Exception as error:  # the library knows no narrower class
        raise InputError(f"{path}: tokenizer.ggml.merges do not fit tokenizer.ggml.tokens: {error}") from error
    backend = tokenizers.Tokenizer(model)
    if pre == "qwen2":  # llama.cpp leaves it out; Qwen's own tokenizer does not.
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(splits[pre])
    backend.decoder = decoders.ByteLevel()
    types = list(zip(fields["tokens"], fields["token_type"], strict=True))
    _add_special(backend, [text for text, kind in types if kind in (UNKNOWN, CONTROL)])
    backend.add_tokens([AddedToken(text, normalized=False) for text, kind in types if kind == USER_DEFINED])
    return backend


# ---- Hugging Face


def _from_hf(directory: Path, name: str = "tokenizer.json") -> Tokenizer:
    path = directory / name
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library knows no narrower class
        raise InputError(f"{path}: not a tokenizer.json: {error}") from error
    ids = _declared_ids(backend, directory, ID_FILES + NAME_FILES)
    first = backend.encode("").ids[:1]
    if first and first != [ids.get("eos")]:
        ids.setdefault("bos", first[0])
    adds_bos = _read_object(directory / "tokenizer_config.json").get("add_bos_token")
    if adds_bos is None:
        adds_bos = bool(first) and first == [ids.get("bos")]
    return _tokenizer(backend, ids, adds_bos, directory)


def _declared_ids(backend: tokenizers.Tokenizer, directory: Path, files: tuple[str, ...]) -> dict[str, int]:
    """BOS, EOS and pad id as far as these files of the directory say, a later file before an earlier one."""
    found: dict[str, int] = {}
    for file in files:
        values = _read_object(directory / file)
        if values.get("bos_token", "") is None:  # its BOS is none, whatever id the model's config names.
            found.pop("bos", None)
        for name in ("bos", "eos", "pad"):
            token_id, token = values.get(f"{name}_token_id"), values.get(f"{name}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and token:  # old LLaMA directories name ""
                token_id = backend.token_to_id(token)
                if token_id is None:
                    raise InputError(f"{directory / file}: {name}_token {token!r} is not in the vocabulary")
            token_id = token_id[0] if isinstance(token_id, list) and token_id else token_id
            if isinstance(token_id, int) and token_id >= 0:  # -1: none
                found[name] = token_id
    return found


def _add_declared(backend: tokenizers.Tokenizer, directory: Path) -> None:
    """Add the tokens that `added_tokens.json` puts behind a tokenizer.model's own vocabulary."""
    for token, token_id in sorted(_read_object(directory / "added_tokens.json").items(), key=lambda item: item[1]):
        _add_special(backend, [token])
        if backend.token_to_id(token) != token_id:
            raise InputError(
                f"{directory / 'added_tokens.json'}: {token!r} should be id {token_id}, "
                f"but behind tokenizer.model it is {backend.token_to_id(token)}"
            )


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty if there is no file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _add_special(backend: tokenizers.Tokenizer, texts: Iterable[str]) -> None:
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in texts])


def _tokenizer(backend: tokenizers.Tokenizer, ids: dict[str, int], adds_bos: bool, path: Path) -> Tokenizer:
    bos, eos = ids.get("bos"), ids.get("eos")
    for name, token_id in ids.items():
        if token_id not in range(2**32) or backend.id_to_token(token_id) is None:
            raise InputError(f"{path}: the {name} id {token_id} is not in the vocabulary")
    if eos is None:
        raise InputError(f"{path}: no EOS token; name it as eos_token in tokenizer_config.json")
    if adds_bos and bos is None:
        raise InputError(f"{path}: a text should begin with BOS, but no BOS token is named")
    known = {token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special}
    _add_special(backend, [str(backend.id_to_token(id)) for id in ids.values() if id not in known])
    return Tokenizer(backend, bos, eos, ids.get("pad", 0), adds_bos)
