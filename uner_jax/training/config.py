"""The training recipe: one frozen dataclass, every field of which can be given on the command line."""

import dataclasses
import re
from typing import Literal

from uner_jax.model.adapters import AdapterConfig
from uner_jax.model.config import LlamaConfig
from uner_jax.model.llama import Remat
from uner_jax.records import InputError

TINY = LlamaConfig(
    vocab_size=0,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
)

ALL_WEIGHTS = AdapterConfig()


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What is trained."""

    source: str = ""
    """Weights to start from: HF directory, GGUF file or checkpoint; empty: random weights of `architecture`."""
    architecture: LlamaConfig = TINY
    """Sizes of a random model, used where `source` is empty (and by `uner plan` where it is not here); vocab_size 0
    takes that of the data set's tokenizer."""
    remat: Remat = "full"
    """What a block keeps for its backward pass: "none" all, "full" its input only (least memory, a third more work),
    "dots" the results of its matrix products, "qkv" queries, keys and values, "offload" its input, on the host."""
    strict_kernels: bool = False
    """Fail where the platform's fused attention cannot be used, instead of using the reference."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which TFRecords, and how they become batches."""

    dir: str = "data"
    """Directory of data sets (--data-dir of data_prep.tfrecords)."""
    name: str = "conversations"
    """Name of the data set (--name of data_prep.tfrecords)."""
    batch_size: int = 8
    """Packed rows a step, over all hosts and microbatches."""
    row_length: int = 2048
    """Tokens a row, into which whole conversations are packed."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with betas 0.9 and 0.999."""

    learning_rate: float = 2e-5
    """Peak learning rate."""
    warmup_ratio: float = 0.04
    """Share of the steps in which the learning rate rises linearly from 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up: to 0 along a cosine, to 0 in a line, not at all."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of AdamW's first moment; bfloat16 saves two bytes a parameter."""
    clip_norm: float = 1.0
    """Gradients of a larger global norm are scaled down to it; 0 does not clip."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh; their product is the number of devices, -1 takes what is left."""

    data: int = 1
    """Copies of the model, each with its own rows."""
    fsdp: int = -1
    """Devices over which parameters and optimizer state are cut, each with its own rows."""
    tensor: int = 1
    """Devices over which heads, MLP and vocabulary are cut."""


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written, and how many are kept."""

    every: int = 100
    """Steps between checkpoints; the last step has one too."""
    keep: int = 2
    """How many of the newest are kept, beside the one with the lowest validation loss."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured during the run, on data that it does not learn from."""

    data: str = ""
    """Name of a data set in data.dir whose loss is measured at every checkpoint; empty: none."""
    questions: str = ""
    """File of conversations (data_prep.conversations or data_prep.bio) that are asked, for an F1; empty: none."""
    sample: int = 100
    """Questions that are drawn from that file, the same ones each time."""
    every: int = 0
    """Steps between F1s; 0 asks after the last step only."""
    max_new_tokens: int = 128
    """Tokens of an answer, at most."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    run_dir: str = "runs/run"
    """Directory of the run: config.json, metrics.jsonl, TensorBoard events, checkpoints/STEP."""
    seed: int = 0
    """Seed of random weights and of the order of rows."""
    steps: int | None = None
    """Optimizer steps; if not given, as many as `epochs` take."""
    epochs: float = 3.0
    """Times that each row is seen, where `steps` is not given."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of activations and matrix products; parameters and optimizer state are float32."""
    gradient_accumulation: int = 1
    """Microbatches that a step's rows are split into, to save memory; the gradients are those of the whole step."""
    max_bad_steps: int = 5
    """Steps in a row whose loss or gradient is not finite, after which the run stops; such steps change nothing."""
    allow_drift: bool = False
    """Go on with a run though its recipe, data set or tokenizer has changed, and note that in config.json."""
    model: ModelConfig = ModelConfig()
    adapter: AdapterConfig = ALL_WEIGHTS
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    profile: str = ""
    """Steps FIRST:LAST, as 10:13, that are traced into run_dir/profile, for TensorBoard or XProf."""
    wandb: str = ""
    """Project of Weights & Biases that the metrics go to as well (needs the extra wandb)."""
    export: str = ""
    """Hugging Face directory that the last checkpoint is converted to; empty: none."""

    def __post_init__(self):
        at_least = {
            "seed": (self.seed, 0),
            "steps": (self.steps if self.steps is not None else 1, 1),
            "gradient_accumulation": (self.gradient_accumulation, 1),
            "max_bad_steps": (self.max_bad_steps, 1),
            "data.batch_size": (self.data.batch_size, 1),
            "data.row_length": (self.data.row_length, 2),
            "checkpoint.every": (self.checkpoint.every, 1),
            "checkpoint.keep": (self.checkpoint.keep, 1),
            "evaluation.sample": (self.evaluation.sample, 1),
            "evaluation.every": (self.evaluation.every, 0),
            "evaluation.max_new_tokens": (self.evaluation.max_new_tokens, 1),
            "optimizer.learning_rate": (self.optimizer.learning_rate, 0),
            "optimizer.weight_decay": (self.optimizer.weight_decay, 0),
            "optimizer.clip_norm": (self.optimizer.clip_norm, 0),
        }
        for name, (value, least) in at_least.items():
            if not value >= least:  # nan is not either
                raise InputError(f"{name} must be at least {least}, found {value}")
        if self.steps is None and not self.epochs > 0:
            raise InputError(f"epochs must be greater than 0, found {self.epochs}")
        if not 0 <= self.optimizer.warmup_ratio <= 1:
            raise InputError(f"optimizer.warmup_ratio must be in 0..1, found {self.optimizer.warmup_ratio}")
        if self.profile and not self.profiled_steps:
            raise InputError(f"profile must be the first and the last step to trace, as 10:13, found {self.profile!r}")

    @property
    def profiled_steps(self) -> range:
        """The steps that are traced: none without `profile`."""
        match = re.fullmatch(r"(\d+):(\d+)", self.profile)
        return range(int(match[1]), int(match[2]) + 1) if match else range(0)
