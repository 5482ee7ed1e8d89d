"""Labels in the letters that a form allows, no two alike."""

import re
from collections.abc import Iterable


def names(labels: Iterable[str], forbidden: re.Pattern[str]) -> dict[str, str]:
    """A name for each label: what matches `forbidden` is an underscore in it, and a number tells equals apart."""
    given: dict[str, str] = {}
    # a label that may stay as it is has the first right to its name.
    for label in sorted(labels, key=lambda label: (bool(forbidden.search(label)), label)):
        plain = forbidden.sub("_", label)
        name, number = plain, 2
        while name in given.values():
            name, number = f"{plain}_{number}", number + 1
        given[label] = name
    return given
