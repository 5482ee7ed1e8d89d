"""From a corpus to a uniform sample of passages: what is cut, drawn, dropped and read."""

import base64
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sentencex
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import passages
from data_prep.corpus import files
from data_prep.corpus.cutting import WINDOW, Cutter
from data_prep.corpus.harvest import UNBREAKABLE, Candidate, Settings
from data_prep.corpus.priority import MOST_EXPANSION, most_passages
from data_prep.corpus.quality import find_fault
from data_prep.corpus.reserve import MOST_GROUPS, Reserve
from data_prep.passages import Corpus, sample_passages
from uner_jax.command import run_command
from uner_jax.records import InputError, read_rows, write_json, write_rows
from uner_jax.tokenizer import Tokenizer, load_tokenizer

ROOT = Path(__file__).parent.parent
SOURCES = ("Books", "Web", "Law")


@pytest.fixture(scope="session")
def real(shared_data) -> list[str]:
    """882 passages of The Pile, as nobody filtered them."""
    rows = read_rows(shared_data / "teacher" / "pile_ner_sample.jsonl")
    return [row["conversations"][0]["value"].removeprefix("Text: ") for _, row in rows]


@pytest.fixture(scope="session")
def documents(real) -> list[dict]:
    """50 documents of one to seven of those passages each."""
    rows, place = [], 0
    for number in range(50):
        size = number % 7 + 1
        text = "\n\n".join(real[place : place + size])
        rows.append({"text": text, "meta": {"pile_set_name": SOURCES[number % 3]}})
        place += size
    return rows


@pytest.fixture(scope="session")
def llama(llama_tokenizer_path) -> Tokenizer:
    return load_tokenizer(llama_tokenizer_path)


@pytest.fixture(scope="session")
def smollm2(smollm2_path) -> Tokenizer:
    return load_tokenizer(smollm2_path)


