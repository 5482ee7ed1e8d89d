"""Whether a run goes on with what it was begun with, and config.json, which remembers it."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import jax

from uner_jax.model.parameters import flatten
from uner_jax.records import InputError, write_json
from uner_jax.training.checkpoint import DataState
from uner_jax.training.config import TrainConfig
from uner_jax.training.console import say

# these may change between the parts of one run.
FREE = (
    "run_dir", "steps", "epochs", "mesh", "checkpoint", "evaluation", "max_bad_steps", "allow_drift",
    "profile", "wandb", "export",
)  # fmt: skip
# what config.json holds beside the recipe.
BESIDE = ("versions", "drift")

Changes = dict[str, tuple[Any, Any]]


def check_recipe(config: TrainConfig) -> Changes:
    """What of the recipe is not as it was when the run's checkpoints were made, old and new value by name.

    Raises InputError if that is anything, and not allowed.
    """
    before = _recorded(config)
    if not before:
        return {}
    changes = _changes(_flat(before), _flat(dataclasses.asdict(config)))
    if changes and not config.allow_drift:
        raise InputError(
            f"{_path(config)}: this run was begun with another recipe ({_listed(changes)}); "
            "give another run_dir, or accept the change with --allow-drift"
        )
    return changes


def check_data(config: TrainConfig, step: int, before: dict[str, Any], now: DataState) -> Changes:
    """What of the data is not as it was at the checkpoint of `step`; raises InputError as `check_recipe` does."""
    changes = _changes(before, dataclasses.asdict(now))
    if changes and not config.allow_drift:
        raise InputError(
            f"checkpoint {step} of {config.run_dir} was trained on other data ({_listed(changes)}): resuming would "
            "not continue it; give another run_dir, or accept the change with --allow-drift"
        )
    return changes


def record_config(config: TrainConfig, step: int, changes: Changes) -> None:
    """Write config.json: the recipe with all overrides, what runs it, and what has changed after which step."""
    drift = _recorded(config).get("drift", [])
    changed: dict[str, Any] = {name: list(values) for name, values in sorted(changes.items())}
    # a run that ended before its next checkpoint finds the same data changed again.
    known = any(old["after_step"] == step and changed.items() <= old["changed"].items() for old in drift)
    if changes and not known:
        drift = [*drift, {"after_step": step, "changed": changed}]
        say(f"drift      accepted after step {step}: {_listed(changes)}")
    versions = {"jax": jax.__version__, "python": sys.version.split()[0]}
    recipe = dataclasses.asdict(config) | {"versions": versions}
    if jax.process_index() == 0:
        write_json(_path(config), recipe | ({"drift": drift} if drift else {}))


def _path(config: TrainConfig) -> Path:
    return Path(config.run_dir, "config.json")


def _recorded(config: TrainConfig) -> dict[str, Any]:
    path = _path(config)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    return flatten({name: value for name, value in recipe.items() if name not in FREE + BESIDE})


def _changes(old: dict[str, Any], new: dict[str, Any]) -> Changes:
    # of both: a field that is None has no leaf.
    names = sorted(old | new)
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _listed(changes: Changes) -> str:
    return "; ".join(f"{name} {old} -> {new}" for name, (old, new) in changes.items())
