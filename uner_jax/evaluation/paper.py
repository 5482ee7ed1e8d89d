"""What papers give for a data set: numbers to stand beside ours, and not measured here."""

import re
import tomllib
from importlib.resources import files

_NOT_IN_A_NAME = re.compile(r"[\W_]+")


def paper_scores(dataset: str) -> dict[str, dict[str, float | str]]:
    """For each model the published F1, in 0..1, and its source; none for a data set that is not known by its name.

    Neither case nor punctuation counts in the name: "crossner_ai" is "CrossNER_AI".
    """
    table = tomllib.loads(files("uner_jax.evaluation").joinpath("paper.toml").read_text(encoding="utf-8"))
    known = {_plain(name): scores for name, scores in table["scores"].items()}
    found = known.get(_plain(dataset), {})
    return {model: {"f1": f1 / 100, "source": table["sources"][model]} for model, f1 in found.items()}


def _plain(name: str) -> str:
    return _NOT_IN_A_NAME.sub("", name).casefold()