@pytest.fixture
def draw(tmp_path, llama_tokenizer_path):
    """The command, in this process; its exit status."""

    def run(*inputs: object, output: Path = tmp_path / "passages.jsonl", **options: object) -> int:
        options = {"tokenizer": llama_tokenizer_path, "workers": 1, "count": 40} | options
        flags = [
            part
            for name, value in options.items()
            for part in ([f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", value])
        ]
        with pytest.raises(SystemExit) as left:
            run_command(passages.main, list(map(str, ["--input", *inputs, "--output", output, *flags])))
        return left.value.code

    return run


def write_corpus(folder: Path, rows: list[dict], count: int, suffix: str) -> list[Path]:
    """The rows in `count` files."""
    folder.mkdir()
    for number in range(count):
        path, part = folder / f"{number}{suffix}", rows[number::count]
        if suffix == ".json":
            write_json(path, part)
        else:
            write_rows(path, part)
    return sorted(folder.iterdir())


def said(err: str, what: str) -> int:
    """The number before `what` in a table of the report."""
    found = re.search(rf"^ *([\d,]+)  {re.escape(what)}$", err, re.MULTILINE)
    return int(found[1].replace(",", "")) if found else 0


# ---- the same corpus, however it lies on disk


LAYOUTS = [(1, ".jsonl"), (3, ".jsonl.gz"), (7, ".jsonl.zst"), (3, ".parquet"), (2, ".json"), (7, ".ndjson")]


@pytest.mark.parametrize("per_source", [False, True])
def test_the_sample_depends_on_the_documents_only(tmp_path, draw, documents, per_source):
    options = {"per_source": True} if per_source else {}
    results = {}
    for number, (count, suffix) in enumerate(LAYOUTS):
        rows = random.Random(number).sample(documents, len(documents))
        inputs = write_corpus(tmp_path / str(number), rows, count, suffix)
        output = tmp_path / f"{number}.jsonl"
        # by name in another order, and by pattern.
        given_as = inputs[::-1] if number % 2 else [tmp_path / str(number) / "*"]
        assert draw(*given_as, output=output, **options) == 0
        results[suffix] = output.read_bytes()
    assert len(results[".jsonl"].splitlines()) == 40
    assert set(results.values()) == {results[".jsonl"]}


@pytest.mark.parametrize("per_source", [False, True])
def test_two_workers_draw_what_one_does(tmp_path, draw, documents, monkeypatch, per_source):
    options = {"per_source": True} if per_source else {}
    # many batches, so that the workers are told of old thresholds.
    monkeypatch.setattr(files, "BATCH_BYTES", 5000)
    monkeypatch.setattr(passages, "MOST_GROUPS", 3)
    inputs = write_corpus(tmp_path / "corpus", documents, 3, ".jsonl.zst")
    for workers in (1, 2):
        assert draw(*inputs, output=tmp_path / f"{workers}.jsonl", workers=workers, **options) == 0
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()


def test_several_frames_and_members_are_read_to_the_end(tmp_path, draw, documents):
    lines = [json.dumps(row).encode() + b"\n" for row in documents]
    halves = [b"".join(lines[:30]), b"".join(lines[30:])]
    (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
    (tmp_path / "a.jsonl.gz").write_bytes(b"".join(map(gzip.compress, halves)))
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(map(zstandard.ZstdCompressor().compress, halves)))
    found = set()
    for suffix in ("", ".gz", ".zst"):
        assert draw(tmp_path / f"a.jsonl{suffix}", output=tmp_path / "out.jsonl") == 0
        found.add((tmp_path / "out.jsonl").read_bytes())
    assert len(found) == 1


def test_text_files_are_documents_without_a_source(tmp_path, draw, documents):
    write_rows(tmp_path / "all.jsonl", [{"text": row["text"]} for row in documents])
    for number, row in enumerate(documents):
        (tmp_path / f"{number}.txt").write_bytes(row["text"].encode())
    assert draw(tmp_path / "all.jsonl", output=tmp_path / "a.jsonl") == 0
    assert draw(tmp_path / "*.txt", output=tmp_path / "b.jsonl") == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert all(row.keys() == {"id", "text"} for _, row in read_rows(tmp_path / "a.jsonl"))


def test_a_long_text_is_cut_into_documents_at_blank_lines(tmp_path, draw, real, monkeypatch, capsys):
    monkeypatch.setattr(files, "BATCH_BYTES", 4000)
    text = "\n\n".join(real[:60])
    (tmp_path / "book.txt").write_bytes(text.encode())
    batches = list(files.read_batches(tmp_path / "book.txt"))
    parts = [record for batch in batches for record in batch.records]
    assert b"".join(parts) == text.encode() and len(parts) > 8
    assert all(len(part) >= 4000 and not part.splitlines()[-1].strip() for part in parts[:-1])
    assert sum(batch.read for batch in batches) == len(text.encode())
    assert [batch.first for batch in batches[:-1]] == [
        1 + b"".join(parts[:number]).count(b"\n") for number in range(len(parts))
    ]
    assert draw(tmp_path / "book.txt", count=1000) == 0
    assert f"{len(parts)} documents in 1 files" in capsys.readouterr().err


def test_bytes_that_were_read_add_up_to_the_size(tmp_path, documents):
    for count, suffix in LAYOUTS:
        for path in write_corpus(tmp_path / suffix, documents, count, suffix):
            assert sum(batch.read for batch in files.read_batches(path)) == path.stat().st_size


# ---- cutting


def joined(cuts) -> str:
    return "".join(cut.text or "" for cut in cuts)


def visible(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("name", ["llama", "smollm2"])
@pytest.mark.parametrize("max_tokens", [128, 256])
def test_passages_are_whole_sentences_and_nothing_is_lost(request, documents, name, max_tokens):
    tokenizer = request.getfixturevalue(name)
    whole = ended = total = 0
    for row in documents[::2]:
        text = row["text"]
        cuts = list(Cutter(tokenizer, max_tokens).cut(text))
        kept = [cut.text for cut in cuts if cut.text is not None]
        assert all(passage in text and passage == passage.strip() for passage in kept)
        assert [len(tokenizer.encode(passage)) for passage in kept] == [cut.tokens for cut in cuts if cut.text]
        assert all(0 < cut.tokens <= max_tokens for cut in cuts if cut.text)
        assert len(cuts) <= most_passages(text.encode(), max_tokens)
        if len(kept) == len(cuts):
            whole += 1
            assert visible("".join(kept)) == visible(text)
        sentences = sentencex.get_sentence_boundaries("en", text)
        ends = {len(text[: sentence["end_index"]].rstrip()) for sentence in sentences}
        place = 0
        for passage in kept:
            place = text.index(passage, place) + len(passage)
            ended += place in ends
            total += 1
    # some sentences are longer than 128 tokens, and cut at their quotation marks or lines.
    assert whole > 10 and ended > 0.9 * total


def test_passages_are_full(documents, llama):
    """A passage and the next one together are, but for what was estimated, too long."""
    pairs = short = 0
    for row in documents:
        text, place = row["text"], 0
        cuts = list(Cutter(llama, 256).cut(text))
        for first, second in pairwise(cuts):
            if first.text and second.text:
                start = text.index(first.text, place)
                place = start + len(first.text)
                end = text.index(second.text, place) + len(second.text)
                pairs += 1
                short += len(llama.encode(text[start:end])) <= 256
    assert pairs > 100 and short < 0.02 * pairs


def test_no_normal_form_makes_more_bytes_than_the_bound_allows():
    decomposed = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.decomposition(chr(code))]
    growth = [
        len(unicodedata.normalize(form, one).encode()) / len(one.encode())
        for form in ("NFC", "NFD", "NFKC", "NFKD")
        for one in decomposed
    ]
    assert max(growth) == MOST_EXPANSION


# what splitters and tokenizers stumble over: wide spaces, marks that stay open, joiners, control characters, digits.
NASTY_PARTS = [
    *"ab Z.!?\n\r\t\"'“”‘’([)]«」。！ 中é😀\u0301\u200d\u00a0\u3000\u2028\x85\x1c\x00\ufeffﷺ",
    *("Mr. ", "A. ", "U.S. ", "e.g. ", " word", "\n\n", "http://a.b/c", "</s>", "👨‍👩‍👧", "한글", "สวัสดี", "   "),
]
NASTY = st.lists(st.sampled_from(NASTY_PARTS) | st.characters(exclude_categories=["Cs"]), max_size=120).map("".join)


@settings(max_examples=150, deadline=None)
@given(text=NASTY, max_tokens=st.integers(1, 40), small=st.booleans())
def test_any_text_is_cut_to_fit(llama, smollm2, text, max_tokens, small):
    tokenizer = smollm2 if small else llama
    cuts = list(Cutter(tokenizer, max_tokens).cut(text))
    assert len(cuts) <= most_passages(text.encode(), max_tokens)
    place = 0
    for cut in cuts:
        if cut.text is not None:
            # found behind the one before, to the letter.
            place = text.index(cut.text, place) + len(cut.text)
            assert cut.text == cut.text.strip()
            assert 0 < len(tokenizer.encode(cut.text)) == cut.tokens <= max_tokens
    if all(cut.text is not None for cut in cuts):
        # SmolLM2's vocabulary lacks some control characters: what has no token is in no passage.
        kept, wanted = ([c for c in visible(one) if tokenizer.encode(c)] for one in (joined(cuts), text))
        assert kept == wanted


@pytest.mark.parametrize("space", ["\u00a0", "\u2003", "\u3000", "\x85"])
def test_wide_spaces_around_an_initial(llama, space):
    # the splitter fails on this.
    text = f"John A{space}. Smith sang{space}. He left."
    assert [cut.text for cut in Cutter(llama, 64).cut(text)] == [text]


def test_one_line_of_many_windows_is_cut_as_any_text(real, llama):
    text = " ".join(" ".join(real).split())[: 12 * WINDOW]
    kept = [cut.text for cut in Cutter(llama, 256).cut(text) if cut.text]
    assert len(visible("".join(kept))) > 0.98 * len(visible(text))
    place = 0
    for passage in kept[1:]:
        # it begins behind the end of a sentence, not inside of a word.
        place = text.index(passage, place)
        assert not text[place - 2 : place].isalnum()
        place += len(passage)


def test_an_open_quotation_mark_does_not_swallow_the_sentences_after_it(llama):
    sentences = [f"Number {number} is a sentence of a story that goes on." for number in range(200)]
    text = 'He said: "' + " ".join(sentences)
    cuts = list(Cutter(llama, 64).cut(text))
    assert all(cut.text for cut in cuts) and visible("".join(cut.text or "" for cut in cuts)) == visible(text)


def test_a_long_sentence_is_cut_at_lines_and_a_long_line_is_left_out_whole(llama):
    lines = [f"item {number} of a list without an end" for number in range(50)]
    unbroken = " ".join(f"word{number}" for number in range(3 * WINDOW // 8))
    cuts = list(Cutter(llama, 64).cut("\n".join(lines)))
    assert visible("".join(cut.text or "" for cut in cuts)) == visible("".join(lines))
    assert {line for cut in cuts for line in (cut.text or "").split("\n")} == set(lines)
    around = [cut.text for cut in Cutter(llama, 64).cut(f"It begins here.\n\n{unbroken}. Then it ends here.")]
    assert around == ["It begins here.", None, "Then it ends here."]


def test_a_document_of_megabytes_in_one_sentence(llama):
    assert [cut.text for cut in Cutter(llama, 256).cut("x" * (5 << 20))] == [None]
    assert [cut.text for cut in Cutter(llama, 256).cut("word " * (1 << 20))] == [None]


# ---- drawing


def tiny_corpus(path: Path) -> list[str]:
    """46 passages of about 8 tokens in documents of 1, 5 and 40."""
    names = [f"The {first}{second}{last} sang." for first in "bdfk" for second in "aeiou" for last in "lmn"][:46]
    write_rows(path, [{"text": "\n\n".join(part)} for part in (names[:1], names[1:6], names[6:])])
    return names


@pytest.mark.parametrize("capacity", [2, 1000])
def test_each_passage_is_drawn_as_often_as_another(tmp_path, llama, capacity):
    names = tiny_corpus(tmp_path / "c.jsonl")
    drawn: Counter[str] = Counter()
    runs, count = 400, 5
    for seed in range(runs):
        options = Settings(max_tokens=8, min_tokens=0, seed=seed, per_source=False)
        walk = sample_passages(Corpus([tmp_path / "c.jsonl"]), llama, options, count, capacity, 1)
        drawn.update(passage["text"] for passage in walk.accepted)
    assert set(drawn) == set(names) and drawn.total() == runs * count
    expected = runs * count / len(names)
    # drawn without replacement, hence the factor; the sum has 45 degrees of freedom.
    chi_square = sum((drawn[name] - expected) ** 2 for name in names) / expected * 45 / (46 - count)
    assert 45 - 4 * 90**0.5 < chi_square < 45 + 5 * 90**0.5


def test_another_seed_draws_others(tmp_path, draw, documents):
    inputs = write_corpus(tmp_path / "corpus", documents, 1, ".jsonl")
    texts = []
    for seed in (0, 0, 1, 10**30):
        assert draw(*inputs, output=tmp_path / "o.jsonl", seed=seed) == 0
        texts.append({row["text"] for _, row in read_rows(tmp_path / "o.jsonl")})
    same, again, other, large = texts
    assert same == again and len(same & other) < 20 and len(same & large) < 20


def test_a_smaller_sample_is_the_start_of_a_larger_one(tmp_path, draw, documents):
    inputs = write_corpus(tmp_path / "corpus", documents, 1, ".jsonl")
    rows = []
    for count in (10, 60):
        assert draw(*inputs, count=count, output=tmp_path / "o.jsonl") == 0
        rows.append([row for _, row in read_rows(tmp_path / "o.jsonl")])
    assert rows[1][:10] == rows[0]


@pytest.mark.parametrize("per_source", [False, True])
@pytest.mark.parametrize("count", [1, 60, 5000])
def test_the_size_of_the_reserve_changes_nothing(tmp_path, llama, documents, per_source, count):
    # with copies, and others so like that they are dropped.
    rows = documents[:12] + documents[:5] + [{**row, "text": row["text"] + " More."} for row in documents[2:8]]
    (path,) = write_corpus(tmp_path / "corpus", rows, 1, ".jsonl")
    options = Settings(max_tokens=64, min_tokens=16, seed=3, per_source=per_source)
    walks = [sample_passages(Corpus([path]), llama, options, count, room, 1) for room in (11, 60, 10**6)]
    assert len(walks[0].accepted) >= min(count, 150)
    assert walks[0].accepted == walks[1].accepted == walks[2].accepted
    assert walks[0].dropped == walks[1].dropped == walks[2].dropped


def test_a_reserve_holds_the_least_of_each_group_and_never_more_than_it_may():
    random_order = random.Random(5)
    reserve = Reserve(30, {})
    priorities = {"a": random_order.sample(range(10**6), 500), "b": random_order.sample(range(10**6), 4)}
    priorities["c"] = random_order.sample(range(10**6), 60)
    offered = [(group, priority) for group, numbers in priorities.items() for priority in numbers]
    for group, priority in offered + offered[:100]:
        reserve.add(group, Candidate(priority, None, "text", None))
        assert len(reserve) <= 30
    for group, numbers in priorities.items():
        popped = []
        while entry := reserve.pop(group):
            popped.append(entry[0].priority)
        assert popped == sorted(numbers)[: len(popped)]
        assert len(popped) == len(numbers) if reserve.is_whole(group) else len(popped) == 13


def test_sources_are_balanced_and_a_small_one_leaves_its_share(tmp_path, draw, documents, capsys):
    uneven = [row for row in documents if row["meta"]["pile_set_name"] != "Law"]
    uneven += [{"text": "Ann lives in Oslo. She writes letters to her friends in Rome every week.", "source": "Law"}]
    inputs = write_corpus(tmp_path / "corpus", uneven, 2, ".jsonl")
    assert draw(*inputs, "--per-source", count=41) == 0
    rows = [row for _, row in read_rows(tmp_path / "passages.jsonl")]
    assert Counter(row["source"] for row in rows) == {"Books": 20, "Law": 1, "Web": 20}
    assert [row["source"] for row in rows[:5]] == ["Books", "Law", "Web", "Books", "Web"]
    assert said(capsys.readouterr().err, "Books") == 20


def test_too_many_sources_are_refused():
    reserve = Reserve(5000, {})
    with pytest.raises(InputError, match=r"more than 1,000 sources, among them 'https://1000'"):
        for number in range(MOST_GROUPS + 1):
            reserve.add(f"https://{number}", Candidate(number, f"https://{number}", "text", None))


# ---- what is dropped


def test_exact_and_near_duplicates_are_dropped_and_counted(tmp_path, draw, real, capsys):
    whole = [text for text in real if len(text.split()) > 150 and not find_fault(text, 99, 1)][:20]
    near = [text.replace(text.split()[40], "changed", 1) for text in whole[:7]]
    halves = [" ".join([*whole[n].split()[:75], *whole[n + 1].split()[75:]]) for n in range(0, 10, 2)]
    copies = [*whole[10:14], *whole[10:14]]
    # the same passage as the only one of another document too.
    copies += [f" {text}\n" for text in whole[14:17]]
    (path,) = write_corpus(
        tmp_path / "corpus", [{"text": text} for text in whole + near + halves + copies], 1, ".jsonl"
    )
    assert draw(path, max_tokens=1000, count=1000) == 0
    err = capsys.readouterr().err
    found = [row["text"] for _, row in read_rows(tmp_path / "passages.jsonl")]
    assert len(set(found)) == len(found) == len(whole) + len(halves)
    assert said(err, "exact duplicate") == 8 + 3
    assert said(err, "near duplicate") == 7
    for text, changed in zip(whole, near, strict=False):
        assert (text in found) + (changed in found) == 1
    assert {*halves, *whole[7:]} <= set(found)


def test_ids_are_of_the_text_and_unique(tmp_path, draw, documents):
    inputs = write_corpus(tmp_path / "corpus", documents, 1, ".jsonl")
    ids = {}
    for seed in (0, 1):
        assert draw(*inputs, count=200, seed=seed) == 0
        rows = [row for _, row in read_rows(tmp_path / "passages.jsonl")]
        assert all(re.fullmatch("[0-9a-f]{16}", row["id"]) for row in rows)
        assert all(ids.setdefault(row["id"], row["text"]) == row["text"] for row in rows)
        assert len({row["id"] for row in rows}) == 200


def test_short_passages_and_long_lines_are_counted(tmp_path, draw, capsys):
    rows = [{"text": "Too short."}, {"text": "Ann lives in Oslo, Bob lives in Rome, and Eve lives in Bern."}]
    rows += [{"text": "word " * 1000}]
    (path,) = write_corpus(tmp_path / "corpus", rows, 1, ".jsonl")
    assert draw(path) == 0
    err = capsys.readouterr().err
    assert said(err, "too short") == 1 and said(err, UNBREAKABLE) == 1
    assert "passages.jsonl: 1 passages, all that there are, fewer than the 40 of --count" in err
    assert draw(path, min_tokens=0) == 0
    assert len((tmp_path / "passages.jsonl").read_text().splitlines()) == 2


NO_TEXT = {
    "base64": base64.encodebytes(random.Random(0).randbytes(600)).decode(),
    "hex dump": "\n".join(f"{n:08x}  " + " ".join(f"{n * k % 256:02x}" for k in range(16)) for n in range(12)),
    "table of numbers": "\n".join("\t".join(f"{n * k / 7:.2f}" for k in range(8)) for n in range(20)),
    "comma-separated numbers": "\n".join(",".join(f"{n * k / 7:.4f}" for k in range(8)) for n in range(20)),
    "HTML": '<table class="box"><tr><td align="left"><b>Name</b></td><td>Ann</td></tr><tr><td>&nbsp;</td></tr>' * 3,
    "minified JavaScript": '!function(t,e){"object"==typeof exports?module.exports=e():t.Vue=e()}(this,function(){var '
    "t=Object.freeze({});function e(t){return null==t}function n(t){return null!=t}function r(t){return!0===t}});" * 2,
    "minified CSS": ".a{margin:0;padding:0}.b .c{color:#fff;background:url(x.png) no-repeat}#id>li{float:left}" * 3,
    "JSON of numbers": json.dumps([{"id": n, "at": [n / 3, n / 7], "ok": None} for n in range(12)]),
    "DNA": "".join(random.Random(1).choices("ACGT", k=600)),
    "a ruler": "=-=-=-=-=-\n*********\n" * 20,
    "control characters": "Ann \x01 lives \x02 in \x03 Oslo \x00 and sings.",
    "broken bytes": "Ann liv\ufffd\ufffd in \ufffdslo and sings every day.",
    "an outline of a picture": "M10 10 L20.5 30.2 C 12.1 3.3 4.4 5.5 Z " * 20,
}


@pytest.mark.parametrize("kind", NO_TEXT)
def test_what_is_no_text_is_dropped(kind):
    assert (find_fault(NO_TEXT[kind], 100, 16) or "").startswith("no text: ")


TEXTS = {
    "Chinese": "北京是中国的首都。它有三千多年的历史，人口超过两千万。" * 4,
    "Thai": "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย มีประชากรมากกว่าแปดล้านคน",
    "Hindi": "दिल्ली भारत की राजधानी है। यहाँ बहुत लोग रहते हैं।",
    "Arabic": "القاهرة هي عاصمة مصر وأكبر مدنها.",
    "citations": "Smith J, Doe A. (2010) J. Chem. 12(3):45-67. doi:10.1000/xyz123; Lee K. (2011) Nature 4:1-9.",
    "mathematics": "Let $f: X \\to Y$ be a map. Suppose that $f(x) = 0$ for all $x \\in X$; then $f$ is constant.",
    "a form": "TRIAL COURT NO. 14209B \n" + " " * 300 + "To be filed with the Court of Appeals\n" + "_" * 30,
    "a link": "Ann wrote this: https://example.org/a/very/long/path/to/some/page/that/says/nothing?id=12345 in May.",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_what_is_text_is_kept(kind):
    assert find_fault(TEXTS[kind], 100, 16) is None


def test_of_the_real_passages_nearly_all_are_text(real):
    faults = [(fault, text) for text in real if (fault := find_fault(text, 100, 16))]
    assert len(faults) == 3
    # as a person judges: a table of glyph widths, a page's head, a test file in PHP.
    assert all(any(mark in text for mark in ("\t 0 552", "<!DOCTYPE html>", "--TEST--")) for _, text in faults)


# ---- what is wrong with the input


BAD = {
    "not JSON": ["{broken", '{"text": "cut off', '"' + "x" * 50, "[" * 100_000, '{"text": 1' + "0" * 5000 + "}"],
    "not a JSON object": ["[1, 2]", '"text"', "7", "null"],
    'no "text"': ['{"body": "x"}', '{"text": null}'],
    '"text" is not a string': ['{"text": 3}', '{"text": ["a"]}', '{"text": {"a": "b"}}'],
    'an empty "text"': ['{"text": ""}', '{"text": " \\n "}'],
    "half a surrogate pair, which is no character": ['{"text": "a \\ud800 b"}', '{"text": "a", "source": "\\udfff"}'],
}


def test_bad_records_are_counted_and_named_and_stop_nothing(tmp_path, draw, documents, capsys):
    bad = [line.encode() for lines in BAD.values() for line in lines] + [b'{"text": "\xff\xfe"}']
    good = [json.dumps(row).encode() for row in documents]
    clean, dirty = tmp_path / "clean.jsonl", tmp_path / "dirty.jsonl"
    clean.write_bytes(b"\n".join(good))
    # a byte-order mark, empty lines and line ends of another system are nothing bad.
    dirty.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([good[0], b"", *bad, b"  ", *good[1:]]))
    assert draw(clean, output=tmp_path / "a.jsonl") == 0
    capsys.readouterr()
    assert draw(dirty, output=tmp_path / "b.jsonl") == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    err = capsys.readouterr().err
    assert {reason: said(err, reason) for reason in BAD} == {reason: len(lines) for reason, lines in BAD.items()}
    assert said(err, "not UTF-8") == 1
    assert f"records that are no document: {len(bad)}" in err
    assert [line for line in err.splitlines() if "dirty.jsonl, line" in line] == [
        f"    {dirty}, line {number}: not JSON" for number in range(3, 8)
    ]


def test_json_lines_that_begin_with_a_list_are_still_lines(tmp_path, draw, documents, capsys):
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(["[1]", *map(json.dumps, documents)]))
    assert draw(path) == 0
    assert f"{path}, line 1: not a JSON object" in capsys.readouterr().err


def test_a_parquet_row_that_is_not_utf8_is_one_bad_record(tmp_path, draw, documents, capsys):
    texts = [documents[0]["text"].encode(), b"\xff\xfe", None, documents[1]["text"].encode()]
    column = pa.array(texts, pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column, "source": ["a", "b", "c", None]}), tmp_path / "c.parquet")
    assert draw(tmp_path / "c.parquet") == 0
    err = capsys.readouterr().err
    assert f"{tmp_path / 'c.parquet'}, row 2: not UTF-8" in err and said(err, 'no "text"') == 1
    assert "2 documents in 1 files" in err


def test_a_line_that_is_too_long_is_passed_over(tmp_path, draw, documents, monkeypatch, capsys):
    monkeypatch.setattr(files, "LONGEST_LINE", 20_000)
    lines = [json.dumps(row) for row in documents[:20]]
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join([lines[0], json.dumps({"text": "Long. " * 9000}), *lines[1:]]))
    assert draw(path) == 0
    err = capsys.readouterr().err
    assert "20 documents in 1 files" in err and f"{path}, line 2: a line longer than" in err


