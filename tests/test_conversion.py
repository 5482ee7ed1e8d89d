"""Conversion passes weights on a tensor at a time, tells what it knows of them, and leaves nothing half done."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from etils import epath
from orbax.checkpoint import v1 as ocp
from tiny_model import CONFIG, random_model
from tokenizers import pre_tokenizers

from uner_jax.extraction.engine import Engine
from uner_jax.extraction.extractor import Extractor
from uner_jax.extraction.options import Options
from uner_jax.inspection.path import inspect
from uner_jax.model.config import RopeScaling
from uner_jax.model.parameters import abstract_model, flatten, unflatten
from uner_jax.records import InputError, write_json
from uner_jax.template import encode_context
from uner_jax.tokenizer import Tokenizer, load_tokenizer
from uner_jax.weights import directory as directories
from uner_jax.weights import load_model, stored
from uner_jax.weights.card import Card
from uner_jax.weights.chat import chat_template
from uner_jax.weights.checkpoint import checkpoint_directory, metadata_of, model_items, read_metadata
from uner_jax.weights.convert import convert_from_hf, convert_to_gguf, convert_to_hf
from uner_jax.weights.gguf_vocabulary import add_vocabulary, write_head
from uner_jax.weights.hf import HFTensors, write_hf
from uner_jax.weights.integrity import DamagedError, Digest, digests_of, sealed
from uner_jax.weights.origin import Origin, read_origin
from uner_jax.weights.tensor_file import TensorFile


@pytest.fixture(scope="module")
def source(tok512: Tokenizer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("conversion") / "source"
    write_hf(random_model(), tok512, path)
    return path


def same_tensors(one: Path, other: Path) -> bool:
    first, second = HFTensors(one), HFTensors(other)
    return first.names() == second.names() and all(
        first.read(name).tobytes() == second.read(name).tobytes() for name in first.names()
    )


# ---- streaming


@pytest.mark.parametrize("chunk_bytes", [300, 4 * 2**20])
def test_chunks_of_any_size_hold_the_same_model(chunk_bytes, source, tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "CHUNK_BYTES", chunk_bytes)
    convert_from_hf(source, tmp_path / "checkpoint")
    digests = read_metadata(tmp_path / "checkpoint")["digests"]["model"]
    assert digests == digests_of(flatten(random_model()))
    loaded = load_model(tmp_path / "checkpoint", None)
    for name, leaf in flatten(random_model()).items():
        assert np.asarray(flatten(loaded)[name]).tobytes() == np.asarray(leaf).tobytes(), name
    convert_to_hf(tmp_path / "checkpoint", tmp_path / "back")
    assert same_tensors(tmp_path / "back", source)


def test_what_orbax_wrote_is_read_a_tensor_at_a_time(source, tok512, tmp_path):
    # as train.py writes it: a chunk holds all layers.
    items = model_items(random_model(), tok512)
    about = sealed(metadata_of(CONFIG, "paragraph") | {"step": 7}, items)
    ocp.save_checkpointables(epath.Path(tmp_path / "run" / "checkpoints" / "7"), items, custom_metadata=about)
    write_json(tmp_path / "run" / "config.json", {"model": {"source": str(source)}, "data": {"name": "pile"}})
    convert_to_hf(tmp_path / "run", tmp_path / "back")
    assert same_tensors(tmp_path / "back", source)
    assert "provided paragraph" in (tmp_path / "back" / "chat_template.jinja").read_text()
    assert read_origin(tmp_path / "back").noun == "paragraph"


def test_the_extractor_asks_in_the_words_of_training(source, tok512, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(Engine, "generate", lambda self, requests: asked.extend(requests) or iter(()))
    for noun in ("text", "paragraph"):
        write_hf(random_model(), tok512, tmp_path / noun, origin=Origin(noun=noun))
        for given in (None, "text"):
            asked.clear()
            extractor = Extractor.from_pretrained(tmp_path / noun, options=Options(noun=given))
            list(extractor.stream(["Ada met Grace."], ["person"]))
            assert asked[0].context == tuple(encode_context("Text: Ada met Grace.", tok512, noun=given or noun))


def test_a_digest_of_blocks_is_that_of_the_array():
    drawn = np.random.default_rng(0).normal(size=(3, 70_001)).astype(np.float32)
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        array = drawn.astype(dtype)
        digest = Digest()
        for block in np.split(array.reshape(-1), [1, 70_000, 70_002, 200_000]):
            digest.add(block)
        assert digest.value == digests_of({"x": jnp.asarray(array)})["x"]


def test_a_flipped_bit_stops_a_conversion(source, tmp_path):
    convert_from_hf(source, tmp_path / "checkpoint")
    chunk = tmp_path / "checkpoint" / "model" / "head" / "c" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(DamagedError, match=r"1 of model do not match their checksums \(head\)"):
        convert_to_hf(tmp_path / "checkpoint", tmp_path / "back")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_one_tensor_is_held_at_a_time(source, tmp_path, monkeypatch):
    alive: list[np.ndarray] = []

    def read(self, name, read=TensorFile.read):
        # whoever asks for the next one has let go of the one before.
        assert all(sys.getrefcount(tensor) <= 3 for tensor in alive), name
        alive[:] = [read(self, name)]
        return alive[0]

    monkeypatch.setattr(TensorFile, "read", read)
    convert_from_hf(source, tmp_path / "checkpoint")
    convert_to_hf(source, tmp_path / "copy")
    assert len(alive) == 1


# ---- whole or not there


@pytest.mark.parametrize("convert", [convert_from_hf, convert_to_hf])
def test_a_full_disk_is_seen_before_anything_is_written(convert, source, tmp_path, monkeypatch):
    monkeypatch.setattr(directories.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40, 2**20))
    with pytest.raises(InputError, match=r"needs 0\.07 GB, and 0\.00 GB are free there; make room"):
        convert(source, tmp_path / "new" / "target")
    assert not list(tmp_path.rglob("*target*"))


STALLED = """
import sys, time
from pathlib import Path
from uner_jax.weights import convert
from uner_jax.weights.tensor_file import TensorFile
read, count = TensorFile.read, iter(range(10**6))

