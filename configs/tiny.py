"""python train.py configs/tiny.py --data.dir DIR --data.name NAME

A random two-layer model over the data set's own vocabulary, on anything, in seconds: to try the
machinery, not to extract. Loss falls below that of uniform guessing within 20 steps.
"""

from uner_jax.training.config import CheckpointConfig, DataConfig, OptimizerConfig, TrainConfig


def config() -> TrainConfig:
    """Two layers of width 64, 20 steps of 8 rows of 1024 tokens."""
    return TrainConfig(
        run_dir="runs/tiny",
        steps=20,
        data=DataConfig(batch_size=8, row_length=1024),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_ratio=0.1),
        checkpoint=CheckpointConfig(every=10),
    )
