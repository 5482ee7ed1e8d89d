"""Nothing that a teacher said is lost where it is clear, and nothing is made up where it is not."""

import html
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.teacher.answers import MAX_CHARACTERS, TYPE_KEYS, Answer, parse_answer
from uner_jax.records import read_rows

Pairs = list[tuple[str, str]]
LONG = 200_000


@dataclass
class Case:
    """An answer; the pairs that it says, and of these the ones that must be read."""

    answer: str
    said: Pairs
    wanted: Pairs = field(default_factory=list)
    cut: bool = False


KINDS: dict[str, Callable[[Pairs, random.Random], Case]] = {}
# Answers that may be refused; what is read of them must still be right.
REFUSED = set()


def kind(read: bool = True):
    """Register a way to answer; `render(pairs, random)` gives the answer, or the answer and the pairs that it says."""

    def register(render):
        def case(pairs: Pairs, source: random.Random) -> Case:
            made = render(pairs, source)
            if isinstance(made, Case):
                return made
            answer, said = made if isinstance(made, tuple) else (made, pairs)
            return Case(answer, said, said if read else [])

        KINDS[render.__name__] = case
        if not read:
            REFUSED.add(render.__name__)
        return render

    return register


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def tuples(pairs: Pairs, separator: str = ", ") -> str:
    return separator.join(f"({quoted(span)}, {quoted(name)})" for span, name in pairs)


def by_type(pairs: Pairs) -> dict[str, list[str]]:
    types: dict[str, list[str]] = {}
    for span, name in pairs:
        types.setdefault(name, []).append(span)
    return types


def records(pairs: Pairs, span_key: str = "text", type_key: str = "type") -> list[dict[str, str]]:
    return [{span_key: span, type_key: name} for span, name in pairs]


def respan(pairs: Pairs, change: Callable[[str], str]) -> Pairs:
    return list(dict.fromkeys((change(span), name) for span, name in pairs))


@kind()
def python_double(pairs, _):
    return f"[{tuples(pairs)}]"


@kind()
def python_repr(pairs, _):
    return repr(pairs)


@kind()
def python_2(pairs, _):
    return "[" + ", ".join(f"(u{span!r}, u{name!r})" for span, name in pairs) + "]"


@kind()
def json_lists(pairs, source):
    return json.dumps(pairs, indent=source.choice([None, 2]))


@kind()
def json_records(pairs, source):
    span_key, type_key = source.choice(
        [("text", "type"), ("entity", "label"), ("name", "category"), ("Entity", "Entity Type"), ("word", "tag")]
    )
    return json.dumps(records(pairs, span_key, type_key), ensure_ascii=False, indent=source.choice([None, 1]))


@kind()
def definitions(pairs, _):
    said = [(span, f"A {name}, in short: what is called so.") for span, name in pairs]
    return json.dumps(records(said, "concept", "definition")), said


@kind()
def json_wrapped(pairs, source):
    return json.dumps({source.choice(["entities", "result"]): records(pairs)})


@kind()
def json_from_types(pairs, _):
    # "name" beside "class" would make it a table by columns.
    types = by_type([pair for pair in pairs if pair[1] not in TYPE_KEYS] or [("Ann Lee", "person")])
    return json.dumps(types), [(span, name) for name, spans in types.items() for span in spans]


@kind()
def json_groups(pairs, _):
    types = by_type(pairs)
    answer = json.dumps([{"type": name, "entities": spans} for name, spans in types.items()])
    return answer, [(span, name) for name, spans in types.items() for span in spans]


@kind()
def json_single_quotes(pairs, _):
    return str(records(pairs))


@kind()
def json_bare_keys(pairs, _):
    return "[" + ", ".join(f"{{text: {quoted(span)}, type: {quoted(name)}}}" for span, name in pairs) + "]"


