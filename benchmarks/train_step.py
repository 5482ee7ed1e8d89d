"""A training step beside that of transformers' Trainer: the same weights, optimizer and conversations, in one run.

pip install torch accelerate && python benchmarks/train_step.py --conversations pile_ner_sample.jsonl --tokenizer DIR

Hardware: two CPU cores, 16 GB, a quarter of an hour. Reaches: see benchmarks/results.md.

A model of SmolLM2-135M's shape in float32, random weights, AdamW. Counted are tokens of conversations, not of padding,
and answer tokens, which alone are learnt from. The Trainer pads each conversation to 1,024 tokens, as the released
trainer of UniversalNER does, or to the longest of its batch, as most do; ours packs rows. The last pair is step for
step: the same conversations in the same padded arrays on both sides, whose losses must agree. The sides
of a pair take turns; the times are medians over the rounds, without the first, which compiles.
"""

import queue
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from uner_jax.command import run_command, use_huge_pages
from uner_jax.data.batches import Batch, PackedRows, answers_of, batches
from uner_jax.data.builder import Example, build
from uner_jax.mesh import make_mesh
from uner_jax.model.config import LlamaConfig
from uner_jax.model.llama import Llama, Remat
from uner_jax.records import InputError, read_rows
from uner_jax.template import encode_conversation
from uner_jax.training.batch import on_mesh
from uner_jax.training.config import DataConfig, MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from uner_jax.training.initial import first_state
from uner_jax.training.optimizer import make_optimizer
from uner_jax.training.shapes import abstract_state
from uner_jax.training.step import TrainState, make_step
from uner_jax.weights import load_model_tokenizer
from uner_jax.weights.hf import write_hf

SMOLLM2 = LlamaConfig(
    49_152, 576, 1536, 30, 9, 3, 64, rope_theta=100_000.0, rms_norm_eps=1e-5, tie_word_embeddings=True
)
LENGTH = 1024
# Of the Trainer: what our side does too, and nothing else.
SETTINGS: dict[str, Any] = {
    "learning_rate": 2e-5,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "optim": "adamw_torch",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
    "remove_unused_columns": False,
}


class Step(NamedTuple):
    """One step: how long it took, what it learnt from, and its loss."""

    seconds: float
    tokens: int
    answers: int
    loss: float


def train_step(
    conversations: Path, tokenizer: str, rounds: int = 5, batch: int = 4, rows: int = 2, remat: Remat = "none"
) -> None:
    """Time steps of both sides in turn, a pair after the other, and print their ratios.

    Args:
        conversations: A file of conversations in the published form.
        tokenizer: SmolLM2's: a directory, a .gguf file or a checkpoint.
        rounds: Timed steps of each side.
        batch: Conversations of a step of the Trainer.
        rows: Rows of 1,024 tokens of a step of ours.
        remat: What our blocks keep for the backward pass; the Trainer keeps all.
    """
    words = load_model_tokenizer(tokenizer)
    examples = [Example(row["id"], *encode_conversation(row, words)) for _, row in read_rows(conversations)]
    examples = [example for example in examples if len(example.tokens) <= LENGTH]
    fixed = [examples[:batch]] * (rounds + 1)
    with tempfile.TemporaryDirectory() as directory:
        build(examples, words, Path(directory), "sample", {})
        ours, hf = Ours(Path(directory), rows, remat), Path(directory, "hf")
        write_hf(ours.model(), words, hf)
        order = np.random.default_rng(0).permutation(len(examples))
        several = [[examples[place] for place in order[start : start + batch]] for start in range(0, len(order), batch)]
        ratios = []
        for title, us, them in (
            ("packed / padded to 1024", ours.packed, lambda: trainer(hf, several, rounds + 1, LENGTH)),
            ("packed / padded to the longest", ours.packed, lambda: trainer(hf, several, rounds + 1, None)),
            ("unpacked, step for step", lambda: ours.unpacked(fixed[0]), lambda: trainer(hf, fixed, rounds + 1, None)),
        ):
            pair = _in_turn(title, us(), them(), rounds + 1)
            ratios.append(_told(title, *pair))
    print("\n".join(ratios))
    losses = [[step.loss for step in side] for side in pair]
    apart = max(abs(a - b) / b for a, b in zip(*losses, strict=True))
    print(f"losses step for step: {apart:.1e} apart at most, {losses[0][0]:.4f} -> {losses[0][-1]:.4f}")
    if apart > 1e-3:
        raise InputError(f"the two sides do not train the same model: {losses}")


def _in_turn(title: str, ours: Iterator[Step], theirs: Iterator[Step], count: int) -> tuple[list[Step], list[Step]]:
    steps: tuple[list[Step], list[Step]] = ([], [])
    for number in range(count):
        for made, side in zip(steps, (ours, theirs), strict=True):
            made.append(next(side))
        times = " against ".join(f"{made[-1].seconds:.1f} s" for made in steps)
        print(f"{title}, step {number}: {times}", file=sys.stderr, flush=True)
    return steps


def _told(title: str, ours: list[Step], theirs: list[Step]) -> str:
    """The ratio of a pair, after its table; the first step of each side compiles, or warms up."""
    rates = []
    for name, timed in (("ours", ours[1:]), ("Trainer", theirs[1:])):
        seconds = statistics.median(step.seconds for step in timed)
        rates.append(statistics.median(step.tokens / step.seconds for step in timed))
        answers = statistics.median(step.answers / step.seconds for step in timed)
        print(f"{title:<31} {name:<8} {seconds:6.1f} s a step {rates[-1]:7.1f} tokens/s {answers:6.2f} answer tokens/s")
    return f"{title:<31} {rates[0] / rates[1]:.2f}"


