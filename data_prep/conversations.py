"""Labelled passages -> conversations: a question for each type of a passage, and for types that it has not.

python -m data_prep.conversations --labels labels.jsonl --output conversations.jsonl
"""

import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from data_prep.questions.label_file import LabelFile
from data_prep.questions.labelled_passages import LabelledPassage, Variant, digest
from data_prep.questions.lengths import Measure, in_tokens, in_words
from data_prep.questions.negatives import Negatives, NegativeSampler
from data_prep.questions.statistics import Statistics
from uner_jax.command import run_command
from uner_jax.records import Conversation, InputError, atomic_path, write_rows
from uner_jax.template import conversation_of

NEGATIVES_PER_PASSAGE = 5


@dataclass
class Split:
    """Which passages are held out: by a hash of their text, so that a text is never on both sides.

    A passage stays on its side whatever else is in the file.
    """

    fraction: float
    seed: int

    def holds_out(self, passage: LabelledPassage) -> bool:
        """Whether the passage is for validation."""
        return digest(f"{self.seed} {passage.text}") < self.fraction * 2**64


@dataclass
class Survey:
    """What must be known of a whole file before the first negative is drawn.

    `mentions` counts the spans of each type in the passages for training: the validation set is drawn as the
    training set is, and leaves no trace in it. `present` has the types of passages that stand in several
    records: what one record finds in a text is no negative of another.
    """

    mentions: Counter[str] = field(default_factory=Counter)
    present: dict[int, set[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, labels: LabelFile, split: Split) -> "Survey":
        """Read the file once."""
        survey = cls()
        for passage in labels.passages("counting types"):
            if passage.key in labels.repeated:
                survey.present.setdefault(passage.key, set()).update(passage.spans)
            if not split.holds_out(passage):
                survey.mentions.update({name: len(spans) for name, spans in passage.positives.items()})
        return survey


def make_conversation(
    passage: LabelledPassage, present: set[str], sampler: NegativeSampler, statistics: Statistics
) -> Conversation | None:
    """A conversation of the passage's types and of others that are not `present`, the questions in random order.

    None if there is nothing to ask. Both are counted.
    """
    random = sampler.generator(passage.id)
    positives = passage.positives
    negatives = sampler.draw(present | passage.spans.keys(), len(positives), random)
    questions = [*positives.items(), *((name, []) for name in negatives)]
    statistics.add_passage(passage, has_question=bool(questions))
    if not questions:
        return None
    statistics.add_conversation(passage, negatives)
    shuffled = [questions[place] for place in random.permutation(len(questions))]
    return conversation_of(passage.id, passage.first_turn, shuffled)


@dataclass
class Maker:
    """Makes the conversations of one side of the split, and counts them."""

    labels: LabelFile
    split: Split
    survey: Survey
    sampler: NegativeSampler
    measure: Measure | None

    def make(self, held_out: bool, statistics: Statistics, what: str) -> Iterator[Conversation]:
        """A conversation for each passage on that side that has a question."""
        for passage in self.labels.passages(what):
            if self.split.holds_out(passage) != held_out:
                continue
            present = self.survey.present.get(passage.key, set())
            conversation = make_conversation(passage, present, self.sampler, statistics)
            if conversation is None:
                continue
            if self.measure is not None:
                statistics.add_lengths(*self.measure(passage.text, conversation))
            yield conversation


def conversations(
    labels: Path,
    output: Path,
    negatives: Negatives = "frequency",
    negatives_per_passage: Annotated[int | None, tyro.conf.arg(metavar="N")] = None,
    negatives_ratio: Annotated[float | None, tyro.conf.arg(metavar="R")] = None,
    variant: Variant | None = None,
    validation_fraction: Annotated[float, tyro.conf.arg(metavar="F")] = 0.0,
    report: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None,
    tokenizer: Annotated[str | None, tyro.conf.arg(metavar="T")] = None,
    seed: int = 0,
) -> None:
    """Turn labelled passages into conversations, with questions about types that a passage does not have.

    A type that the passage has under another case, number or spelling of spaces is never such a question.

    Args:
        labels: Label records (id, text, entities of text and type) or conversations of the published form, as a
            JSON array, JSON lines or Parquet. Published records of one passage become one conversation, and the
            negatives among them are drawn anew.
        output: Conversations in the published form, by the suffix .jsonl or .parquet (.gz, .zst).
        negatives: How types that are not in the passage are drawn: by their frequency in the data, uniformly, or none.
        negatives_per_passage: Questions without an answer that each passage gets; 5 unless --negatives-ratio is given.
        negatives_ratio: Questions without an answer for each of the passage's own types, in place of a number; a
            fraction is drawn: 0.5 gives a passage with 3 types 1 or 2.
        variant: What the types are where the records do not say (teacher.variant): names, which are put into lower
            case, or definitions, which keep theirs and lose the period at their end. Names unless given.
        validation_fraction: Part of the passages, 0 to 1, that goes to OUTPUT.validation.SUFFIX instead; by the
            text of the passage and the seed. Frequencies are counted without it.
        report: Directory for tables and plots of the data set, and a page of them all (index.html).
        tokenizer: Lengths in the report are in its tokens, else in words: an HF directory, a SentencePiece .model,
            a GGUF file or a checkpoint.
        seed: Seed of the draw, of the order of the questions and of the validation set.
    """
    _check_amounts(negatives_per_passage, negatives_ratio)
    _check_options(seed, validation_fraction, report, tokenizer)
    held_out = validation_path(output)
    _check_places(labels, output, held_out, report)
    measure = _measure(tokenizer) if report else None
    source, split = LabelFile(labels, variant), Split(validation_fraction, seed)
    survey = Survey.of(source, split)
    per_passage = NEGATIVES_PER_PASSAGE if negatives_per_passage is None else negatives_per_passage
    amount = {"per_passage": per_passage} if negatives_ratio is None else {"ratio": negatives_ratio}
    sampler = NegativeSampler(survey.mentions, negatives, seed, **amount)
    maker = Maker(source, split, survey, sampler, measure)
    training, validation = Statistics(), Statistics()
    if validation_fraction:
        # one inside the other: a run that fails leaves both as they were.
        with atomic_path(held_out) as temporary:
            write_rows(temporary, maker.make(True, validation, f"writing {held_out}"))
            write_rows(output, maker.make(False, training, f"writing {output}"))
    else:
        write_rows(output, maker.make(False, training, f"writing {output}"))
    print(f"{labels}: {source.statistics}", file=sys.stderr)
    print(f"{output}: {training}", file=sys.stderr)
    if validation_fraction:
        print(f"{held_out}: {validation}", file=sys.stderr)
    elif held_out.exists():
        print(f"{held_out}: is of an earlier run; its passages may stand in {output} too", file=sys.stderr)
    if report:
        _report(report, output.name, source, training, validation, tokenizer)


def validation_path(output: Path) -> Path:
    """Where the held-out conversations stand: `c.validation.jsonl.gz` for `c.jsonl.gz`."""
    compressed = output.suffix in (".gz", ".zst")
    ending = "".join(output.suffixes[-2:]) if compressed else output.suffix
    return output.with_name(f"{output.name.removesuffix(ending)}.validation{ending}")


def _check_amounts(per_passage: int | None, ratio: float | None) -> None:
    if per_passage is not None and ratio is not None:
        raise InputError("--negatives-per-passage and --negatives-ratio exclude each other: give one of them")
    if per_passage is not None and per_passage < 0:
        raise InputError(f"--negatives-per-passage must be at least 0, found {per_passage}")
    if ratio is not None and not (math.isfinite(ratio) and ratio >= 0):
        raise InputError(f"--negatives-ratio must be a number of at least 0, found {ratio}")


def _check_options(seed: int, fraction: float, report: Path | None, tokenizer: str | None) -> None:
    if seed < 0:
        raise InputError(f"--seed must be at least 0, found {seed}")
    if not 0 <= fraction < 1:
        raise InputError(f"--validation-fraction must be at least 0 and less than 1, found {fraction}")
    if tokenizer is not None and report is None:
        raise InputError("--tokenizer is for the lengths in the report: give --report DIR too")


def _check_places(labels: Path, output: Path, held_out: Path, report: Path | None) -> None:
    for path in (output, held_out):
        if path.resolve() == labels.resolve():
            raise InputError(f"--output {output} would write over --labels {labels}; give another name")
    if report is not None and report.exists() and not report.is_dir():
        raise InputError(f"--report {report}: is a file; give a directory")


def _measure(tokenizer: str | None) -> Measure:
    if tokenizer is None:
        return in_words
    # here, since it takes seconds to import and most runs need no tokenizer.
    from uner_jax.weights import load_model_tokenizer

    return in_tokens(load_model_tokenizer(tokenizer))


def _report(
    directory: Path, name: str, source: LabelFile, training: Statistics, validation: Statistics, tokenizer: str | None
) -> None:
    # here, since only a report needs matplotlib.
    from data_prep.questions.report import DataSet, write_report

    unit = "words" if tokenizer is None else "tokens"
    page = write_report(directory, DataSet(name, source.statistics, training, validation, unit))
    print(f"{page}: tables and plots", file=sys.stderr)


def main(arguments: list[str]) -> None:
    """The command line."""
    tyro.cli(conversations, prog="python -m data_prep.conversations", args=arguments)


if __name__ == "__main__":
    run_command(main)