@kind()
def json_inner_quotes(pairs, _):
    said = respan(pairs, lambda span: f'the "{span}" one')
    lines = [f'  {{"text": "{span}", "type": "{name}"}}' for span, name in said]
    return '{"entities": [\n' + ",\n".join(lines) + "\n]}", said


@kind()
def json_trailing_commas(pairs, _):
    return "[" + "".join(json.dumps(record)[:-1] + ",}, " for record in records(pairs)) + "]"


@kind()
def fence(pairs, source):
    body = source.choice([f"[{tuples(pairs)}]", json.dumps(pairs), json.dumps({"entities": records(pairs)})])
    return f"```{source.choice(['json', 'python', ''])}\n{body}\n```"


@kind()
def fence_unclosed(pairs, source):
    return f"Sure.\n```{source.choice(['json', 'python'])}\n[{tuples(pairs)}]"


@kind()
def prose(pairs, _):
    before = "Here's the list [of the passage's (many) \"entities\"], as (entity, type) tuples; see {note} [1]:\n\n"
    return f"{before}[{tuples(pairs)}]\n\nNote: it doesn't include [unclear] ones (e.g. pronouns, 'it')."


@kind()
def prose_same_line(pairs, _):
    return f'The entities are "as follows": {json.dumps(pairs)}. Hope this helps!'


@kind()
def curly(pairs, _):
    return "[" + ", ".join(f"(“{span}”, ‘{name}’)" for span, name in pairs) + "]"


@kind()
def curly_turned(pairs, _):
    return "[" + ", ".join(f"(”{span}“, ”{name}”)" for span, name in pairs) + "]"


@kind()
def curly_inside(pairs, _):
    said = respan(pairs, lambda span: f"“{span}” isn’t")
    return "[" + ", ".join(f"(“{span}”, “{name}”)" for span, name in said) + "]", said


@kind()
def inner_quotes(pairs, source):
    change = source.choice(['the "{}" one', '"{}"', '("{}")', '5" {}', 'f("{}") or g("x")', 'a, "b, {}", c'])
    said = respan(pairs, lambda span: change.format(span))
    return "[" + ", ".join(f'("{span}", "{name}")' for span, name in said) + "]", said


@kind()
def inner_apostrophes(pairs, source):
    change = source.choice(["O'{}", "the {}s' house", "rock 'n' {}", "'{}'", "{}'"])
    said = respan(pairs, lambda span: change.format(span))
    return "[" + ", ".join(f"('{span}', '{name}')" for span, name in said) + "]", said


@kind()
def escaped_quotes(pairs, _):
    said = respan(pairs, lambda span: f'the "{span}"\n\tisn\'t\\')
    return f"Answer: [{tuples(said)}]", said


@kind()
def unicode_escapes(pairs, _):
    said = respan(pairs, lambda span: f"{span} é€ 😀")
    return "[" + ", ".join(f"({json.dumps(span)}, {json.dumps(name)})" for span, name in said) + "],", said


@kind()
def python_escapes(pairs, _):
    said = respan(pairs, lambda span: f"{span} é€ 😀 \x1b")
    return "[" + ", ".join(f"({span!a}, {name!a})" for span, name in said) + "]", said


@kind()
def backslashes(pairs, _):
    said = respan(pairs, lambda span: f"C:\\dir\\{span}" if span[0] not in "nrtbfuUx\\/'\"“‘" else span)
    return "[" + ", ".join(f'("{span}", "{name}")' for span, name in said) + "]", said


@kind()
def brackets(pairs, source):
    change = source.choice(["{}]", "[{}", "{} (b)", "{} [1], [2]", "{{{}}}", "({}"])
    said = respan(pairs, lambda span: change.format(span))
    return f"Answer: [{tuples(said)}]", said


@kind()
def duplicated(pairs, _):
    return f"[{tuples(pairs + pairs[::-1])}]"


@kind()
def missing_commas(pairs, source):
    return f"[{tuples(pairs, source.choice([' ', chr(10)]))}]"


