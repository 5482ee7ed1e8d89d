"""python train.py configs/smollm2_demo.py

SmolLM2-135M on the sample that ships with the project: the training step of `make demo`, on two
CPU cores in about five minutes. It learns the form of the answers and the frequent types.
"""

from uner_jax.training.config import CheckpointConfig, DataConfig, ModelConfig, OptimizerConfig, TrainConfig


def config() -> TrainConfig:
    """One epoch in rows of 256 tokens, eight a step."""
    return TrainConfig(
        run_dir="demo/run",
        epochs=1.0,
        dtype="bfloat16",
        model=ModelConfig(source="demo/base"),
        data=DataConfig(dir="demo/data", name="sample", batch_size=8, row_length=256),
        optimizer=OptimizerConfig(learning_rate=2e-4, warmup_ratio=0.1),
        checkpoint=CheckpointConfig(every=10, keep=1),
    )
