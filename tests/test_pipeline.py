"""The whole way from texts to a trained model, killed on the way: what comes out is what a quiet way gives."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_teacher import FakeTeacher

from uner_jax.records import read_rows, write_rows

ROOT = Path(__file__).parent.parent
STEPS = 20


@pytest.fixture(scope="module")
def recorded(shared_data) -> dict[str, str]:
    """The 882 real passages, and the teacher's recorded answers to them as the prompt asks for them."""
    answers = {}
    for _, row in read_rows(shared_data / "teacher" / "pile_ner_sample.jsonl"):
        turns = [turn["value"] for turn in row["conversations"]]
        names = [turn.removeprefix("What describes ").removesuffix(" in the text?") for turn in turns[2::2]]
        spans = map(json.loads, turns[3::2])
        answers[turns[0].removeprefix("Text: ")] = repr(
            [(span, name) for name, found in zip(names, spans, strict=True) for span in found]
        )
    return answers


class Way:
    """The commands of one directory, one after the other."""

    def __init__(self, directory: Path, texts: dict[str, str], tokenizer: Path, url: str):
        self.directory = directory
        directory.mkdir()
        write_rows(self / "passages.jsonl", [{"id": f"p{n}", "text": text} for n, text in enumerate(texts)])
        labels, conversations, data = self / "labels.jsonl", self / "conversations.jsonl", self / "data"
        self.run_dir = self / "run"
        prep = [sys.executable, "-m"]
        label = ["data_prep.label", "--passages", self / "passages.jsonl", "--output", labels, "--model", "recorded"]
        train = ["--data.dir", data, "--data.name", "pile", "--run-dir", self.run_dir, "--steps", STEPS]
        small = ["--data.batch-size", 2, "--mesh.fsdp", 1, "--checkpoint.every", 3]
        self.steps = {
            "label": [*prep, *label, "--base-url", url, "--no-cost", "--concurrency", 4],
            "conversations": [*prep, "data_prep.conversations", "--labels", labels, "--output", conversations],
            "tfrecords": [*prep, "data_prep.tfrecords", "--conversations", conversations, "--tokenizer", tokenizer,
                          "--data-dir", data, "--name", "pile", "--pack-to", 1024],
            "train": [sys.executable, ROOT / "train.py", ROOT / "configs" / "tiny.py", *train, *small],
        }  # fmt: skip

    def __truediv__(self, name: str) -> Path:
        return self.directory / name

    def start(self, step: str) -> subprocess.Popen:
        command = [str(word) for word in self.steps[step]]
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=None)

    def finish(self, step: str) -> None:
        process = self.start(step)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors

    def kill(self, step: str, ready) -> None:
        """Start the step, and end it without a warning as soon as `ready()`."""
        process = self.start(step)
        deadline = time.monotonic() + 240
        while not ready() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, "it was over before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def losses(self) -> list[float]:
        path = self.run_dir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line)["loss"] for line in lines if line.endswith("}")]

    def built(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self / "data").rglob("*") if path.is_file()}


def test_from_texts_to_a_model_with_two_kills(recorded, tmp_path, llama_tokenizer_path):
    def answer(message: str) -> str:
        return recorded[message.split("\n\nPassage: ", 1)[1]]

    with FakeTeacher(answer, delay=0.002) as server:
        killed = Way(tmp_path / "killed", recorded, llama_tokenizer_path, server.url)
        killed.kill("label", lambda: server.requests > 300)
        killed.finish("label")
        assert len(server.answered) == len(recorded) == 882
        assert server.answered.total() <= 882 + 4, "only what was on its way at the kill was asked again"
    with FakeTeacher(answer) as server:
        quiet = Way(tmp_path / "quiet", recorded, llama_tokenizer_path, server.url)
        quiet.finish("label")
        assert set(server.answered.values()) == {1}
    for way in (killed, quiet):
        way.finish("conversations")
        way.finish("tfrecords")
    for name in ("labels.jsonl", "conversations.jsonl"):
        assert (killed / name).read_bytes() == (quiet / name).read_bytes()
    assert killed.built() == quiet.built()

    killed.kill("train", lambda: len(killed.losses()) > 7)
    killed.finish("train")
    quiet.finish("train")
    assert len(quiet.losses()) == STEPS and killed.losses() == quiet.losses()
    assert quiet.losses()[-1] < quiet.losses()[0]
