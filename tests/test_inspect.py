"""`uner inspect` says what a path is, from headers, and what is wrong with it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_cli import leave
from tiny_model import CONFIG, random_model

from uner_jax.data.builder import build
from uner_jax.data.example import Example
from uner_jax.inspection.path import inspect, lines
from uner_jax.model.parameters import flatten
from uner_jax.records import InputError, write_json, write_rows
from uner_jax.tokenizer import Tokenizer
from uner_jax.weights import stored
from uner_jax.weights.checkpoint import write_checkpoint
from uner_jax.weights.convert import convert_to_gguf
from uner_jax.weights.hf import write_hf
from uner_jax.weights.tensor_file import TensorFile


@pytest.fixture(scope="module")
def models(tok512: Tokenizer, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("inspect")
    write_hf(random_model(), tok512, root / "hf")
    write_checkpoint(random_model(), tok512, root / "run" / "checkpoints" / "12")
    write_json(root / "run" / "config.json", {"optimizer": {"learning_rate": 0.1}, "versions": {"jax": "1"}})
    return root


@pytest.mark.parametrize("name", ["hf", "run/checkpoints/12", "run"])
def test_a_model_is_told_without_reading_its_weights(name, models, monkeypatch):
    for kind in (TensorFile, stored.StoredArray):
        monkeypatch.setattr(kind, "read", lambda *_: pytest.fail("read a tensor"))
    facts = inspect(models / name)
    if name == "run":
        assert (facts["kind"], facts["checkpoints"]) == ("training run", [12])
        assert facts["recipe"] == {"optimizer": {"learning_rate": 0.1}}
        facts = facts["newest"]
    count = sum(leaf.size for leaf in flatten(random_model()).values())
    assert facts["parameters"] == {"count": count, "bytes": 4 * count, "dtypes": {"float32": count}}
    assert facts["architecture"]["hidden_size"] == CONFIG.hidden_size
    assert facts["tokenizer"]["vocabulary"] == 512 and facts["tokenizer"]["bos"] == {"id": 1, "token": "<s>"}
    assert facts["tokenizer"]["kind"] == "SentencePiece BPE"
    assert facts["template"]["noun"] == "text" and "problem" not in facts
    if name != "hf":
        assert set(facts["versions"]) == {"jax", "flax", "orbax"}
        assert facts["integrity"]["digests"]["model"] == len(flatten(random_model()))


def test_a_gguf_is_told(models, tmp_path):
    convert_to_gguf(models / "hf", tmp_path / "model.gguf", "float16")
    facts = inspect(tmp_path / "model.gguf")
    assert (facts["kind"], facts["tokenizer"]["kind"]) == ("GGUF file", "SentencePiece BPE")
    count = sum(leaf.size for leaf in flatten(random_model()).values())
    assert facts["parameters"]["count"] == count and set(facts["parameters"]["dtypes"]) == {"F16", "F32"}


def test_a_data_set_is_told(tok512: Tokenizer, tmp_path):
    examples = [Example(str(number), (1, 300 + number, tok512.eos_id), (0, 1, 1)) for number in range(20)]
    facts = inspect(build(examples, tok512, tmp_path, "cities", {"scheme": "whole"}, "1.2.0"))
    assert (facts["kind"], facts["name"], facts["version"]) == ("TFRecords", "cities", "1.2.0")
    assert facts["splits"]["train"]["conversations"] == 20 and facts["splits"]["train"]["bytes"] > 0
    assert facts["built_with"] == {"scheme": "whole"} and facts["tokenizer"]["vocabulary"] == 512
    assert [line.split() for line in lines(facts)][:2] == [["path", facts["path"]], ["kind", "TFRecords"]]


def test_an_adapter_is_told(tmp_path):
    save_file(
        {"base_model.model.x.lora_A.weight": np.zeros((4, 8), np.float32)}, tmp_path / "adapter_model.safetensors"
    )
    write_json(tmp_path / "adapter_config.json", {"r": 4, "lora_alpha": 8, "base_model_name_or_path": "base"})
    facts = inspect(tmp_path)
    assert facts["kind"] == "PEFT adapter" and facts["parameters"]["count"] == 32
    assert facts["adapter"] == {"rank": 4, "alpha": 8, "targets": None, "base": "base"}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"id": "0", "conversations": []}, "file of conversations"),
        ({"id": "0", "text": "a", "labels": [], "entities": [], "chunks": 1}, "file of extraction"),
        ({"id": "0", "text": "a", "entities": []}, "file of labels"),
        ({"id": "0", "text": "a", "source": "b"}, "file of passages"),
        ({"x": 1}, "other file of rows"),
        ([1], "other file of rows"),
    ],
)
@pytest.mark.parametrize("suffix", ["rows.jsonl", "rows.jsonl.gz", "rows.json"])
def test_records_are_told_apart(row, kind, suffix, tmp_path):
    if suffix == "rows.json":
        write_json(tmp_path / suffix, [row])
    else:
        write_rows(tmp_path / suffix, [row])
    assert inspect(tmp_path / suffix)["kind"] == kind


def test_other_things_are_said_to_be_other(tmp_path):
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "broken.jsonl").write_text("{nothing")
    assert inspect(tmp_path)["kind"] == "other directory"
    assert inspect(tmp_path / "empty.jsonl")["kind"] == "other file of rows"
    assert inspect(tmp_path / "image.png") == {"path": str(tmp_path / "image.png"), "kind": "other file", "bytes": 4}
    assert "not JSON" in inspect(tmp_path / "broken.jsonl")["problem"]
    with pytest.raises(InputError, match="no such file"):
        inspect(tmp_path / "gone")


def test_what_is_wrong_is_told_and_is_the_exit_code(models, tmp_path, capsys):
    broken = Path(shutil.copytree(models / "hf", tmp_path / "broken"))
    code, out, _ = leave(["inspect", broken, "--json"], capsys)
    assert code == 0 and json.loads(out) == json.loads(json.dumps(inspect(broken)))
    (broken / "model.safetensors").write_bytes(b"short")
    code, out, error = leave(["inspect", broken], capsys)
    assert code == 1 and "kind" in out and "Hugging Face directory" in out
    assert "not readable as safetensors" in error and "Traceback" not in error
    assert list(lines({"kind": "x", "inner": {"count": 1000, "yes": True}})) == [
        "kind     x", "inner", "  count  1,000", "  yes    yes"]  # fmt: skip
