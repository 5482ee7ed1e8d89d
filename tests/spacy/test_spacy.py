"""spaCy and datasets read what was exported for them, and the component finds what the extractor finds.

Runs in an environment of its own: make test-spacy.
"""

import json
import re
from collections import Counter

import datasets
import jax
import numpy as np
import pytest
import spacy
from hypothesis import given, settings
from hypothesis import strategies as st
from spacy.tokens import DocBin
from tiny_model import CONFIG

from uner_jax import Extractor
from uner_jax.export.documents import Choices
from uner_jax.export.formats import export
from uner_jax.export.losses import Loss
from uner_jax.extraction.engine import Engine, Generation
from uner_jax.model.parameters import abstract_model
from uner_jax.records import InputError, write_rows
from uner_jax.tokenizer import load_tokenizer
from uner_jax.weights.hf import write_hf

PIECES = (
    "Ada", " ", "  ", "\t", "\n", "\r\n", "\n\n", "\x85", "\u2028", "\xa0", "\0", "don't", "e\u0301", "हिन्दी",
    "東京都", "🎓👩‍👩‍👧", "𝒜lgebra", "well-known", "\ud800", "U.S.", "a@b.org", "\x1c",
)  # fmt: skip
LABELS = ("person", "family name", "личность", "𝒜", '"\x85\u2028&', "yes: no #", "\ud800", "\x7f\ufffe", "no", "~")


def entity(text, start, end, label="person", score=0.5):
    return {"start": start, "end": end, "text": text[start:end], "label": label, "score": score}


def record(text, *entities, **more):
    labels = sorted({found["label"] for found in entities})
    return {"id": "a", "text": text, "labels": labels, "entities": list(entities), "chunks": 1, "error": None} | more


@st.composite
def records(draw):
    text = draw(st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=10).map("".join))
    at = st.integers(0, len(text))
    ends = st.tuples(at, at).map(sorted).filter(lambda span: span[0] < span[1])
    spans = draw(st.lists(ends, max_size=6)) if text else []
    labels, scores = st.sampled_from(LABELS), st.sampled_from([0.25, 0.5, 0.75, 1.0])
    return record(text, *[entity(text, *span, draw(labels), draw(scores)) for span in spans], id=draw(st.text()))


choices = st.builds(Choices, st.booleans(), st.sampled_from(["split", "drop"]), language=st.sampled_from(["xx", "en"]))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    def run(rows, to, name, chosen=None):
        directory = tmp_path_factory.mktemp("export")
        write_rows(directory / "found.jsonl", rows)
        return directory / name, export(directory / "found.jsonl", to, directory / name, chosen)

    return run


def clean(text):
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def stripped(found):
    inner = found["text"].strip()
    start = found["start"] + found["text"].index(inner)
    return start, start + len(inner), clean(found["label"]), found["score"]


def spans_of(row):
    return Counter(stripped(found) for found in row["entities"] if found["text"].strip())


def spans_in(doc, key="uner"):
    group = doc.spans[key]
    return [(s.start_char, s.end_char, s.label_, score) for s, score in zip(group, group.attrs["scores"], strict=True)]


# ---- the exports


@settings(deadline=None, max_examples=60)
@given(st.lists(records(), max_size=3), choices)
def test_spacy_reads_its_documents(exported, rows, chosen):
    output, tally = exported(rows, "spacy", "docs.spacy", chosen)
    docs = list(DocBin().from_disk(output).get_docs(spacy.blank("xx").vocab))
    everything = chosen.partial == "split" and not chosen.flat
    for doc, row in zip(docs, rows, strict=True):
        assert (doc.text, doc.user_data["id"]) == (clean(row["text"]), clean(row["id"]))
        spans = Counter(spans_in(doc))
        assert spans == spans_of(row) if everything else spans <= spans_of(row)
        ents = [(e.start_char, e.end_char, e.label_) for e in doc.ents]
        assert set(ents) <= {span[:3] for span in spans}
        if chosen.flat:
            assert len(ents) == spans.total()
    assert tally.expressed == sum(len(doc.spans["uner"]) for doc in docs)
    assert tally.losses[Loss.NOT_ENTS] == tally.expressed - sum(len(doc.ents) for doc in docs)


def test_an_unknown_language_is_named(exported):
    with pytest.raises(InputError, match="--language 'qq'"):
        exported([record("Ada")], "spacy", "docs.spacy", Choices(language="qq"))


