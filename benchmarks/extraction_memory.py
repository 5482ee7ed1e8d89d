"""Does the memory of `uner extract` grow with its corpus? Runs the command on generated corpora of several sizes.

python benchmarks/extraction_memory.py --tokenizer MODEL

Hardware: two CPU cores, 4 GB. Reaches: see benchmarks/results.md.

A corpus is JSON lines of documents of 20 to 120 random words. The model is a LLaMA of two layers and random weights,
so that there is little beside what a job holds of its corpus. What was compiled for one size is kept for the next.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tyro

from uner_jax.command import run_command
from uner_jax.records import InputError

POLL_SECONDS = 0.05
WORDS = 5_000

WRITE_MODEL = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from uner_jax.model.config import LlamaConfig
from uner_jax.model.parameters import abstract_model
from uner_jax.tokenizer import load_tokenizer
from uner_jax.weights.checkpoint import write_checkpoint
tokenizer, random = load_tokenizer(sys.argv[1]), np.random.default_rng(0)
config = LlamaConfig(tokenizer.vocab_size, 16, 16, 2, 2, 1, 8, max_position_embeddings=512)
model = jax.tree.map(lambda x: jnp.asarray(random.normal(0, 0.5, x.shape), jnp.float32), abstract_model(config))
write_checkpoint(model, tokenizer, Path(sys.argv[2]))
"""


def extraction_memory(tokenizer: Path, documents: tuple[int, ...] = (1_000, 10_000), format: str = "jsonl") -> None:
    """Extract from corpora of so many documents, and print the peak of the process's memory for each.

    Args:
        tokenizer: An HF directory, a SentencePiece .model or a GGUF file.
        documents: Sizes of the corpora.
        format: Format of the output.
    """
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        subprocess.run([sys.executable, "-c", WRITE_MODEL, tokenizer, scratch / "model"], check=True)
        for count in documents:
            size = write_corpus(scratch / f"{count}.jsonl", count)
            peaks, seconds = _extract(scratch, count, format)
            first, last = max(peaks[: len(peaks) // 2]), max(peaks[len(peaks) // 2 :])
            print(
                f"{count:>8,} documents, {size / 1e6:.1f} MB: peak {max(peaks) / 1e6:,.0f} MB "
                f"({first / 1e6:,.0f} in the first half, {last / 1e6:,.0f} in the second), {seconds:.0f} s",
                flush=True,
            )


def write_corpus(path: Path, documents: int) -> int:
    """Write that many documents; how many bytes they are."""
    draw = random.Random(documents)
    letters = "etaoinshrdlu"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 9))) for _ in range(WORDS)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(documents):
            text = " ".join(draw.choices(words, k=draw.randint(20, 120)))
            file.write(json.dumps({"id": str(number), "text": text}) + "\n")
    return path.stat().st_size


def _extract(scratch: Path, count: int, format: str) -> tuple[list[int], float]:
    """Bytes that the process had in memory, again and again, and the seconds that it took."""
    command = [sys.executable, "-m", "uner_jax.cli", "extract", "--model", "model", "--input", f"{count}.jsonl"]
    command += ["--labels", "person", "--output", f"out-{count}", "--max-new-tokens", "4", "--format", format]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(scratch / "programs")}
    started, peaks = time.monotonic(), []
    said = scratch / "stderr"
    with said.open("w") as file, subprocess.Popen(command, cwd=scratch, env=environment, stderr=file) as process:
        while process.poll() is None:
            peaks.append(_resident(process.pid))
            time.sleep(POLL_SECONDS)
    if process.returncode:
        raise InputError(f"uner extract failed: {said.read_text()}")
    return peaks, time.monotonic() - started


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


def main(arguments: list[str]) -> None:
    """The command line."""
    tyro.cli(extraction_memory, prog="python benchmarks/extraction_memory.py", args=arguments)


if __name__ == "__main__":
    run_command(main)
