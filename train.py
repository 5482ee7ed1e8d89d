"""Train a model: `python train.py CONFIG.py [--field.name value ...]`.

CONFIG.py has a function `config()` that returns a TrainConfig (see configs/). Every field can be
overridden; `python train.py CONFIG.py --help` lists them. Run the same command again and it goes on
from the newest checkpoint of its run_dir that is whole. SIGTERM saves one and ends the run with 0.

On several hosts run the same command on each, with one run_dir that all of them reach. TPU hosts and the
tasks of a SLURM step find each other; elsewhere JAX_COORDINATOR_ADDRESS (HOST:PORT of the first),
JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0) say who they are.
"""

import runpy
import sys
from pathlib import Path

import tyro

from uner_jax.command import run_command, use_huge_pages
from uner_jax.mesh import start_distributed
from uner_jax.records import InputError
from uner_jax.training.config import TrainConfig
from uner_jax.training.loop import prompt_noun, train
from uner_jax.training.validation import Score


def main(arguments: list[str]) -> None:
    """Read the recipe and the overrides, and run it."""
    if not arguments or arguments[0].startswith("-"):
        if not {"-h", "--help"}.isdisjoint(arguments):
            read_config(TrainConfig(), "train.py CONFIG.py", ["--help"])
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    start_distributed()
    config = read_config(load_recipe(arguments[0]), f"train.py {arguments[0]}", arguments[1:])
    train(config, _score(config))


def read_config(recipe: TrainConfig, program: str, arguments: list[str]) -> TrainConfig:
    """The recipe with the fields that the arguments name; leaves with 2 if they are wrong."""
    flags = (tyro.conf.AvoidSubcommands,)
    return tyro.cli(TrainConfig, prog=program, description=__doc__, default=recipe, args=arguments, config=flags)


def _score(config: TrainConfig) -> Score | None:
    """The F1 that the recipe asks for."""
    asked = config.evaluation
    if not asked.questions:
        return None
    from uner_jax.evaluation.run import sampled_f1

    return sampled_f1(Path(asked.questions), asked.sample, asked.max_new_tokens, prompt_noun(config))


def load_recipe(path: str) -> TrainConfig:
    """The TrainConfig that the file's `config()` returns; InputError if there is no such file or function."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such recipe; see configs/")
    recipe = runpy.run_path(path).get("config")
    config = recipe() if callable(recipe) else None
    if not isinstance(config, TrainConfig):
        raise InputError(f"{path}: must define a function config() that returns a TrainConfig")
    return config


if __name__ == "__main__":
    use_huge_pages()
    run_command(main)
