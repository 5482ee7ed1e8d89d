"""python train.py configs/llama3_8b_type.py --model.source MODEL --data.dir DIR --data.name NAME

Llama 3 8B, all weights, on the entity types of Pile-NER: the recipe of uniner_7b_type with a later model. The data set
is built with its tokenizer.

Hardware: h100x8. MODEL is Meta-Llama-3-8B (a Hugging Face directory).
Memory: 23.0 GiB of each H100 (compiled, not run: uner plan configs/llama3_8b_type.py --topology h100x8).
Paper: did not train it.
"""

import dataclasses

from configs import uniner_7b_type
from uner_jax.model.llamas import LLAMA3_8B
from uner_jax.training.config import TrainConfig


def config() -> TrainConfig:
    """64 rows a step, in microbatches of one row a device on 8 devices."""
    parent = uniner_7b_type.config()
    return dataclasses.replace(
        parent,
        run_dir="runs/llama3_8b_type",
        gradient_accumulation=8,
        model=dataclasses.replace(parent.model, source="models/llama3-8b", architecture=LLAMA3_8B),
        data=dataclasses.replace(parent.data, name="pile_ner_type_llama3"),
    )
