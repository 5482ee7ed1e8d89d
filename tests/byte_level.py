"""Byte-level tokenizers as Qwen and SmolLM3 publish theirs, trained on a little text; neither begins with a BOS."""

import json
from collections.abc import Iterable
from pathlib import Path

import gguf
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from uner_jax.records import write_json

# The splits stand here once more, as in the published files: a test compares the two.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SMOLLM3_SPLIT = QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def write_directory(directory: Path, texts: Iterable[str], pre: str, size: int = 600) -> None:
    """Write the files of a Hugging Face directory; `pre` is llama.cpp's name of the kind, qwen2 or smaug-bpe."""
    qwen = pre == "qwen2"
    backend = tokenizers.Tokenizer(models.BPE())
    if qwen:
        backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT if qwen else SMOLLM3_SPLIT), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    state = json.loads(backend.to_str())
    state["model"]["ignore_merges"] = not qwen
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / "tokenizer.json", state)
    config = {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_prefix_space": False}
    write_json(directory / "tokenizer_config.json", config | ({"add_bos_token": False} if qwen else {}))
    # the config names an id that the tokenizer never puts anywhere.
    bos = backend.token_to_id("<|endoftext|>")
    write_json(directory / "config.json", {"bos_token_id": bos, "eos_token_id": backend.token_to_id("<|im_end|>")})


def write_vocabulary(path: Path, directory: Path, pre: str) -> None:
    """The vocabulary of such a directory as llama.cpp's converter puts it into a GGUF file."""
    state = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["id"]: token["content"] for token in state["added_tokens"]}
    ids = {id: text for text, id in state["model"]["vocab"].items()} | special
    tokens = [ids[id] for id in range(len(ids))]
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if id in special else gguf.TokenType.NORMAL for id in range(len(ids))]
    )
    writer.add_token_merges([" ".join(merge) for merge in state["model"]["merges"]])
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    if pre == "qwen2":
        writer.add_bos_token_id(tokens.index("<|endoftext|>"))
        writer.add_add_bos_token(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
