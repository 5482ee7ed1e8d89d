"""The questions of a benchmark: from files of conversations, and from token-per-line files of tagged entities."""

import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence

from data_prep.tagged.sentences import read_sentences
from data_prep.tagged.type_names import DROPPED, is_dropped, read_type_names
from uner_jax.evaluation.settings import Asking, DataSet
from uner_jax.records import InputError, check_conversation, content_suffix, read_rows
from uner_jax.template import ACKNOWLEDGEMENT, answer_turn, asked_type, passage_turn, question_turn

CONVERSATIONS = (".json", ".jsonl", ".parquet")
# what some collections call the entities of no type that has a name.
ELSE = "else"
UNNAMED = {ELSE, *DROPPED}
# what stands before the passage in its turn.
OPENING = re.compile(r"(?:Dataset: .*? \n )?Text: ")


@dataclasses.dataclass(frozen=True)
class Question:
    """A question of a data set, with its context's turns and its gold answer.

    `text` is the passage alone, and `spans` where the gold entities stand in it (code points, end exclusive): None
    where the file does not say, as the published form does not.
    """

    id: str
    dataset: str
    passage_turn: str
    acknowledgement: str
    question: str
    gold: str
    text: str
    spans: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def read(
        cls,
        identity: str,
        dataset: str,
        turn: str,
        question: str,
        gold: str,
        spans: tuple[tuple[int, int], ...] | None = None,
        acknowledgement: str = ACKNOWLEDGEMENT,
    ) -> "Question":
        """The question on the passage of a first turn."""
        opening = OPENING.match(turn)
        return cls(
            identity, dataset, turn, acknowledgement, question, gold, turn[opening.end() :] if opening else turn, spans
        )

    @property
    def type(self) -> str:
        """The type that is asked for, or else the question."""
        return asked_type(self.question) or self.question

    @property
    def is_else(self) -> bool:
        """Whether it asks for the entities of no type that has a name."""
        return self.type.casefold() in UNNAMED


def read_benchmark(sets: Sequence[DataSet], asking: Asking) -> list[Question]:
    """The questions of all sets. Raises InputError if two have one name, or for a file that cannot be read."""
    names = [one.name for one in sets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        paths = ", ".join(str(one.path) for one in sets if one.name == twice[0])
        raise InputError(f"{paths}: more than one data set of the name {twice[0]}; name them: --data NAME=PATH")
    return [question for one in sets for question in read_questions(one, asking)]


def read_questions(source: DataSet, asking: Asking = Asking()) -> list[Question]:  # noqa: B008 (it is frozen)
    """The questions of a file: by its suffix conversations, one or more questions a row, or else tagged tokens."""
    if asking.passages is not None and asking.passages < 1:
        raise InputError(f"--passages must be at least 1, found {asking.passages}")
    read = _of_conversations if content_suffix(source.path) in CONVERSATIONS else _of_tagged
    questions: list[Question] = []
    seen: set[str] = set()
    for question in read(source, asking):
        if question.passage_turn not in seen and len(seen) == asking.passages:
            continue
        seen.add(question.passage_turn)
        questions.append(question)
    if not questions:
        raise InputError(f"{source.path}: has no questions")
    return questions


def _of_conversations(source: DataSet, asking: Asking) -> Iterator[Question]:
    for where, row in read_rows(source.path):
        values = [turn["value"] for turn in check_conversation(row, where)["conversations"]]
        _check_characters(values, where)
        turn, acknowledgement, *pairs = values
        for asked, gold in zip(pairs[::2], pairs[1::2], strict=True):
            yield Question.read(row["id"], source.name, turn, asked, gold, None, acknowledgement)


def _check_characters(values: Sequence[str], where: str) -> None:
    """Raise InputError for what no tokenizer reads: half of a pair that stands for one character in JSON's escapes."""
    for number, value in enumerate(values):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            found = value[error.start]
            raise InputError(
                f"{where}: turn {number} has a lone surrogate, {found!r}, which is no character"
            ) from error


def _of_tagged(source: DataSet, asking: Asking) -> Iterator[Question]:
    names = read_type_names(asking.types)
    file = read_sentences(source.path)
    print(f"{source.path}: {file.layout}", file=sys.stderr)
    labels = {mention.label for sentence in file.sentences for mention in sentence.mentions}
    types = names.ordered(label for label in labels if not is_dropped(label))
    if asking.with_else and any(map(is_dropped, labels)):
        types.append(ELSE)
    if not types:
        but = " but of the type MISC (--with-else asks for them)" if labels else ""
        raise InputError(f"{source.path}: no entities{but}, so there is no type to ask for")

    def name(label: str) -> str:
        return ELSE if is_dropped(label) else names.name(label)

    dataset = source.name if asking.template == "dataset" else None
    for number, sentence in enumerate(file.sentences):
        if not sentence.text.strip():
            continue
        turn = passage_turn(sentence.text, dataset)
        for place, entity_type in enumerate(types):
            spans = tuple((start, end) for start, end, label in sentence.mentions if name(label) == entity_type)
            gold = answer_turn(sentence.text[start:end] for start, end in spans)
            identity = f"{source.name}_{number * len(types) + place}"
            yield Question.read(identity, source.name, turn, question_turn(entity_type), gold, spans)
