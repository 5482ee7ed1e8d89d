"""Token-per-line files of tagged entities (BIO) -> conversations: every type of the data set is asked of each sentence.

python -m data_prep.bio --input train.txt --dataset CoNLL2003 --output conversations.jsonl

The published rule of UniversalNER: the text is the tokens joined by single spaces, the answers hold the entities in
order of occurrence with their repeats, the type MISC is left out, and labels are rewritten to natural words.
"""

import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from data_prep.tagged.schemes import Scheme
from data_prep.tagged.sentences import Sentence, read_sentences
from data_prep.tagged.type_names import TypeNames, is_dropped, read_type_names
from uner_jax.command import progress, run_command
from uner_jax.records import Conversation, InputError, write_rows
from uner_jax.template import conversation_of, passage_turn

Template = Literal["dataset", "zero-shot"]
Questions = Literal["together", "apart"]


@dataclass
class Statistics:
    """What was read, what was made of it, and what was left out."""

    sentences: int = 0
    without_text: int = 0
    miscellaneous: int = 0
    taken: int = 0
    conversations: int = 0
    asked: int = 0
    answered: int = 0
    entities: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        each = ", ".join(f"{name} {count:,}" for name, count in self.entities.items())
        return (
            f"{self.conversations:,} conversations from {self.taken:,} of {self.sentences:,} sentences; "
            f"{self.asked:,} questions ({self.answered:,} with entities, {self.asked - self.answered:,} without); "
            f"{self.entities.total():,} entities: {each}\n"
            f"left out: {self.without_text:,} sentences without text, {self.miscellaneous:,} entities of the type MISC"
        )


class Reader:
    """Reads files into sentences, says on stderr what they look like, and counts the labels of all."""

    def __init__(self, statistics: Statistics, scheme: Scheme | None, token_column: int | None, tag_column: int | None):
        self._statistics = statistics
        self._scheme = scheme
        self._columns = token_column, tag_column
        self.labels: set[str] = set()

    def read(self, path: Path) -> list[Sentence]:
        """The sentences of a file that have text."""
        file = read_sentences(path, self._scheme, *self._columns)
        print(f"{path}: {file.layout}", file=sys.stderr)
        for label in (mention.label for sentence in file.sentences for mention in sentence.mentions):
            self._statistics.miscellaneous += is_dropped(label)
            self.labels.add(label)
        with_text = [sentence for sentence in file.sentences if sentence.text.strip()]
        self._statistics.sentences += len(file.sentences)
        self._statistics.without_text += len(file.sentences) - len(with_text)
        return with_text


class Interviewer:
    """Asks each sentence for every type of the data set, in the order of the types."""

    def __init__(self, dataset: str, types: list[str], names: TypeNames, template: Template, questions: Questions):
        self._dataset = dataset
        self._types = types
        self._names = names
        self._template_name = dataset if template == "dataset" else None
        self._questions = questions

    def conversations(self, number: int, sentence: Sentence, statistics: Statistics) -> Iterator[Conversation]:
        """One conversation about sentence `number` of the data set, or one for each type."""
        spans: dict[str, list[str]] = {name: [] for name in self._types}
        for start, end, label in sentence.mentions:
            if not is_dropped(label):
                spans[self._names.name(label)].append(sentence.text[start:end])
        statistics.taken += 1
        statistics.asked += len(spans)
        statistics.answered += sum(map(bool, spans.values()))
        statistics.entities.update({name: len(found) for name, found in spans.items()})
        if self._questions == "together":
            groups = [(number, list(spans.items()))]
        else:
            groups = [(number * len(spans) + place, [question]) for place, question in enumerate(spans.items())]
        for identity, group in groups:
            statistics.conversations += 1
            first_turn = passage_turn(sentence.text, self._template_name)
            yield conversation_of(f"{self._dataset}_{identity}", first_turn, group)


def bio(
    input: tuple[Path, ...],
    dataset: str,
    output: Path,
    types: Path | None = None,
    limit: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    seed: int = 0,
    template: Template = "dataset",
    questions: Questions = "together",
    scheme: Scheme | None = None,
    token_column: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    tag_column: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
) -> None:
    """Turn token-per-line files with IOB1, IOB2 or IOBES tags into conversations that ask for every type.

    Args:
        input: Files of one data set: a token and its tag in each line, a blank line after each sentence (.gz, .zst).
        dataset: Name of the data set, for the first turn and for the ids.
        output: Conversations in the published form, by the suffix .jsonl or .parquet (.gz, .zst).
        types: Table from label to natural words, {"PER": "person"}, JSON or TOML; its order is that of the questions.
            Without it the table that comes with the program. A label that it lacks becomes its words in lower case.
        limit: Sentences to take at most, drawn uniformly from all files together. Without it all are taken.
        seed: Seed of the draw.
        template: "dataset" names the data set in the first turn (supervised tuning); "zero-shot" does not.
        questions: "together" in one conversation a sentence (training); "apart", a conversation each (evaluation).
        scheme: The tagging scheme, where the files do not show it. Without it it is detected in each file.
        token_column: Column of the token, from 1. Without it it is detected in each file.
        tag_column: Column of the tag, from 1. Without it it is detected in each file: the last or the first one.
    """
    _check_arguments(input, dataset, limit, seed)
    names = read_type_names(types)
    statistics = Statistics()
    reader = Reader(statistics, scheme, token_column, tag_column)
    sentences = list(enumerate(sentence for path in input for sentence in reader.read(path)))
    labels = sorted(label for label in reader.labels if not is_dropped(label))
    if not labels:
        raise InputError(
            f"{', '.join(map(str, input))}: no entity but of the type MISC, so there is nothing to ask for"
        )
    for label in labels:
        source = "" if label in names else " (not in the table of names: --types FILE sets another)"
        print(f"type {label} -> {names.name(label)}{source}", file=sys.stderr)
    if limit is not None and limit < len(sentences):
        sentences = [sentences[place] for place in sorted(random.Random(seed).sample(range(len(sentences)), limit))]
    interviewer = Interviewer(dataset, names.ordered(labels), names, template, questions)
    shown = progress(sentences, "asking", unit="sentences")
    write_rows(output, (row for pair in shown for row in interviewer.conversations(*pair, statistics)))
    print(f"{output}: {statistics}", file=sys.stderr)


def _check_arguments(input: tuple[Path, ...], dataset: str, limit: int | None, seed: int) -> None:
    if not input:
        raise InputError("--input names no file")
    if not dataset or dataset != " ".join(dataset.split()):
        raise InputError(f"--dataset must be words with single spaces between, found {dataset!r}")
    if limit is not None and limit < 1:
        raise InputError(f"--limit must be at least 1, found {limit}")
    if seed < 0:
        raise InputError(f"--seed must be at least 0, found {seed}")


def main(arguments: list[str]) -> None:
    """The command line."""
    tyro.cli(bio, prog="python -m data_prep.bio", args=arguments)


if __name__ == "__main__":
    run_command(main)
