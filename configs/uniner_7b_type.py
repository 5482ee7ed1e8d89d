"""python train.py configs/uniner_7b_type.py --model.source MODEL --data.dir DIR --data.name NAME

LLaMA-7B, all weights, on the entity types of Pile-NER: UniNER-7B-type. The paper's optimizer and epochs; its 256
conversations of at most 1,024 tokens a step are about 64 full rows of 2,048.

Hardware: v5e:4x4, or h100x8. MODEL is LLaMA-7B (a Hugging Face directory). If `uner plan` has to do
without it, it takes the sizes from here.
Memory: 9.9 GiB of each chip of v5e:4x4, 18.2 of each H100 with --gradient-accumulation 8 (compiled, not run: uner plan
configs/uniner_7b_type.py --topology v5e:4x4).
Paper: zero-shot F1 53.4 on CrossNER and MIT, 41.7 over 43 data sets (arXiv 2308.03279).
"""

from uner_jax.model.llamas import LLAMA_7B
from uner_jax.training.config import CheckpointConfig, DataConfig, ModelConfig, OptimizerConfig, TrainConfig


def config() -> TrainConfig:
    """Three epochs of 64 rows a step, in microbatches of one row a chip on 16 chips."""
    return TrainConfig(
        run_dir="runs/uniner_7b_type",
        epochs=3.0,
        dtype="bfloat16",
        gradient_accumulation=4,
        model=ModelConfig(source="models/llama-7b", architecture=LLAMA_7B, remat="full", strict_kernels=True),
        data=DataConfig(dir="data", name="pile_ner_type", batch_size=64, row_length=2048),
        optimizer=OptimizerConfig(learning_rate=2e-5, warmup_ratio=0.04),
        checkpoint=CheckpointConfig(every=100, keep=2),
    )