@kind()
def missing_inner_commas(pairs, _):
    return "[" + ", ".join(f"({quoted(span)} {quoted(name)})" for span, name in pairs) + "]"


@kind()
def extra_commas(pairs, _):
    return "[" + "".join(f"({quoted(span)}, {quoted(name)},),, " for span, name in pairs) + "]"


@kind()
def colons(pairs, _):
    return "[" + ", ".join(f"({quoted(span)}: {quoted(name)})" for span, name in pairs) + "]"


@kind()
def numbered(pairs, source):
    mark = source.choice(["{}. ", "{}) ", "- ", "* ", "  • ", ""])
    return "Entities:\n" + "\n".join(mark.format(n) + tuples([pair]) for n, pair in enumerate(pairs, 1))


@kind()
def numbered_and_explained(pairs, _):
    return "\n".join(f"{n}. {tuples([pair])} - as the passage (1) says" for n, pair in enumerate(pairs, 1))


@kind()
def without_brackets(pairs, _):
    return tuples(pairs)


@kind()
def newlines(pairs, source):
    end = source.choice(["\n", "\r\n", "\n\n"])
    return f"[{end}    {tuples(pairs, f',{end}    ')}{end}]"


@kind()
def comments(pairs, source):
    mark = source.choice(["#", "//"])
    return "[\n" + "".join(f'{tuples([pair])},  {mark} it\'s "one", ("of", "many")\n' for pair in pairs) + "]"


@kind()
def byte_order_mark(pairs, _):
    return f"\ufeff[{tuples(pairs)}]"


@kind()
def no_break_spaces(pairs, _):
    return "[\xa0" + ",\xa0".join(f"({quoted(span)},\xa0{quoted(name)})" for span, name in pairs) + "\u3000]"


@kind()
def html_escaped(pairs, _):
    said = respan(pairs, lambda span: f"{span} & <b>")
    return html.escape(f"[{tuples(said)}]"), said


@kind()
def bare_types(pairs, _):
    return "[" + ", ".join(f"({quoted(span)}, {name})" for span, name in pairs) + "]"


def is_plain(text: str) -> bool:
    return all(char.isalnum() or char in " .-%" for char in text)


@kind()
def bare(pairs, _):
    plain = [pair for pair in pairs if is_plain(pair[0])] or [("Ann Lee", "person")]
    return "[" + ", ".join(f"({span}, {name})" for span, name in plain) + "]", plain


@kind(read=False)
def bare_with_marks(pairs, source):
    change = source.choice(["{}, Jr.", "{}'s", "{} (b)", "the {}s' own", '5" {}', "{}: a"])
    said = respan(pairs, lambda span: change.format(span))
    return "[" + ", ".join(f"({span}, {name})" for span, name in said) + "]", said


@kind()
def nested(pairs, _):
    return "[" + ", ".join(f"[{tuples([pair])}]" for pair in pairs) + "]"


@kind()
def python_sets(pairs, _):
    return f"{{{tuples(pairs)}}}"


@kind()
def third_items(pairs, source):
    extra = source.choice(["0.9", "None", "12, 15", '"in the passage"', "True"])
    return "[" + ", ".join(f"({quoted(span)}, {quoted(name)}, {extra})" for span, name in pairs) + "]"


@kind()
def odd_items_between(pairs, source):
    odd = [
        '("alone",)',
        "()",
        "None",
        "(1, 2)",
        '("x", None)',
        '(3, "x")',
        '"alone"',
        '("x", 4)',
        "...",
        "[]",
        "(None,)",
    ]
    items = [item for pair in pairs for item in (source.choice(odd), tuples([pair]))]
    return f"[{', '.join(items)}]"


@kind()
def two_lists(pairs, source):
    half = len(pairs) // 2
    return f"People:\n[{tuples(pairs[:half])}]\n\nOthers:\n{json.dumps(pairs[half:])}"


