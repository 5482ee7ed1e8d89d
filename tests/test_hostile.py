"""Weights from anywhere: whatever is in the files, a model is loaded or an InputError says why not."""

import gc
import json
import os
import random
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_model import CONFIG, random_model

from uner_jax.records import InputError, write_json
from uner_jax.tokenizer import Tokenizer
from uner_jax.weights.checkpoint import read_metadata, read_tokenizer, write_checkpoint
from uner_jax.weights.hf import write_hf
from uner_jax.weights.hf_config import config_to_hf
from uner_jax.weights.load import load_config, load_model, open_tensors
from uner_jax.weights.tensor_file import DTYPES, TensorFile, write_tensor_file
from uner_jax.weights.tensors import check_tensors

MEMORY = 30 * 2**20  # of a model of 60 KB; what is claimed is a thousand times as much


@pytest.fixture(scope="module")
def directory(tok512: Tokenizer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "hf"
    write_hf(random_model(), tok512, path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tok512: Tokenizer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("hostile") / "checkpoint"
    write_checkpoint(random_model(), tok512, path)
    return path


def read_all(path: Path) -> None:
    """Every tensor, after every check, as a conversion reads them."""
    source = open_tensors(path)
    check_tensors(source)
    for name in sorted(source.names()):
        source.read(name)
    source.check_read()


# ---- the format


def header_of(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(path: Path, header: Any, body: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.mark.parametrize("dtype", [np.dtype(dtype) for dtype in DTYPES.values()], ids=str)
def test_a_file_is_what_the_library_reads_and_writes(dtype, tmp_path):
    drawn = np.random.default_rng(0).normal(size=60)
    shapes = {"a": (3, 4), "b": (0, 5), "c": (), "d": (7,)}
    tensors = {name: drawn[: int(np.prod(shape))].reshape(shape).astype(dtype) for name, shape in shapes.items()}
    write_tensor_file(
        tmp_path / "ours", shapes, dtype, iter([drawn[: x.size].reshape(x.shape) for x in tensors.values()])
    )
    save_file(tensors, tmp_path / "theirs")
    for path in (tmp_path / "ours", tmp_path / "theirs"):
        ours, theirs = TensorFile(path), load_file(path)
        assert set(ours.entries) == set(theirs) == set(tensors)
        for name, tensor in tensors.items():
            assert ours.read(name).dtype == theirs[name].dtype == dtype
            assert ours.read(name).tobytes() == theirs[name].tobytes() == tensor.tobytes()
            assert ours.read(name).shape == tensor.shape


def entry(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A change of what the header says of one tensor."""

    def apply(path: Path) -> None:
        header, body = header_of(path)
        change(header["model.norm.weight"])
        with_header(path, header, body)

    return apply


def moved(entry: dict[str, Any], by: int) -> None:
    entry["data_offsets"] = [offset + by for offset in entry["data_offsets"]]


def name_twice(path: Path) -> None:
    header, body = header_of(path)
    text = json.dumps(header)
    one = json.dumps({"model.norm.weight": header["model.norm.weight"]})
    with_header(path, (text[:-1] + ", " + one[1:]).encode(), body)


HUGE = 10 * 10**9
FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "it has 0 bytes"),
    "header of 10 GB": (lambda p: p.write_bytes(struct.pack("<Q", HUGE) + b"{}"), "a header of 10,000,000,000 bytes"),
    "header of 2^64": (lambda p: p.write_bytes(b"\xff" * 8 + b"{}"), "a header of 18,446,744,073,709,551,615 bytes"),
    "cut in the header": (lambda p: p.write_bytes(p.read_bytes()[:300]), "ask for a header"),
    "cut in the tensors": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "and the file at"),
    "more behind the tensors": (lambda p: p.write_bytes(p.read_bytes() + b"x"), "and the file at"),
    "no JSON": (lambda p: with_header(p, b"{nothing", b""), "Expecting"),
    "no text": (lambda p: with_header(p, b"\xff\xfe\xfd", b""), "decode"),
    "no object": (lambda p: with_header(p, [1, 2], b""), "no JSON object"),
    "deep": (lambda p: with_header(p, b"[" * 100_000, b""), "recursion"),
    "a number of many digits": (lambda p: with_header(p, b'{"a": ' + b"9" * 10_000 + b"}", b""), "digits"),
    "a name twice": (name_twice, "a name twice"),
    "overlapping": (entry(lambda e: moved(e, -8)), "was expected"),
    "a gap": (entry(lambda e: moved(e, 8)), "was expected"),
    "before the tensors": (entry(lambda e: e.update(data_offsets=[-64, 0])), "whole numbers"),
    "backwards": (entry(lambda e: e.update(data_offsets=e["data_offsets"][::-1])), "does not have -64 bytes"),
    "far away": (entry(lambda e: moved(e, HUGE)), "was expected"),
    "a shape of 10 GB": (entry(lambda e: e.update(shape=[HUGE])), "does not have 64 bytes"),
    "a shape below 0": (entry(lambda e: e.update(shape=[-4, -4])), "whole numbers"),
    "a shape of floats": (entry(lambda e: e.update(shape=[16.0])), "whole numbers"),
    "a shape of bools": (entry(lambda e: e.update(shape=[True])), "whole numbers"),
    "shape of 2^100": (entry(lambda e: e.update(shape=[2**100])), "whole numbers"),
    "a dtype unknown": (entry(lambda e: e.update(dtype="I64")), "supported are F64, F32, F16, BF16"),
    "a dtype of no name": (entry(lambda e: e.update(dtype=["F32"])), "supported are"),
    "no offsets": (entry(lambda e: e.pop("data_offsets")), "should have dtype, shape and data_offsets"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_before_it_costs_anything(name, directory, tmp_path):
    path = Path(shutil.copytree(directory, tmp_path / "model"), "model.safetensors")
    damage, words = FILES[name]
    damage(path)
    tracemalloc.start()
    with pytest.raises(InputError) as error:
        open_tensors(path.parent)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(path) in str(error.value) and words in str(error.value)
    assert len(str(error.value)) < 500 and peak < MEMORY


# ---- the directory


def index_of(model: Path, weight_map: dict[str, Any]) -> None:
    write_json(model / "model.safetensors.index.json", {"weight_map": weight_map})


def outside(model: Path, where: str) -> None:
    shutil.copy(model / "model.safetensors", model.parent / "stolen.safetensors")
    index_of(model, dict.fromkeys(TensorFile(model / "model.safetensors").entries, where))


def again(model: Path) -> None:
    entries = TensorFile(model / "model.safetensors").entries
    shutil.copy(model / "model.safetensors", model / "two.safetensors")
    index_of(model, dict.fromkeys(entries, "model.safetensors") | {"model.norm.weight": "two.safetensors"})


def pipe(model: Path) -> None:
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "pipe.safetensors")
    index_of(model, {"model.norm.weight": "pipe.safetensors"})


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda model: write_json(model / "config.json", config_to_hf(CONFIG) | {"model_type": "llama"} | changes)


DIRECTORIES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a file outside": (lambda m: outside(m, "../stolen.safetensors"), "no safetensors file"),
    "a file at the root": (lambda m: outside(m, str(m.parent / "stolen.safetensors")), "no safetensors file"),
    "a file of no name": (lambda m: outside(m, ""), "no safetensors file"),
    "a file that is a number": (lambda m: index_of(m, {"model.norm.weight": 3}), "no safetensors file"),
    "a pickle in the index": (lambda m: index_of(m, {"model.norm.weight": "model.bin"}), "no safetensors file"),
    "an empty index": (lambda m: index_of(m, {}), "has no weight_map"),
    "a tensor that is not there": (
        lambda m: index_of(m, {"model.extra.weight": "model.safetensors"}), "lacks 'model.extra.weight'"),
    "a tensor in two files": (again, "again, which"),
    "a link to nothing": (
        lambda m: ((m / "model.safetensors").unlink(), (m / "model.safetensors").symlink_to("gone")), "has neither"),
    "a link to a device": (
        lambda m: (index_of(m, {"a": "x.safetensors"}), (m / "x.safetensors").symlink_to("/dev/zero")),
        "not a regular one"),
    "a link in a circle": (
        lambda m: (index_of(m, {"a": "x.safetensors"}), (m / "x.safetensors").symlink_to("x.safetensors")),
        "No such file"),
    "a pipe": (pipe, "not a regular one"),
    "a pickle": (
        lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin"), "pickled .bin weights only"),
    "a deep config": (lambda m: (m / "config.json").write_text('{"a":' * 100_000), "not JSON"),
    "a config of 21 MB": (lambda m: (m / "config.json").write_text(" " * (21 * 2**20) + "{}"), "are no config"),
    "a config that is a pipe": (
        lambda m: ((m / "config.json").unlink(), os.mkfifo(m / "config.json")), "no model here"),
    "a billion layers": (config(num_hidden_layers=10**9), "num_hidden_layers"),
    "4096 layers": (config(num_hidden_layers=4096), "lacks"),
    "a vocabulary of 10^30": (config(vocab_size=10**30), "vocab_size"),
    "a wide model": (config(hidden_size=2**19), "has shape"),
    "sizes below 0": (config(hidden_size=-16), "hidden_size"),
    "heads of no width": (config(head_dim=0), "head_dim"),
    "no kv heads": (config(num_key_value_heads=0), "num_key_value_heads"),
}  # fmt: skip


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_hostile_directory_is_refused_before_it_costs_anything(name, directory, tmp_path):
    model = Path(shutil.copytree(directory, tmp_path / "model"))
    damage, words = DIRECTORIES[name]
    damage(model)
    with pytest.raises(InputError) as error:
        load_model(model)
    assert str(model) in str(error.value) and words in str(error.value)
    assert len(str(error.value)) < 500


def test_links_are_followed_as_a_cache_of_the_hub_has_them(directory, tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for number, file in enumerate(directory.iterdir()):
        shutil.copy(file, tmp_path / "blobs" / str(number))
        (tmp_path / "snapshot" / file.name).symlink_to(f"../blobs/{number}")
    assert load_config(tmp_path / "snapshot") == CONFIG
    read_all(tmp_path / "snapshot")


# ---- fuzzing


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few of them changed, taken out, put in, or with one number turned into another."""
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at]
        elif kind == 2:
            data = data[:at] + data[at + rng.randint(1, 40) :]
        elif kind == 3:
            data = data[:at] + rng.choice([b"0", b"9", b"-", b"{", b"[", b'"', b"null", b"1e999"]) + data[at:]
        else:
            found = [place for place in range(len(data)) if data[place : place + 1].isdigit()]
            if found:
                place = rng.choice(found)
                data = data[:place] + rng.choice([b"0", b"7", b"9999999999999", b"1.5"]) + data[place + 1 :]
    return data


def outcomes(path: Path, original: bytes, read: Callable[[], None], count: int) -> dict[str, int]:
    counts = {"loaded": 0, "refused": 0}
    for seed in range(count):
        path.write_bytes(mutated(original, random.Random(seed)))
        try:
            read()
            counts["loaded"] += 1
        except InputError as error:
            counts["refused"] += 1
            assert len(str(error)) < 1000, seed
        except BaseException as error:
            raise AssertionError(f"mutation {seed} of {path.name}: {error!r}") from error
    path.write_bytes(original)
    return counts


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.safetensors.index.json"])
def test_every_mutation_of_a_directory_is_loaded_or_refused(name, directory, tmp_path):
    model = Path(shutil.copytree(directory, tmp_path / "model"))
    index_of(model, dict.fromkeys(TensorFile(model / "model.safetensors").entries, "model.safetensors"))
    original = (model / name).read_bytes()
    if name == "model.safetensors":  # its header, most of all
        (length,) = struct.unpack("<Q", original[:8])
        body = original[8 + length :]
        full = outcomes(model / name, original, lambda: read_all(model), 60)
        assert full["refused"]
        rng_of = iter(range(10**6))

        def read() -> None:
            header = mutated(original[8 : 8 + length], random.Random(next(rng_of)))
            with_header(model / name, header, body)
            read_all(model)

        counts = outcomes(model / name, original, read, 240)
    else:
        counts = outcomes(model / name, original, lambda: read_all(model), 240)
    assert counts["refused"] > 50 and sum(counts.values()) == 240


# Orbax leaves its other reads pending when one fails, and they complain when they are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "name", ["_CHECKPOINT_METADATA", "model/_METADATA", "model/embedding/zarr.json", "tokenizer/_strings.json"]
)
def test_every_mutation_of_a_checkpoint_is_loaded_or_refused(name, checkpoint, tmp_path):
    model = Path(shutil.copytree(checkpoint, tmp_path / "model"))

    def read() -> None:
        read_metadata(model)
        if name.startswith("tokenizer"):
            read_tokenizer(model)
        else:
            read_all(model)

    counts = outcomes(model / name, (model / name).read_bytes(), read, 30)
    gc.collect()
    assert counts["refused"] > 10 and sum(counts.values()) == 30
