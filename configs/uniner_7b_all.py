"""python train.py configs/uniner_7b_all.py --model.source MODEL --data.dir DIR --data.name NAME

LLaMA-7B, all weights, on Pile-NER and many supervised data sets together: UniNER-7B-all. The data set NAME is one build
of data_prep.tfrecords over the conversations of Pile-NER and of data_prep.bio --template dataset for each supervised
set, at most 10,000 sentences of each (--limit).

Hardware: v5e:4x4, or h100x8 with --gradient-accumulation 8. MODEL is LLaMA-7B (a Hugging Face directory).
Memory: that of uniner_7b_type, whose step it is: 9.9 GiB of each chip of v5e:4x4.
Paper: F1 61.8 on CrossNER and MIT with 40 supervised sets (arXiv 2308.03279).
"""

import dataclasses

from configs import uniner_7b_type
from uner_jax.training.config import TrainConfig


def config() -> TrainConfig:
    """The recipe of uniner_7b_type on more data."""
    parent = uniner_7b_type.config()
    return dataclasses.replace(
        parent, run_dir="runs/uniner_7b_all", data=dataclasses.replace(parent.data, name="pile_ner_and_supervised")
    )