class Ours:
    """Our step, as the training loop makes it, on packed rows or on arrays as the Trainer has them."""

    def __init__(self, data_dir: Path, rows: int, remat: Remat):
        self._config = TrainConfig(
            model=ModelConfig(architecture=SMOLLM2, remat=remat),
            data=DataConfig(dir=str(data_dir), name="sample", batch_size=rows, row_length=LENGTH),
            optimizer=OptimizerConfig(warmup_ratio=0.0, schedule="constant"),
            mesh=MeshConfig(1, 1, 1),
        )
        self._rows = PackedRows(data_dir, "sample", LENGTH)
        self._mesh = make_mesh(1, 1, 1)
        self._optimizer = make_optimizer(self._config.optimizer, 1)
        with jax.set_mesh(self._mesh):
            self._abstract = abstract_state(self._config, SMOLLM2, self._optimizer, self._rows, self._mesh)
            self._step = make_step(self._optimizer, 1, self._mesh, self._abstract)

    def _first(self) -> TrainState:
        """The same weights at each call."""
        with jax.set_mesh(self._mesh):
            return first_state(self._config, self._abstract, self._optimizer, self._mesh, None)

    def model(self) -> Llama:
        """The weights that both sides begin with."""
        return self._first().model

    def packed(self) -> Iterator[Step]:
        """Steps over the shuffled rows."""
        return self._steps(batches(self._rows, 0, self._config.data.batch_size))

    def unpacked(self, examples: Sequence[Example]) -> Iterator[Step]:
        """Steps over one conversation a row, padded to the longest."""
        length = max(len(example.tokens) for example in examples)
        slots = max(int(np.sum(example.loss_mask)) for example in examples)
        made = [_row(example, length, slots) for example in examples]
        batch = {name: np.stack([row[name] for row in made]) for name in made[0]}
        return self._steps(iter(lambda: batch, None))

    def _steps(self, data: Iterator[Batch]) -> Iterator[Step]:
        state = self._first()
        for batch in data:
            started = time.perf_counter()
            with jax.set_mesh(self._mesh):
                state, measured = self._step(state, on_mesh(batch, self._mesh))
            loss = float(measured.loss)
            yield Step(time.perf_counter() - started, int(measured.tokens), int(measured.answer_tokens), loss)


def _row(example: Example, length: int, slots: int) -> Batch:
    padding = (0, length - len(example.tokens))
    tokens = np.pad(np.asarray(example.tokens, np.int32), padding)
    is_token = np.pad(np.ones(len(example.tokens), np.int32), padding)
    mask = np.pad(np.asarray(example.loss_mask, np.int32), padding)
    arrays = {"tokens": tokens, "segment_ids": is_token, "positions": np.arange(length, dtype=np.int32) * is_token}
    return arrays | answers_of(tokens, mask, slots)


def trainer(model: Path, several: Sequence[Sequence[Example]], steps: int, length: int | None) -> Iterator[Step]:
    """Steps of transformers' Trainer over these batches, padded to `length` or to the longest of each.

    A thread runs it, and waits after each step until it is asked for the next.
    """
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    done: queue.Queue[Step | BaseException] = queue.Queue()
    turn = threading.Semaphore(0)
    flat = [example for batch in several for example in batch]

    class Turns(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            turn.acquire()
            self.started = time.perf_counter()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            if "loss" not in logs:
                return
            seconds = time.perf_counter() - self.started
            batch = several[state.global_step - 1]
            tokens = sum(len(example.tokens) for example in batch)
            done.put(Step(seconds, tokens, sum(int(np.sum(e.loss_mask)) for e in batch), logs["loss"]))

    class InOrder(Trainer):
        def _get_train_sampler(self, *args: Any) -> Any:
            return torch.utils.data.SequentialSampler(flat)

    def run(directory: str) -> None:
        def collate(batch: list[Example]) -> dict[str, Any]:
            return {name: torch.from_numpy(array) for name, array in _padded(batch, length).items()}

        arguments = TrainingArguments(output_dir=directory, max_steps=steps, **SETTINGS)
        arguments.per_device_train_batch_size = len(several[0])
        try:
            loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
            InOrder(loaded, arguments, train_dataset=flat, data_collator=collate, callbacks=[Turns()]).train()
        except BaseException as error:
            done.put(error)

    with tempfile.TemporaryDirectory() as directory:
        threading.Thread(target=run, args=(directory,), daemon=True).start()
        for _ in range(steps):
            turn.release()
            step = done.get()
            if isinstance(step, BaseException):
                raise step
            yield step


def _padded(batch: Sequence[Example], length: int | None) -> dict[str, np.ndarray]:
    """A batch as the Trainer takes it, padded to `length` or to its longest; -100 is in no loss."""
    width = length or max(len(example.tokens) for example in batch)
    arrays = {name: np.zeros((len(batch), width), np.int64) for name in ("input_ids", "attention_mask")}
    arrays["labels"] = np.full((len(batch), width), -100, np.int64)
    for place, example in enumerate(batch):
        count = len(example.tokens)
        tokens, mask = np.asarray(example.tokens), np.asarray(example.loss_mask, bool)
        arrays["input_ids"][place, :count], arrays["attention_mask"][place, :count] = tokens, 1
        arrays["labels"][place, :count] = np.where(mask, tokens, -100)
    return arrays


def main(arguments: list[str]) -> None:
    """Read the arguments and measure."""
    tyro.cli(train_step, prog="benchmarks/train_step.py", args=arguments)


if __name__ == "__main__":
    use_huge_pages()
    run_command(main)
