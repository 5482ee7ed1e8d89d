"""Conversations of several data sets -> one file, with limits and weights, and a report of where the sets disagree.

python -m data_prep.mixture --conversations conll.jsonl bc5cdr.jsonl --limit 10000 --output mixed.jsonl --report report
"""

import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from data_prep.mixing.conflicts import Conflicts
from data_prep.mixing.draw import ConversationSet, numbered, parse_sets
from data_prep.mixing.report import write_report
from data_prep.questions.labelled_passages import digest, parse_record
from uner_jax.command import progress, run_command
from uner_jax.records import InputError, write_rows
from uner_jax.template import passage_turn


class Mixture:
    """The sets, read twice: once to count and to see which passages they share, once to take."""

    def __init__(self, sets: Sequence[ConversationSet], seed: int):
        self._sets = sets
        self._seed = seed
        self._keys = {one.name: array("Q", self._digests(one)) for one in sets}
        seen = Counter(key for keys in self._keys.values() for key in set(keys))
        self.conflicts = Conflicts({key for key, count in seen.items() if count > 1})
        self.sets: list[dict[str, Any]] = []

    def _digests(self, one: ConversationSet) -> Iterator[int]:
        for where, row in progress(one.rows(), f"reading {one.path}", unit="conversations"):
            yield digest(parse_record(row, where).text)

    def rows(self) -> Iterator[dict[str, Any]]:
        """What is taken, set after set, each in the order of its file; counts it."""
        for one in self._sets:
            taken = one.taken(len(self._keys[one.name]), self._seed)
            written = named = 0
            shown = progress(one.rows(), f"taking {one.name}", len(self._keys[one.name]), "conversations")
            for place, (where, row) in enumerate(shown):
                if place not in taken:
                    continue
                passage = parse_record(row, where)
                self.conflicts.add(one.name, passage)
                named += passage.first_turn != passage_turn(passage.text)
                for time in range(taken[place]):
                    yield numbered(row, time)
                written += taken[place]
            self.sets.append(
                {
                    "set": one.name,
                    "conversations": len(self._keys[one.name]),
                    "taken": len(taken),
                    "weight": one.weight,
                    "written": written,
                    "named_in_prompt": named == len(taken) > 0,
                }
            )


def mixture(
    conversations: tuple[str, ...],
    output: Path,
    limit: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    weights: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=WEIGHT")] = (),
    report: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    seed: int = 0,
) -> None:
    """Mix the conversations of several data sets, and say where the sets disagree about types.

    Sets follow each other in the output: training shuffles.

    Args:
        conversations: Files of conversations (data_prep.bio, data_prep.conversations, published), each a PATH or
            NAME=PATH; the name is that of the set.
        output: Conversations in the published form, by the suffix .jsonl or .parquet (.gz, .zst).
        limit: Conversations to take of each set at most, drawn uniformly. The paper takes 10000.
        weights: How often the conversations of a set are taken: 2 takes each twice, under ids of its own, 0.5 every
            second one, drawn uniformly. 1 without it.
        report: Directory for a page (index.html) and tables.json: what was taken, types of one name, mentions that are
            of different types, and passages with opposite answers.
        seed: Seed of the draw; what is drawn of a set does not depend on the others.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit must be at least 1, found {limit}")
    sets = parse_sets(conversations, limit, weights)
    if any(one.path.resolve() == output.resolve() for one in sets):
        raise InputError(f"--output {output} would write over one of --conversations; give another name")
    mixed = Mixture(sets, seed)
    write_rows(output, mixed.rows())
    for row in mixed.sets:
        print(
            f"{row['set']}: {row['written']:,} of {row['conversations']:,} conversations (weight {row['weight']:g})",
            file=sys.stderr,
        )
    tables = {"sets": mixed.sets, **mixed.conflicts.tables()}
    _say_conflicts(tables)
    if report:
        print(f"{write_report(report, output.name, tables)}: tables", file=sys.stderr)
    print(f"{output}: {sum(row['written'] for row in mixed.sets):,} conversations", file=sys.stderr)


def _say_conflicts(tables: dict[str, Any]) -> None:
    counts = tables["counts"]
    print(
        f"{counts['same_name']:,} types stand in several sets; {counts['conflicts']:,} pairs of types are in conflict; "
        f"{counts['opposite_answers']:,} answers are opposite on the same passage",
        file=sys.stderr,
    )
    unnamed = any(row["taken"] and not row["named_in_prompt"] for row in tables["sets"])
    if unnamed and (counts["conflicts"] or counts["opposite_answers"]):
        print(
            "not all prompts name their data set (data_prep.bio --template dataset), so a model learns both",
            file=sys.stderr,
        )


def main(arguments: list[str]) -> None:
    """The command line."""
    tyro.cli(mixture, prog="python -m data_prep.mixture", args=arguments)


if __name__ == "__main__":
    run_command(main)
