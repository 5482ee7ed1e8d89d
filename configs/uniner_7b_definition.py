"""python train.py configs/uniner_7b_definition.py --model.source MODEL --data.dir DIR --data.name NAME

LLaMA-7B, all weights, on entity types that are described in a sentence: UniNER-7B-definition. All but the data is as in
uniner_7b_type.

Hardware: v5e:4x4, or h100x8 with --gradient-accumulation 8. MODEL is LLaMA-7B (a Hugging Face directory).
Memory: that of uniner_7b_type, whose step it is: 9.9 GiB of each chip of v5e:4x4.
Paper: takes paraphrased types better than UniNER-7B-type does (arXiv 2308.03279).
"""

import dataclasses

from configs import uniner_7b_type
from uner_jax.training.config import TrainConfig


def config() -> TrainConfig:
    """The recipe of uniner_7b_type on other data."""
    parent = uniner_7b_type.config()
    return dataclasses.replace(
        parent,
        run_dir="runs/uniner_7b_definition",
        data=dataclasses.replace(parent.data, name="pile_ner_definition"),
    )
