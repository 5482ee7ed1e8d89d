"""python train.py configs/llama3_8b_lora.py --model.source MODEL --data.dir DIR --data.name NAME

Llama 3 8B with LoRA of rank 16 on every linear layer, on the entity types of Pile-NER; the base stays as it is, in
bfloat16. `uner convert to-hf RUN_DIR DST --adapter keep` gives PEFT's form, without it the merged model.

Hardware: h100x1. MODEL is Meta-Llama-3-8B (a Hugging Face directory).
Memory: 19.4 GiB of the GPU (compiled, not run: uner plan configs/llama3_8b_lora.py --topology h100x1).
Paper: did not train it; its released script has LoRA of rank 8.
"""

import dataclasses

from configs import llama3_8b_type
from uner_jax.model.adapters import AdapterConfig
from uner_jax.training.config import TrainConfig


def config() -> TrainConfig:
    """64 rows a step, in microbatches of one row; the learning rate is that of LoRA, ten times that of all weights."""
    parent = llama3_8b_type.config()
    return dataclasses.replace(
        parent,
        run_dir="runs/llama3_8b_lora",
        gradient_accumulation=64,
        adapter=AdapterConfig(rank=16, alpha=32.0, dropout=0.05, base="bfloat16"),
        optimizer=dataclasses.replace(parent.optimizer, learning_rate=2e-4),
    )