def stalled(self, name):
    if next(count) == 9:
        print("stalled", flush=True)
        time.sleep(600)
    return read(self, name)

TensorFile.read = stalled
getattr(convert, sys.argv[1])(Path(sys.argv[2]), Path(sys.argv[3]))
"""


@pytest.mark.parametrize("name", ["convert_from_hf", "convert_to_hf"])
def test_a_killed_conversion_leaves_nothing_that_looks_whole(name, source, tmp_path):
    target = tmp_path / "target"
    arguments = [sys.executable, "-c", STALLED, name, str(source), str(target)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout and process.stdout.readline() == "stalled\n"
        os.kill(process.pid, signal.SIGKILL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target.partial"]
    left = tmp_path / "target.partial"
    assert checkpoint_directory(left) is None
    with pytest.raises(InputError, match="no model here"):
        load_model(left)
    {"convert_from_hf": convert_from_hf, "convert_to_hf": convert_to_hf}[name](source, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target"]
    assert load_model(target).config == CONFIG


# ---- what is told


def front_matter(directory: Path) -> dict[str, object]:
    _, block, _ = (directory / "README.md").read_text().split("---\n", 2)
    return {name: json.loads(value) for name, value in (line.split(": ", 1) for line in block.splitlines())}


def test_a_card_says_what_is_recorded_and_no_more(source, tmp_path, tok512):
    write_hf(random_model(), tok512, tmp_path / "plain")
    fields, text = front_matter(tmp_path / "plain"), (tmp_path / "plain" / "README.md").read_text()
    assert fields["license"] == "other" and fields["license_name"] == "unknown"
    assert not fields.keys() & {"base_model", "datasets"}
    assert text.count("not recorded") == 4 and "is unknown: none is recorded" in text
    told = Card("meta-llama/Llama-2-7b-hf", "llama2", ("Universal-NER/Pile-NER-type",), ("en", "de"))
    recipe = {"model": {"source": "/home/ada/llama"}, "data": {"name": "pile_ner"}, "optimizer": {"schedule": "cosine"}}
    origin = Origin("/home/ada/run", recipe=recipe, step=12, base="/home/ada/llama")
    write_hf(random_model(), tok512, tmp_path / "told", origin=origin, card=told)
    fields, text = front_matter(tmp_path / "told"), (tmp_path / "told" / "README.md").read_text()
    assert fields["license"] == "llama2" and fields["base_model"] == "meta-llama/Llama-2-7b-hf"
    assert fields["datasets"] == ["Universal-NER/Pile-NER-type"] and fields["language"] == ["en", "de"]
    assert (fields["library_name"], fields["pipeline_tag"]) == ("transformers", "text-generation")
    assert "| optimizer steps | 12 |" in text and "| schedule | cosine |" in text and "likely" in text
    assert "/home" not in text


def test_the_licence_of_a_base_goes_along(source, tmp_path):
    base = Path(shutil.copytree(source, tmp_path / "base"))
    (base / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A base\n\nlicense: no\n")
    convert_from_hf(base, tmp_path / "checkpoint")
    shutil.rmtree(base)
    convert_to_hf(tmp_path / "checkpoint", tmp_path / "back")
    assert front_matter(tmp_path / "back")["license"] == "apache-2.0"
    assert "states `apache-2.0`" in (tmp_path / "back" / "README.md").read_text()


# ---- GGUF


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q8_0"])
def test_a_gguf_holds_the_model_in_the_dtype_asked_for(dtype, source, tok512, tmp_path):
    convert_to_gguf(source, tmp_path / "model.gguf", dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    found, expected = flatten(load_model(tmp_path / "model.gguf", None)), flatten(random_model())
    for name, leaf in expected.items():
        exact = np.asarray(leaf)
        if dtype != "float32" and "norm" not in name:
            # a row of 16 or 24 numbers has no whole block of 32: it is in float16.
            exact = np.asarray(leaf.astype("bfloat16" if dtype == "bfloat16" else "float16").astype(jnp.float32))
        assert np.asarray(found[name]).tobytes() == exact.tobytes(), name
    assert load_tokenizer(tmp_path / "model.gguf").fingerprint == tok512.fingerprint
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == chat_template(tok512)
    with pytest.raises(InputError, match="exists; give another name"):
        convert_to_gguf(source, tmp_path / "model.gguf", dtype)


def test_blocks_of_32_are_quantised(tok512, tmp_path):
    config = dataclasses.replace(CONFIG, hidden_size=64, intermediate_size=96, attention_bias=True, mlp_bias=True)
    model = abstract_model(config)
    drawn = np.random.default_rng(0)
    leaves = {name: jnp.asarray(drawn.normal(size=leaf.shape), jnp.float32) for name, leaf in flatten(model).items()}
    write_hf(unflatten(model, leaves), tok512, tmp_path / "hf")
    convert_to_gguf(tmp_path / "hf", tmp_path / "model.gguf", "q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert kinds["blk.1.attn_q.weight"] == "Q8_0" and kinds["blk.1.attn_q.bias"] == "F32"
    assert kinds["blk.0.attn_output.weight"] == "F16"  # rows of two heads of 8
    for name, leaf in flatten(load_model(tmp_path / "model.gguf", None)).items():
        largest = np.abs(leaves[name]).max()
        np.testing.assert_allclose(np.asarray(leaf), leaves[name], rtol=0, atol=float(largest) / 127, err_msg=name)


def small_byte_level(texts: list[str], directory: Path) -> Tokenizer:
    """A tokenizer of SmolLM2's kind: byte-level BPE, digits apart, no BOS."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    backend.save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", {"eos_token": "<|im_end|>"})
    return load_tokenizer(directory)


