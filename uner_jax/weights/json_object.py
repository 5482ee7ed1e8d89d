"""A JSON object in a file that may come from anywhere."""

import json
from pathlib import Path
from typing import Any

from uner_jax.records import InputError

# a config has a few thousand bytes, the index of a 70B model 60,000.
LONGEST = 20 * 2**20


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; InputError if the file is missing, absurdly long, or holds anything else."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.stat().st_size > LONGEST:
        raise InputError(f"{path}: {path.stat().st_size:,} bytes are no config; get the file again")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # ValueError: also bytes that are no text, numbers too long
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value