@kind()
def forgotten_tuple_end(pairs, _):
    return f"[{tuples(pairs)[:-1]}]"


@kind()
def forgotten_tuple_ends(pairs, _):
    return "[" + ", ".join(f"({quoted(span)}, {quoted(name)}" for span, name in pairs[-9:]) + ")]", pairs[-9:]


def cut(opening: str, pieces: list[str], pairs: Pairs, source: random.Random) -> Case:
    """The answer of those pieces, each of which ends with a pair, cut at a random byte after its opening."""
    body = "".join(pieces).encode()
    kept = body[: source.randrange(len(body) + 1)].decode(errors="ignore")
    read = [pair for pair, end in zip(pairs, accumulate(map(len, pieces)), strict=True) if end <= len(kept)]
    return Case(opening + kept, pairs, read, cut=True)


@kind()
def cut_tuples(pairs, source):
    return cut("[", [f"{', ' * (n > 0)}{tuples([pair])}" for n, pair in enumerate(pairs)], pairs, source)


@kind()
def cut_repr(pairs, source):
    return cut("Answer:\n[", [f"{', ' * (n > 0)}{pair!r}" for n, pair in enumerate(pairs)], pairs, source)


@kind()
def cut_records(pairs, source):
    pieces = [f"{',' * (n > 0)}\n  {json.dumps(record)}" for n, record in enumerate(records(pairs))]
    return cut('{"entities": [', pieces, pairs, source)


@kind()
def cut_lists(pairs, source):
    return cut("```json\n[", [f"{', ' * (n > 0)}{json.dumps(pair)}" for n, pair in enumerate(pairs)], pairs, source)


@kind()
def cut_from_types(pairs, source):
    (name, spans), *_ = by_type(pairs).items()
    # a string is whole once something stands behind it.
    return cut(f'{{"{name}": [', [f"{json.dumps(span)}," for span in spans], [(span, name) for span in spans], source)


@kind(read=False)
def missing_quotes(pairs, source):
    answer = f"[{tuples(pairs)}]"
    places = [place for place, char in enumerate(answer) if char == '"']
    place = source.choice(places)
    return answer[:place] + answer[place + 1 :]


@kind(read=False)
def mixed_quotes(pairs, _):
    return "[" + ", ".join(f"(\"{span}', '{name}\")" for span, name in pairs) + "]"


@kind(read=False)
def ambiguous_quotes(pairs, _):
    said = respan(pairs, lambda span: f'the "{span}", "B" ')
    return "[" + ", ".join(f'("{span}", "{name}")' for span, name in said) + "]", said


@kind(read=False)
def flat_list(pairs, _):
    return json.dumps([span for span, _ in pairs])


@kind(read=False)
def spans_without_types(pairs, _):
    return json.dumps({"entities": [span for span, _ in pairs]})


@kind(read=False)
def from_spans(pairs, _):
    return json.dumps(dict(pairs))


@kind(read=False)
def columns(pairs, _):
    return json.dumps({"text": [span for span, _ in pairs], "type": [name for _, name in pairs]})


@kind(read=False)
def several_types(pairs, _):
    return json.dumps([{"text": span, "type": [name, "thing"]} for span, name in pairs])


@kind(read=False)
def numbered_pairs(pairs, _):
    return json.dumps({str(n): pair for n, pair in enumerate(pairs)})


@kind(read=False)
def indices(pairs, _):
    return json.dumps([[n, span] for n, (span, _) in enumerate(pairs)])


@kind(read=False)
def token_tags(pairs, _):
    return json.dumps([{"entity": name, "word": span, "score": 0.9} for span, name in pairs])


@kind(read=False)
def markdown_table(pairs, _):
    return "| Entity | Type |\n|---|---|\n" + "\n".join(f"| {span} | {name} |" for span, name in pairs)


