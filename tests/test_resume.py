"""A run that is stopped and started again ends as one that was left alone: bit for bit, or, on other hosts, nearly."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
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
STEPS = 60
KILLS = 6  # benchmarks/kills.py makes as many as one likes
RECIPE = """
import dataclasses
from uner_jax.training.config import *
def config():
    small = dataclasses.replace(TINY, hidden_size=32, intermediate_size=64, head_dim=8)
    return TrainConfig(
        run_dir="", steps={steps}, model=ModelConfig(architecture=small),
        data=DataConfig(dir="{data}", name="short", batch_size=8, row_length=192),
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
    path.write_text(RECIPE.format(data=directory / "data", steps=STEPS))
    return path


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled programs on disk, as most of a start is compiling: the undisturbed run writes them, the others read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("programs")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        yield


@pytest.fixture(scope="module")
def calm(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs, on one device; it keeps all its checkpoints."""
    run_dir = tmp_path_factory.mktemp("calm")
    ended(start(recipe, run_dir, "--checkpoint.keep", "100"))
    return run_dir


def start(recipe: Path, run_dir: Path, *flags: str, **environment: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), str(recipe), "--run-dir", str(run_dir), *flags]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | environment
    )


def start_hosts(recipe: Path, run_dir: Path, hosts: int, devices: int) -> list[subprocess.Popen]:
    """A run on so many hosts, each a process with so many devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    together = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(hosts)} if hosts > 1 else {}
    environment = together | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    flags = ["--checkpoint.every", "20"]
    return [
        start(recipe, run_dir, *flags, **environment, **({"JAX_PROCESS_ID": str(host)} if hosts > 1 else {}))
        for host in range(hosts)
    ]


def ended(*processes: subprocess.Popen) -> list[str]:
    """What each of them said, when all have ended well."""
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(said)
    return said


def wait_for(run_dir: Path, steps: int, process: subprocess.Popen) -> None:
    """Wait until the run has made so many steps."""
    deadline = time.monotonic() + 240
    while len(metrics(run_dir)) < steps and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


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


def test_killed_runs_end_as_an_undisturbed_one(recipe: Path, calm: Path, tmp_path: Path):
    killed, moment = tmp_path / "killed", random.Random(11)
    for number in range(KILLS):
        process = start(recipe, killed)
        wait_for(killed, STEPS * (number + 1) // (KILLS + 2), process)
        # a step takes less than that, a save about as long: kills come in both.
        time.sleep(moment.random() * 0.2)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    # and once more with half a line at the end, as a full disk or a power cut leaves it.
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')
    ended(start(recipe, killed))

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
    shutil.rmtree(killed)


def test_a_run_goes_on_upon_fewer_and_more_hosts(recipe: Path, calm: Path, tmp_path: Path):
    expected = [row["loss"] for row in metrics(calm)]
    counts = [(row["answer_tokens"], row["tokens"]) for row in metrics(calm)]

    def check(run_dir: Path) -> None:
        found = metrics(run_dir)
        assert [row["step"] for row in found] == list(range(1, STEPS + 1))
        assert [(row["answer_tokens"], row["tokens"]) for row in found] == counts
        assert [row["loss"] for row in found] == pytest.approx(expected, rel=1e-5)

    # from two hosts of four devices each, of which the second is told to stop, to one host.
    fewer = tmp_path / "fewer"
    processes = start_hosts(recipe, fewer, hosts=2, devices=4)
    wait_for(fewer, 4, processes[0])
    processes[1].terminate()
    said = ended(*processes)
    stopped = metrics(fewer)[-1]["step"]
    assert 4 <= stopped < STEPS
    assert f"stopped by SIGTERM after step {stopped} of {STEPS}" in said[0] and "SIGTERM after" not in said[1]
    (said_by_one,) = ended(*start_hosts(recipe, fewer, hosts=1, devices=4))
    assert f"resuming after step {stopped}" in said_by_one
    check(fewer)

    # and the undisturbed run, towards its end, from one host to two, which agree that its newest checkpoint is damaged.
    more = tmp_path / "more"
    for step in (51, 54):
        shutil.copytree(calm / "checkpoints" / str(step), more / "checkpoints" / str(step))
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(calm / name, more / name)
    flip_a_bit(more / "checkpoints" / "54" / "optimizer")
    said = ended(*start_hosts(recipe, more, hosts=2, devices=4))
    assert "resuming after step 51" in said[0] and "set aside as 54.corrupt" in said[0] and "set aside" not in said[1]
    check(more)


def flip_a_bit(item: Path) -> None:
    """Flip a bit in the middle of the largest file, which holds arrays."""
    path = max((path for path in item.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
