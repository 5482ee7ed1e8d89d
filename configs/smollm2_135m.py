"""python train.py configs/smollm2_135m.py --model.source MODEL --data.dir DIR --data.name NAME

SmolLM2-135M, all weights, on one small machine: two CPU cores and 4 GB, or any accelerator. Meant
for data sets of about a thousand passages. Products in bfloat16, which CPUs with AMX or AVX512-BF16
do at two to four times the rate of float32.
"""

from uner_jax.training.config import CheckpointConfig, DataConfig, ModelConfig, OptimizerConfig, TrainConfig


def config() -> TrainConfig:
    """One epoch in rows of 1,024 tokens, two a step."""
    return TrainConfig(
        run_dir="runs/smollm2_135m",
        epochs=1.0,
        dtype="bfloat16",
        model=ModelConfig(source="models/smollm2"),
        data=DataConfig(dir="data", name="conversations", batch_size=2, row_length=1024),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_ratio=0.05),
        checkpoint=CheckpointConfig(every=50, keep=1),
    )