@kind(read=False)
def yaml_lines(pairs, _):
    return "entities:\n" + "\n".join(f"  - text: {quoted(span)}\n    type: {quoted(name)}" for span, name in pairs)


@kind(read=False)
def prose_only(pairs, _):
    return "\n".join(f"- {span} ({name}): the passage's \"{span}\" is a '{name}'." for span, name in pairs)


@pytest.fixture(scope="module")
def gold(shared_data: Path) -> list[Pairs]:
    """The pairs of every real passage that has some."""
    found = []
    prefix, suffix = "What describes ", " in the text?"
    for _, row in read_rows(shared_data / "teacher" / "pile_ner_sample.jsonl"):
        turns = [turn["value"] for turn in row["conversations"]][2:]
        names = [question[len(prefix) : -len(suffix)] for question in turns[::2]]
        pairs = [(s, name) for name, answer in zip(names, turns[1::2], strict=True) for s in json.loads(answer)]
        if pairs:
            found.append(list(dict.fromkeys(pairs)))
    return found


def cases(name: str, gold: list[Pairs]) -> list[Case]:
    source = random.Random(name)
    # the same for each run, and other passages for each kind.
    return [KINDS[name](pairs, source) for pairs in source.sample(gold, 100)]


@pytest.mark.parametrize("name", KINDS)
def test_no_answer_makes_an_entity_up(name, gold):
    for case in cases(name, gold):
        parsed = parse_answer(case.answer)
        assert set(parsed.pairs) <= set(case.said), case.answer
        assert len(parsed.pairs) == len(set(parsed.pairs))
        assert (parsed.problem is None) or not parsed.pairs


@pytest.mark.parametrize("name", [name for name in KINDS if name not in REFUSED])
def test_everything_that_is_clear_is_read(name, gold):
    for case in cases(name, gold):
        parsed = parse_answer(case.answer)
        assert parsed.pairs == case.wanted, case.answer
        assert parsed.cut == case.cut, case.answer
        assert (parsed.problem is None) == bool(case.wanted), case.answer


def test_table_of_malformed_answers(gold):
    """What is read of each kind, with `pytest -s`; most of what may be refused is."""
    print(f"\n{'kind':24} {'answers':>8} {'pairs':>8} {'read':>8}")
    total = 0
    for name in KINDS:
        made = cases(name, gold)
        total += len(made)
        said = sum(len(case.said) for case in made)
        read = sum(len(parse_answer(case.answer).pairs) for case in made)
        print(f"{name:24} {len(made):8} {said:8} {read:8}")
    assert total >= 500