@pytest.mark.parametrize("name", ["llama2", "byte-level"])
def test_a_gguf_has_the_tokenizer(name, llama_tokenizer_path, tmp_path, shared_data):
    lines = (shared_data / "teacher" / "pile_ner_sample.jsonl").read_text(encoding="utf-8").splitlines()[::9]
    texts = [turn["value"] for line in lines for turn in json.loads(line)["conversations"]]
    tokenizer = load_tokenizer(llama_tokenizer_path) if name == "llama2" else small_byte_level(texts, tmp_path)
    with closing(gguf.GGUFWriter(tmp_path / "words.gguf", "llama")) as writer:
        add_vocabulary(writer, tokenizer, tokenizer.vocab_size + 3)  # a model may have more rows
        write_head(writer)
    read = load_tokenizer(tmp_path / "words.gguf")
    assert (read.bos_id, read.eos_id, read.adds_bos) == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.adds_bos)
    assert len(texts) > 100 and read.encode_batch(texts) == tokenizer.encode_batch(texts)


def test_a_gguf_tells_the_words_and_the_licence_that_it_was_made_with(tok512, tmp_path):
    write_hf(random_model(), tok512, tmp_path / "hf", origin=Origin(noun="paragraph"), card=Card(license="apache-2.0"))
    convert_to_gguf(tmp_path / "hf", tmp_path / "model.gguf", "float32")
    found = read_origin(tmp_path / "model.gguf")
    assert (found.noun, found.license) == ("paragraph", "apache-2.0")
    assert inspect(tmp_path / "model.gguf")["template"] == {"noun": "paragraph", "chat_template": True}


