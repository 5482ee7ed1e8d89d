"""Conversion passes weights on a tensor at a time, tells what it knows of them, and leaves nothing half done."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from orbax.checkpoint import v1 as ocp
from tiny_model import CONFIG, random_model

from uner_jax.model.parameters import flatten
from uner_jax.records import InputError, write_json
from uner_jax.tokenizer import Tokenizer
from uner_jax.weights import directory as directories
from uner_jax.weights import load_model, stored
from uner_jax.weights.card import Card
from uner_jax.weights.checkpoint import checkpoint_directory, metadata_of, model_items, read_metadata
from uner_jax.weights.convert import convert_from_hf, convert_to_hf
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