@pytest.mark.parametrize(
    ("answer", "pairs"),
    [
        ("[('O'Brien', 'person'), ('Ann', 'person')]", [("O'Brien", "person"), ("Ann", "person")]),
        ('[("the "Big" one", "x")]', [('the "Big" one', "x")]),
        ('[("f("x")", "call"), ("a]", "b)")]', [('f("x")', "call"), ("a]", "b)")]),
        ('[("Paris", "city (a "big") one")]', [("Paris", 'city (a "big") one')]),
        ('[{"text": "the "Big", "bad" wolf", "type": "animal"}]', [('the "Big", "bad" wolf', "animal")]),
        ('[("A "B", "C" D", "t")]', []),
        ('[("A "B", "C" D")]', []),
        ('[("Paris, "city"), ("Rome", "city")]', [("Rome", "city")]),
        ('[("Paris", "city), ("Rome", "city"), ("Oslo", "city")]', [("Oslo", "city")]),
        ('[("a", "b"), ("c", "d"], ("e", "f")]', [("a", "b"), ("c", "d"), ("e", "f")]),
        ('[(Paris", "city"), ("Rome", "city")]', [("Rome", "city")]),
        ("[(Queen's College, school), (1961, year), (7, None)]", [("Queen's College", "school"), ("1961", "year")]),
        ('[("Paris", ["city", "capital"])]', []),
        ('[[1961, "year"], ["Paris", 5], ["Oslo", null], ["Rome", "city", 0.9]]', [("Rome", "city")]),
        ('[["Ann", "Bob", "Eve", "Dan"]]', []),
        ('{"city": ["Paris"], "city": ["Rome"]}', [("Paris", "city"), ("Rome", "city")]),
        ('{"text": "Paris", "type": ["city", "capital"]}', []),
        ('{"text": "Paris", "name": "Paris, France", "type": "city"}', []),
        ('{"text": "Paris", "mention": "Paris", "type": "city"}', [("Paris", "city")]),
        ('{"entity": "LOC", "word": "Paris"}', []),
        ('{"city": ["A" "B"], "place": ["C", ["D"]], "x": ["the "Big", "Bad" wolf"], "y": ["Z"]}', [("Z", "y")]),
        ('[{"type": "city", "entities": ["A "B", "C" D"]}]', []),
        ("[('A', B')]", []),
        ('It says ("yes", "no").', []),
        ('[("a", "b"), ("c, &quot;d&quot;", "e")]', [("a", "b"), ("c, &quot;d&quot;", "e")]),
        ('{"text": "In Paris", "entities": [["Paris", "city"]]}', [("Paris", "city")]),
        ('The words ("yes", "no") say it; see [[Paris, France]] and x["a", "b"].', []),
        ('[("", "x"), ("y", "")]', [("", "x"), ("y", "")]),
        (r'[("a\"b", "\u00e9\n"), ("C:\dir", "\ud83d\ude00")]', [('a"b', "é\n"), ("C:\\dir", "😀")]),
        ("[(“Paris\", “city”), (‘the boys’ home’, 'place')]", [("Paris", "city"), ("the boys’ home", "place")]),
        ("((\"a\", 'b'), ('c', \"d\"))", [("a", "b"), ("c", "d")]),
    ],
)
def test_the_reading_that_makes_whole_pairs_wins(answer, pairs):
    assert parse_answer(answer).pairs == pairs


@pytest.mark.parametrize(
    ("answer", "problem", "is_cut"),
    [
        ("", "empty", False),
        (" \ufeff\n", "empty", False),
        ("There are no entities in this passage.", "no_list", False),
        ("null", "no_list", False),
        ('"[]"', "no_list", False),
        ("[]", None, False),
        ("Entities: []", None, False),
        ('{"entities": []}', None, False),
        ('{"city": [], "person": []}', None, False),
        ("[1, 2]", "no_pairs", False),
        ('["Paris", "Rome"]', "no_pairs", False),
        ('{"Paris", "Rome"}', "no_pairs", False),
        ('[("Paris", ', "no_pairs", True),
        ('[("Paris", "city"', "no_pairs", True),
        ('[["Paris", "city", ', "no_pairs", True),
        ('[{"text": "Paris", "type": "city", ', "no_pairs", True),
        ("[", "no_pairs", True),
        ("[" * 5000 + "]" * 5000, "too_deep", False),
        ("[" * 500 + '"a"' + "]" * 500, "too_deep", False),
        ("x" * (MAX_CHARACTERS + 1), "too_long", False),
    ],
)
def test_why_nothing_was_read(answer, problem, is_cut):
    parsed = parse_answer(answer)
    assert (parsed.pairs, parsed.problem, parsed.cut) == ([], problem, is_cut)


def test_what_makes_no_pair_is_counted():
    answer = '[("a", "b"), ("c",), ("d", None), {"text": "e"}, ["f", "g", "h", "i"], ("a", "b"), (), {"x": ["y"]}]'
    assert parse_answer(answer) == Answer([("a", "b"), ("y", "x")], unread=4)


def test_a_number_of_any_length_is_no_error():
    assert parse_answer(f'[["a", "b", {"9" * 9000}]]').pairs == [("a", "b")]


