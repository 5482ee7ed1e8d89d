"""python train.py configs/llama2_7b_qlora_single_gpu.py --model.source MODEL --data.dir DIR --data.name NAME

Llama 2 7B with QLoRA on one GPU: adapters of rank 16 on every linear layer, whose frozen kernels have 4 bits (nf4).

Hardware: h100x1, or any GPU with the memory below; fused attention needs one of compute capability 8.0 or later. MODEL
is Llama-2-7b-hf (a Hugging Face directory).
Memory: 6.3 GiB of the GPU (compiled, not run: uner plan configs/llama2_7b_qlora_single_gpu.py --topology h100x1).
Paper: did not train it; QLoRA was about 2 points of F1 below all weights.
"""

from uner_jax.model.adapters import AdapterConfig
from uner_jax.model.llamas import LLAMA2_7B
from uner_jax.training.config import CheckpointConfig, DataConfig, ModelConfig, OptimizerConfig, TrainConfig


def config() -> TrainConfig:
    """Three epochs of 16 rows a step, in microbatches of one row."""
    return TrainConfig(
        run_dir="runs/llama2_7b_qlora",
        epochs=3.0,
        dtype="bfloat16",
        gradient_accumulation=16,
        model=ModelConfig(source="models/llama2-7b", architecture=LLAMA2_7B, remat="full"),
        adapter=AdapterConfig(rank=16, alpha=32.0, dropout=0.05, base="nf4"),
        data=DataConfig(dir="data", name="pile_ner_type", batch_size=16, row_length=2048),
        optimizer=OptimizerConfig(learning_rate=2e-4, warmup_ratio=0.04),
        checkpoint=CheckpointConfig(every=100, keep=2),
    )
