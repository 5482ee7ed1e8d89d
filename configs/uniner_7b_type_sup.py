"""python train.py configs/uniner_7b_type_sup.py --model.source MODEL --data.dir DIR --data.name NAME

UniNER-7B-type, all weights, tuned further on supervised data sets: UniNER-7B-type-sup. The data set NAME is one build
of data_prep.tfrecords over what data_prep.mixture --limit 10000 takes of them; data_prep.bio --template dataset makes
the conversations of each.

Hardware: v5e:4x4, or h100x8 with --gradient-accumulation 8. MODEL is the run_dir of uniner_7b_type, or the Hugging Face
directory that was made of it.
Memory: that of uniner_7b_type, whose step it is: 9.9 GiB of each chip of v5e:4x4.
Paper: mean F1 84.8 on 20 supervised sets (arXiv 2308.03279).
"""

import dataclasses

from configs import uniner_7b_type
from uner_jax.training.config import TrainConfig


def config() -> TrainConfig:
    """The recipe of uniner_7b_type from where that has ended."""
    parent = uniner_7b_type.config()
    return dataclasses.replace(
        parent,
        run_dir="runs/uniner_7b_type_sup",
        model=dataclasses.replace(parent.model, source="runs/uniner_7b_type"),
        data=dataclasses.replace(parent.data, name="supervised"),
    )
