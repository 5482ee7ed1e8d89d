"""A run that is killed again and again ends as one that is left alone: bit for bit.

python benchmarks/kills.py --kills 20

Hardware: two CPU cores, some minutes. Reaches: see benchmarks/results.md.

A tiny model makes 60 steps with a checkpoint every third, once undisturbed and once with so many SIGKILLs: each waits
until the run is so far, and then a random time in which a few steps or a save go by. The loss curves and the last
checkpoints' digests, of all parameters and moments, must be the same. A kill within a save is told by the temporary
directory that it leaves.
"""

import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

from uner_jax.command import run_command
from uner_jax.data.builder import Example, build
from uner_jax.records import InputError, read_rows
from uner_jax.template import encode_conversation
from uner_jax.tokenizer import load_tokenizer
from uner_jax.weights.checkpoint import read_metadata

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("UNER_SHARED_DATA", ROOT.parent / "shared" / "data"))
STEPS = 60
MOMENT = 0.3  # seconds in which a kill falls: about a save and some steps
FLAGS = ["--data.name", "short", "--data.batch-size", "4", "--data.row-length", "256", "--checkpoint.every", "3"]
FLAGS += ["--steps", str(STEPS), "--mesh.fsdp", "1"]


def kills(kills: int = 20, seed: int = 0) -> None:
    """Kill a run so many times, let it end, and compare it with an undisturbed one.

    Args:
        kills: Number of SIGKILLs.
        seed: Of the moments.
    """
    moment = random.Random(seed)
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        _build(scratch / "data")
        calm, killed = scratch / "calm", scratch / "killed"
        _end(_start(scratch, calm))
        in_saves = 0
        for number in range(kills):
            process = _start(scratch, killed)
            _wait_for(killed, STEPS * (number + 1) // (kills + 2), process)
            time.sleep(moment.random() * MOMENT)
            process.kill()
            if process.wait() != -signal.SIGKILL:
                raise InputError(f"the run ended before kill {number + 1}; give another --seed")
            in_saves += any("tmp" in path.name for path in (killed / "checkpoints").glob("*"))
            print(f"kill {number + 1} after step {_steps(killed)}", file=sys.stderr)
        _end(_start(scratch, killed))
        same_curve, same_state = _curve(calm) == _curve(killed), _digests(calm) == _digests(killed)
    print(
        f"{kills} kills, {in_saves} of them in a save; the same loss curve: {same_curve}; the same state: {same_state}"
    )
    if not (same_curve and same_state):
        raise InputError("the killed run is another one")


def _build(directory: Path) -> None:
    tokenizer = load_tokenizer(SHARED / "models" / "stories260K" / "tok512.model")
    rows = [row for _, row in itertools.islice(read_rows(SHARED / "eval" / "mit-restaurant.json"), 40)]
    build([Example(row["id"], *encode_conversation(row, tokenizer)) for row in rows], tokenizer, directory, "short", {})


def _start(scratch: Path, run_dir: Path) -> subprocess.Popen:
    """The run as a process; what it compiled is on disk for the next one."""
    places = ["--data.dir", str(scratch / "data"), "--run-dir", str(run_dir)]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(scratch / "programs"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, str(ROOT / "train.py"), str(ROOT / "configs" / "tiny.py"), *places, *FLAGS]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | cache)


def _end(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise InputError(f"the run failed: {errors}")


def _wait_for(run_dir: Path, steps: int, process: subprocess.Popen) -> None:
    while _steps(run_dir) < steps and process.poll() is None:
        time.sleep(0.01)


def _steps(run_dir: Path) -> int:
    """The steps made; of a line that is half written, nothing."""
    path = run_dir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _curve(run_dir: Path) -> list[tuple[float, float]]:
    return [(row["loss"], row["grad_norm"]) for _, row in read_rows(run_dir / "metrics.jsonl")]


def _digests(run_dir: Path) -> dict:
    return read_metadata(run_dir / "checkpoints" / str(STEPS))["digests"]


def main(arguments: list[str]) -> None:
    """The command line."""
    tyro.cli(kills, prog="python benchmarks/kills.py", args=arguments)


if __name__ == "__main__":
    run_command(main)
