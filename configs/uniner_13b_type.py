"""python train.py configs/uniner_13b_type.py --model.source MODEL --data.dir DIR --data.name NAME

LLaMA-13B, all weights, on the entity types of Pile-NER: UniNER-13B-type. Everything but the model and its slice is as
in uniner_7b_type.

Hardware: h100x8, or v5e:8x8 with --gradient-accumulation 1. MODEL is LLaMA-13B (a Hugging Face directory).
Memory: 34.1 GiB of each H100 (compiled, not run: uner plan configs/uniner_13b_type.py --topology h100x8).
Paper: zero-shot F1 55.6 on CrossNER and MIT, 43.4 over 43 data sets (arXiv 2308.03279).
"""

import dataclasses

from configs import uniner_7b_type
from uner_jax.model.llamas import LLAMA_13B
from uner_jax.training.config import TrainConfig


def config() -> TrainConfig:
    """64 rows a step, in microbatches of one row a device on 8 devices."""
    parent = uniner_7b_type.config()
    return dataclasses.replace(
        parent,
        run_dir="runs/uniner_13b_type",
        gradient_accumulation=8,
        model=dataclasses.replace(parent.model, source="models/llama-13b", architecture=LLAMA_13B),
    )