keys = st.sampled_from(["text", "type", "entities", "name", "label", "city", "1", ""]) | st.text(max_size=9)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
PIECES = ['"', "'", '", "', "')", '"}, {', "[", "\\", '": "', "a", "’", "# ", "\n", "é", "u", "😀"]
strings = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
values = st.recursive(
    scalars | strings,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(keys | strings, inner, max_size=4)
        | st.tuples(strings, strings)
        | st.fixed_dictionaries({"text": strings, "type": strings})
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.lists(values, max_size=5) | st.dictionaries(keys | strings, values, max_size=4), st.booleans())
def test_the_scanner_reads_json_as_json_is_read(value, ascii_only):
    answer = json.dumps(value, ensure_ascii=ascii_only)
    # what follows makes it something else than JSON.
    assert parse_answer(f"{answer}\n.") == parse_answer(answer)


@settings(deadline=None)
@given(st.lists(st.tuples(strings | st.text(max_size=9), strings), min_size=1, max_size=5), st.sampled_from("([{"))
def test_escaped_strings_of_any_characters_are_read(pairs, form):
    items = {
        "(": [f"({json.dumps(span)}, {json.dumps(name)})" for span, name in pairs],
        "[": [json.dumps(pair) for pair in pairs],
        "{": [json.dumps({"text": span, "type": name}) for span, name in pairs],
    }
    parsed = parse_answer(f"```\n[{', '.join(items[form])}]\n```")
    assert parsed == Answer(list(dict.fromkeys(pairs)))


TEXT_PIECES = ['("', '", "', '")', "[", "]", "('", "', '", "')", '{"text": "', '", "type": "', '"}', ",", ": ", "\n"]
TEXT_PIECES += ["- ", "1. ", "“", "”", "’", "#", "None", "3", "a", "Big one", " ", "(", ")", "{", "}", '"', "'"]
garbage = st.lists(st.sampled_from(TEXT_PIECES), max_size=40).map("".join) | st.text(max_size=60)


@settings(deadline=None, max_examples=500)
@given(garbage)
def test_what_is_read_of_any_text_stands_in_it(text):
    answer = text.replace("\\", "/").replace("&", "+")
    for span, name in parse_answer(answer).pairs:
        assert span in answer and name in answer


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_edited_answers_are_read_from_what_stands_in_them(gold, data):
    pairs = data.draw(st.sampled_from(gold))
    name = data.draw(st.sampled_from(sorted(KINDS)))
    answer = KINDS[name](pairs, random.Random(0)).answer.replace("\\", "/").replace("&", "+").encode()
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(answer)))
        end = data.draw(st.sampled_from([start, start + 1, start + 9, len(answer)]))
        answer = (
            answer[:start] + data.draw(st.sampled_from([b"", b'"', b"'", b",", b")", b"]", b"\xff"])) + answer[end:]
        )
    edited = answer.decode(errors="replace")
    for span, type_name in parse_answer(edited).pairs:
        assert span in edited and type_name in edited


STARTS = ["", "[", '["', "[('", '{"a": "', "[“"]
UNITS = [
    "[",
    "('",
    '("',
    '"',
    "'",
    "\\",
    "(((",
    '["a", "',
    "[('a', b'",
    '{"a":"x", "',
    '",# ',
    '",\n# ',
    '("a", x',
    "{}",
]
MORE_UNITS = [
    '" , ',
    "[(a ",
    ")]",
    " ",
    "\n- ",
    "&quot;",
    ",",
    '", "a',
    "“",
    '{"',
    "x:",
    "u'",
    "[(",
    "()",
    '", ' + "x" * 190,
]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("unit", UNITS + MORE_UNITS)
def test_a_long_answer_of_anything_ends(start, unit):
    # nothing is timed: a scanner that goes back for each mark would take hours.
    assert parse_answer((start + unit * LONG)[:LONG]).pairs == []  # and nothing is made out of noise