@pytest.mark.parametrize("suffix", [".jsonl.zst", ".jsonl.gz", ".parquet", ".json"])
def test_a_file_that_is_cut_off_is_named_and_nothing_is_written(tmp_path, draw, documents, capsys, suffix):
    path, whole = write_corpus(tmp_path / "corpus", documents, 2, suffix)
    path.write_bytes(path.read_bytes()[:-20])
    output = tmp_path / "passages.jsonl"
    output.write_text("before\n")
    assert draw(whole, path, output=output) == 1
    assert f"error: {path}" in capsys.readouterr().err
    assert output.read_text() == "before\n" and {entry.name for entry in tmp_path.iterdir()} == {"corpus", output.name}


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"", "c.jsonl"),
        (b"\n \n", "c.jsonl"),
        (b"", "c.jsonl.zst"),
        (b"", "c.txt.gz"),
        (b"[]", "c.json"),
        (b" ", "c"),
    ],
)
def test_a_corpus_without_a_passage_is_an_error(tmp_path, draw, capsys, content, name):
    (tmp_path / name).write_bytes(content)
    assert draw(tmp_path / name) == 1
    assert "error: no passage in 0 documents of 1 files; nothing was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "--count must be at least 1, found 0"),
        ({"max_tokens": 0}, "--max-tokens must be at least 1, found 0"),
        ({"min_tokens": -1}, "--min-tokens must be from 0 to --max-tokens 256, found -1"),
        ({"min_tokens": 300}, "--min-tokens must be from 0 to --max-tokens 256, found 300"),
        ({"seed": -1}, "--seed must be at least 0, found -1"),
        ({"workers": 0}, "--workers must be at least 1, found 0"),
        ({"tokenizer": "nowhere"}, "nowhere: expected a directory with tokenizer.json"),
    ],
)
def test_wrong_options_are_one_clear_message(tmp_path, draw, capsys, options, message):
    (tmp_path / "c.jsonl").write_text('{"text": "Ann sings."}\n')
    assert draw(tmp_path / "c.jsonl", **options) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_wrong_files_are_named(tmp_path, draw, capsys):
    good = tmp_path / "c[1].jsonl"
    good.write_text(json.dumps({"text": "Ann lives in Oslo and sings in a choir on most days of the week."}))
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "c.parquet")
    assert draw(good, output=tmp_path / "out" / "o.jsonl") == 0
    for arguments, message in [
        ((good, "no*.jsonl"), "--input no*.jsonl: no such file"),
        ((tmp_path,), f"--input {tmp_path}: a directory"),
        ((tmp_path / "c.parquet",), f'{tmp_path / "c.parquet"}: no column "text"; the columns are body'),
    ]:
        capsys.readouterr()
        assert draw(*arguments) == 1
        assert f"error: {message}" in capsys.readouterr().err
    assert draw(tmp_path / "*.jsonl", output=good) == 1
    assert "is one of the files of --input" in capsys.readouterr().err


def test_a_killed_run_leaves_nothing_half_done(tmp_path, draw, documents, llama_tokenizer_path):
    (path,) = write_corpus(tmp_path / "corpus", documents, 1, ".jsonl")
    output = tmp_path / "killed" / "passages.jsonl"
    command = [sys.executable, "-m", "data_prep.passages", "--input", str(path), "--output", str(output)]
    command += ["--tokenizer", str(llama_tokenizer_path), "--workers", "1", "--count", "200"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        # it has read the corpus, and goes on to draw and write.
        assert process.stderr and b"reading" in process.stderr.readline()
        os.kill(process.pid, signal.SIGKILL)
    assert draw(path, count=200) == 0
    whole = (tmp_path / "passages.jsonl").read_bytes()
    assert not output.exists() or output.read_bytes() == whole
    assert draw(path, count=200, output=output) == 0
    assert output.read_bytes() == whole


def test_help_and_missing_arguments(capsys):
    for arguments, code in ((["--help"], 0), ([], 2)):
        with pytest.raises(SystemExit) as left:
            run_command(passages.main, arguments)
        assert left.value.code == code
    assert "--per-source" in capsys.readouterr().out
