"""A run that is killed and started again ends as one that was left alone: bit for bit."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from uner_jax.data.builder import Example, build
from uner_jax.model.parameters import flatten
from uner_jax.records import read_rows
from uner_jax.template import encode_conversation
from uner_jax.tokenizer import load_tokenizer
from uner_jax.weights import load_model, load_model_tokenizer

ROOT = Path(__file__).parent.parent
STEPS = 24
KILLS = 2
RECIPE = """
import dataclasses
from uner_jax.training.config import *
def config():
    small = dataclasses.replace(TINY, hidden_size=32, intermediate_size=64, head_dim=8)
    return TrainConfig(
        run_dir="", steps=24, model=ModelConfig(architecture=small), mesh=MeshConfig(1, 1, 1),
        data=DataConfig(dir="{data}", name="short", batch_size=2, row_length=256),
        optimizer=OptimizerConfig(learning_rate=1e-2), checkpoint=CheckpointConfig(every=3, keep=2))
"""


@pytest.fixture(scope="module")
def recipe(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("resume")
    tokenizer = load_tokenizer(shared_data / "models" / "stories260K" / "tok512.model")
    rows = [row for _, row in zip(range(40), read_rows(shared_data / "eval" / "mit-restaurant.json"), strict=False)]
    examples = [Example(row["id"], *encode_conversation(row, tokenizer)) for _, row in rows]
    build(examples, tokenizer, directory / "data", "short", {})
    path = directory / "recipe.py"
    path.write_text(RECIPE.format(data=directory / "data"))
    return path


def start(recipe: Path, run_dir: Path) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), str(recipe), "--run-dir", str(run_dir)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(recipe: Path, run_dir: Path) -> None:
    process = start(recipe, run_dir)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def kill_after_a_step(recipe: Path, run_dir: Path, moment: random.Random) -> None:
    """Start the run, and end it without a warning a random time after it has made a step."""
    before = len(metrics(run_dir))
    process = start(recipe, run_dir)
    deadline = time.monotonic() + 240
    while len(metrics(run_dir)) <= before and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(moment.random() * 0.5)
    process.kill()
    process.communicate()


def metrics(run_dir: Path) -> list[dict]:
    path = run_dir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def losses(run_dir: Path) -> list[tuple]:
    return [(row["step"], row["loss"], row["grad_norm"], row["answer_tokens"]) for row in metrics(run_dir)]


def optimizer_leaves(run_dir: Path) -> dict[str, jax.Array]:
    path = run_dir / "checkpoints" / str(STEPS)
    saved = ocp.checkpointables_metadata(path).metadata["optimizer"]
    here = SingleDeviceSharding(jax.devices()[0])
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for name, x in saved.items()}
    return ocp.load_checkpointables(path, {"optimizer": shapes})["optimizer"]


def test_killed_runs_end_as_an_undisturbed_one(recipe: Path, tmp_path: Path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    finish(recipe, calm)
    moment = random.Random(11)
    for _ in range(KILLS):
        kill_after_a_step(recipe, killed, moment)
    # and once more with half a line at the end, as a full disk or a power cut leaves it.
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')
    finish(recipe, killed)

    assert [row["step"] for row in metrics(killed)] == list(range(1, STEPS + 1))
    assert losses(killed) == losses(calm)
    for leaves in (lambda path: flatten(load_model(path)), optimizer_leaves):
        ours, theirs = leaves(killed), leaves(calm)
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(np.asarray(ours[name]), np.asarray(theirs[name]), err_msg=name)

    step = killed / "checkpoints" / str(STEPS)
    assert load_model_tokenizer(step).fingerprint == load_model_tokenizer(killed).fingerprint
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), load_model(step), load_model(killed)))
    shutil.rmtree(tmp_path)