FAMILIES = {
    "qwen2": {"family": "qwen2"},
    "qwen3": {"family": "qwen3", "tie_word_embeddings": True},
    "mistral": {"family": "mistral", "sliding_window": 32},
    "smollm3": {"family": "smollm3", "num_hidden_layers": 5, "layers_without_rope": (3,)},
    "llama 3.1": {
        "rope_scaling": RopeScaling("llama3", 8.0),
        "rope_theta": 500_000.0,
        "max_position_embeddings": 16_384,
    },
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_comes_back_from_its_gguf(name, tok512, tmp_path):
    # numbers that float32 holds, as the format has no other.
    config = dataclasses.replace(CONFIG, rms_norm_eps=2.0**-20, **FAMILIES[name])
    model = random_model(config)
    write_hf(model, tok512, tmp_path / "hf")
    convert_to_gguf(tmp_path / "hf", tmp_path / "model.gguf", "float32")
    found = load_model(tmp_path / "model.gguf", None)
    assert found.config == config
    for parameter, leaf in flatten(model).items():
        assert np.array_equal(np.asarray(flatten(found)[parameter]), np.asarray(leaf)), parameter


def test_what_a_gguf_cannot_hold_is_said(source, tok512, tmp_path):
    with pytest.raises(InputError, match="the tokenizer has 512 tokens, and the model 500"):
        add_vocabulary(gguf.GGUFWriter(None, "llama"), tok512, 500)
    scaled = dataclasses.replace(CONFIG, rope_scaling=RopeScaling("linear", 2.0))
    model = unflatten(abstract_model(scaled), flatten(random_model()))
    write_hf(model, tok512, tmp_path / "scaled")
    with pytest.raises(InputError, match=r"rotary scaling other than that of Llama 3\.1 and 3\.2"):
        convert_to_gguf(tmp_path / "scaled", tmp_path / "model.gguf", "float32")
    odd = dataclasses.replace(CONFIG, family="smollm3", num_hidden_layers=4, layers_without_rope=(0,))
    write_hf(random_model(odd), tok512, tmp_path / "odd")
    with pytest.raises(InputError, match="layers_without_rope of this smollm3 cannot be written as GGUF"):
        convert_to_gguf(tmp_path / "odd", tmp_path / "model.gguf", "float32")
    large = flatten(random_model())
    large["head"] = large["head"] * 1e6
    write_hf(unflatten(random_model(), large), tok512, tmp_path / "large")
    with pytest.raises(InputError, match=r"lm_head.weight has numbers that are no float16; choose --dtype bfloat16"):
        convert_to_gguf(tmp_path / "large", tmp_path / "model.gguf", "float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "odd", "scaled"]