@settings(deadline=None, max_examples=10)
@given(st.lists(records(), min_size=1, max_size=3), st.sets(st.text(min_size=1), max_size=3))
def test_datasets_reads_the_tags_and_their_names(exported, rows, labels):
    rows[0]["labels"] += sorted(labels)
    output, _ = exported(rows, "hf", "set")
    loaded = datasets.load_dataset(str(output), cache_dir=str(output.parent / "cache"), split="train")
    names = loaded.features["ner_tags"].feature.names
    assert names == json.loads((output / "labels.json").read_text(encoding="utf-8"))
    written = [json.loads(line) for line in (output / "train.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert loaded.to_list() == written
    assert loaded.features["ner_tags"].feature.num_classes == len(names)


# ---- the component

TEXTS = ["Ada Lovelace met Babbage.", "Nobody here.", "", "Lovelace's notes, and the Bank of England's 😀 vault."]
KNOWN = {"person": ["Ada Lovelace", "Babbage", "Lovelace"], "bank": ["Bank of England"], "country": ["England", "land"]}
LOG_PROB = {"person": -0.01, "bank": -0.02, "country": -0.3}


@pytest.fixture(scope="module")
def model_path(shared_data, tmp_path_factory):
    tokenizer = load_tokenizer(shared_data / "models" / "stories260K" / "tok512.model")
    path = tmp_path_factory.mktemp("model") / "hf"
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_model(CONFIG))
    write_hf(zeros, tokenizer, path)
    return path


@pytest.fixture
def extractor(model_path, monkeypatch):
    """An extractor whose engine lists the names of KNOWN that stand in the passage."""
    found = Extractor.from_pretrained(model_path)
    tokenizer = found._tokenizer

    def answers(self, asked):
        for number, request in enumerate(asked):
            passage, question = tokenizer.decode(request.context), tokenizer.decode(request.question)
            (label,) = [label for label in KNOWN if f"What describes {label} in the text?" in question]
            listed = json.dumps([name for name in KNOWN[label] if name in passage], ensure_ascii=False)
            ids = tuple(tokenizer.encode(listed))
            yield number, Generation(ids, (LOG_PROB[label],) * len(ids), True)

    monkeypatch.setattr(Engine, "generate", answers)
    return found


@pytest.fixture
def nlp(model_path, extractor):
    pipeline = spacy.blank("en")
    pipeline.add_pipe("uner", config={"model": str(model_path), "labels": list(KNOWN)})
    return pipeline


def test_documents_have_the_entities_of_the_extractor(nlp, extractor):
    for text in TEXTS:
        doc, expected = nlp(text), extractor.predict_entities(text, list(KNOWN))
        assert doc._.uner == expected
        exact = {(e["start"], e["end"], e["label"], e["score"]) for e in expected if e["text"] != "land"}
        assert exact <= set(spans_in(doc))
        assert len(set(spans_in(doc))) == len(spans_in(doc))


def test_an_entity_inside_of_a_token_is_widened_and_the_entities_are_flat(nlp):
    doc = nlp(TEXTS[3])
    assert ("England", "country") in [(span.text, span.label_) for span in doc.spans["uner"]]
    assert "land" not in [span.text for span in doc.spans["uner"]]
    assert "land" in [entity["text"] for entity in doc._.uner]
    assert [(e.text, e.label_) for e in doc.ents] == [("Lovelace", "person"), ("Bank of England", "bank")]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_a_stream_gives_the_same_documents(nlp, batch_size):
    alone = [nlp(text) for text in TEXTS]
    together = list(nlp.pipe(TEXTS, batch_size=batch_size))
    assert [spans_in(doc) for doc in together] == [spans_in(doc) for doc in alone]
    ents = [[(e.start, e.end, e.label_) for e in doc.ents] for doc in together]
    assert ents == [[(e.start, e.end, e.label_) for e in doc.ents] for doc in alone]


def test_entities_of_another_component_stay(nlp):
    ruler = nlp.add_pipe("entity_ruler", before="uner")
    ruler.add_patterns([{"label": "ORG", "pattern": "England"}])
    doc = nlp(TEXTS[3])
    assert [(e.text, e.label_) for e in doc.ents] == [("Lovelace", "person"), ("England", "ORG")]
    assert "Bank of England" in [span.text for span in doc.spans["uner"]]


def test_a_pipeline_is_saved_and_loaded(nlp, tmp_path):
    nlp.to_disk(tmp_path / "pipeline")
    again = spacy.load(tmp_path / "pipeline")
    assert [spans_in(doc) for doc in again.pipe(TEXTS)] == [spans_in(doc) for doc in nlp.pipe(TEXTS)]


def test_scores_and_entities_survive_a_file(nlp):
    doc = nlp(TEXTS[0])
    (back,) = (
        DocBin(store_user_data=True).from_bytes(DocBin(docs=[doc], store_user_data=True).to_bytes()).get_docs(nlp.vocab)
    )
    assert spans_in(back) == spans_in(doc) and list(back._.uner) == doc._.uner


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"labels": []}, "needs labels"),
        ({"model": "nowhere"}, "nowhere"),
        ({"labels": [" "]}, "a label must be a non-empty string"),
    ],
)
def test_what_is_wrong_with_the_config_is_said(model_path, config, message):
    with pytest.raises(InputError, match=message):
        spacy.blank("en").add_pipe("uner", config={"model": str(model_path), "labels": ["person"]} | config)
