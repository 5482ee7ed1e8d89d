"""What a run measures of its model on data that it does not learn from: a loss, and an F1 of written answers."""

from collections.abc import Callable
from pathlib import Path

import jax
from jax.sharding import Mesh

from uner_jax.data.batches import PackedRows, batches_once
from uner_jax.data.builder import dataset_tokenizer
from uner_jax.model.llama import Llama
from uner_jax.records import InputError
from uner_jax.tokenizer import Tokenizer
from uner_jax.training.batch import on_mesh
from uner_jax.training.config import TrainConfig
from uner_jax.training.loss import answer_loss_sum

# The F1 in 0..1 of the answers that a model writes: train.py passes one in.
Score = Callable[[Llama, Tokenizer], float]


class Validation:
    """Measures of one run; `steps` is its last step.

    Raises InputError if the data set has another tokenizer, or answers are to be written by several processes.
    """

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer, mesh: Mesh, steps: int, score: Score | None):
        self._config, self._tokenizer, self._mesh = config, tokenizer, mesh
        self._steps, self._score = steps, score
        self._rows = _rows(config, tokenizer) if config.evaluation.data else None
        self._loss_sum = jax.jit(answer_loss_sum)
        if score and jax.process_count() > 1:
            raise InputError(
                "evaluation.questions: answers are written in runs of one process; leave it out, and ask a checkpoint: "
                "uner evaluate"
            )

    def measure(self, step: int, model: Llama, saving: bool) -> dict[str, float]:
        """What is due after this step, by its name in the metrics: the loss if it is saved, the F1 every n steps."""
        measured = {}
        if self._rows and saving:
            measured["validation_loss"] = self._loss(model, self._rows)
        every = self._config.evaluation.every
        if self._score and (step == self._steps or (every and step % every == 0)):
            measured["f1"] = self._score(model, self._tokenizer)
        return measured

    def _loss(self, model: Llama, rows: PackedRows) -> float:
        """The mean in nats of all answer tokens of the data set."""
        # as many rows as a microbatch has: they fit.
        size = self._config.data.batch_size // self._config.gradient_accumulation
        sums = [
            self._loss_sum(model, on_mesh(batch, self._mesh))
            for batch in batches_once(rows, size, jax.process_index(), jax.process_count())
        ]
        return sum(map(float, sums)) / rows.answers


def _rows(config: TrainConfig, tokenizer: Tokenizer) -> PackedRows:
    directory, name = Path(config.data.dir), config.evaluation.data
    if dataset_tokenizer(directory, name).fingerprint != tokenizer.fingerprint:
        raise InputError(
            f"evaluation.data: the data set {name} in {directory} has another tokenizer than {config.data.name}; build "
            "it with the same --tokenizer"
        )
    return PackedRows(directory, name, config.data.row_length)
