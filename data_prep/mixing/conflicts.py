"""Where sets disagree: types of one name, mentions that they give different types, and opposite answers."""

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from data_prep.questions.labelled_passages import LabelledPassage, digest

EXAMPLES = 4
ROWS = 200

# a set's name and a type of it
SetType = tuple[str, str]


@dataclass
class Conflicts:
    """Counts what the sets say; conversations are added one after another.

    Answers are kept of the passages of `shared` only: the digests of texts that stand in several sets.
    """

    shared: Collection[int]
    questions: Counter[SetType] = field(default_factory=Counter)
    mentions: Counter[SetType] = field(default_factory=Counter)
    of_text: dict[str, set[SetType]] = field(default_factory=lambda: defaultdict(set))
    answers: dict[tuple[int, str], dict[str, tuple[str, frozenset[str]]]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    def add(self, name: str, passage: LabelledPassage) -> None:
        """What a conversation of the set of that name says."""
        key = digest(passage.text)
        for entity_type in [*passage.spans, *passage.absent]:
            spans = passage.spans.get(entity_type, [])
            self.questions[name, entity_type] += 1
            self.mentions[name, entity_type] += len(spans)
            for span in spans:
                self.of_text[span.lower()].add((name, entity_type))
            if key in self.shared:
                self.answers[key, entity_type].setdefault(name, (passage.text, frozenset(spans)))

    def tables(self) -> dict[str, Any]:
        """The three kinds of disagreement, the most frequent first, at most `ROWS` of each; `counts` are of all."""
        same, different, opposite = self._same_name(), self._different_types(), self._opposite_answers()
        return {
            "counts": {
                "same_name": len(same),
                "conflicts": sum(row["conflict"] for row in different),
                "opposite_answers": sum(row["passages"] for row in opposite),
            },
            "same_name": same[:ROWS],
            "different_types": different[:ROWS],
            "opposite_answers": opposite[:ROWS],
        }

    def _same_name(self) -> list[dict[str, Any]]:
        """The types that several sets have by one name, and how many mentions the sets have in common."""
        sets_of: dict[str, list[str]] = defaultdict(list)
        for name, entity_type in sorted(self.questions):
            sets_of[entity_type].append(name)
        common: Counter[str] = Counter()
        for found in self.of_text.values():
            times = Counter(entity_type for _, entity_type in found)
            common.update(entity_type for entity_type, count in times.items() if count > 1)
        rows = [
            {
                "type": entity_type,
                "sets": {name: self.mentions[name, entity_type] for name in names},
                "common_mentions": common[entity_type],
            }
            for entity_type, names in sets_of.items()
            if len(names) > 1
        ]
        return sorted(rows, key=lambda row: (-sum(row["sets"].values()), row["type"]))

    def _different_types(self) -> list[dict[str, Any]]:
        """Pairs of types of two sets that the same mentions are of; a conflict where one has the other's type too."""
        texts: dict[tuple[SetType, SetType], list[str]] = defaultdict(list)
        for text, found in self.of_text.items():
            for one, other in combinations(sorted(found), 2):
                if one[0] != other[0] and one[1] != other[1]:
                    texts[one, other].append(text)
        rows = [
            {
                "first": {"set": one[0], "type": one[1]},
                "second": {"set": other[0], "type": other[1]},
                "mentions": len(found),
                "conflict": (one[0], other[1]) in self.questions or (other[0], one[1]) in self.questions,
                "examples": sorted(found)[:EXAMPLES],
            }
            for (one, other), found in texts.items()
        ]
        return sorted(rows, key=lambda row: (-row["mentions"], str(row["first"]), str(row["second"])))

    def _opposite_answers(self) -> list[dict[str, Any]]:
        """The types of which sets say different things on the same passage."""
        rows: dict[str, dict[str, Any]] = {}
        for (_, entity_type), said in sorted(self.answers.items(), key=lambda item: (item[0][1], item[0][0])):
            if len({spans for _, spans in said.values()}) > 1:
                row = rows.setdefault(entity_type, {"type": entity_type, "passages": 0, "examples": []})
                row["passages"] += 1
                if len(row["examples"]) < EXAMPLES:
                    (text, _), *_ = said.values()
                    answers = {name: sorted(spans) for name, (_, spans) in said.items()}
                    row["examples"].append({"text": text, "answers": answers})
        return sorted(rows.values(), key=lambda row: (-row["passages"], row["type"]))
