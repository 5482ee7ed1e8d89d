"""A component of spaCy's pipelines: `nlp.add_pipe("uner", config={"model": PATH, "labels": [...]})`.

It needs the extra `spacy`, which finds this file by the entry point `spacy_factories`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from spacy.language import Language
from spacy.pipeline import Pipe
from spacy.tokens import Doc
from spacy.util import minibatch

from uner_jax.export.spacy_docs import mark
from uner_jax.extraction.extractor import Extractor
from uner_jax.records import InputError


@Language.factory("uner", assigns=["doc.ents", "doc.spans"])
def make_uner(
    nlp: Language,
    name: str,
    model: str,
    labels: list[str],
    dtype: str = "float32",
    batch_size: int = 32,
    max_new_tokens: int = 256,
    spans_key: str = "uner",
) -> "Uner":
    """Load the model and make the component.

    `model` is a Hugging Face directory, a checkpoint of ours or a GGUF file. `batch_size` counts the questions (a
    text and a label) that are answered at a time; how many documents come at a time `nlp.pipe` decides.
    """
    if not labels:
        raise InputError('the component "uner" needs labels: a list of entity types')
    extractor = Extractor.from_pretrained(model, dtype, batch_size, max_new_tokens)
    extractor.check("text", labels)
    return Uner(name, extractor, labels, spans_key)


class Uner(Pipe):
    """Fills `doc.spans["uner"]`, `doc.ents` and `doc._.uner`.

    `doc._.uner` has the entities as the extractor gives them, with their exact places. In `doc.spans` they are
    widened to whole tokens, each once, their scores in the group's `attrs["scores"]`; `doc.ents` has those that do
    not overlap, beside the entities that were there before.
    """

    def __init__(self, name: str, extractor: Extractor, labels: Iterable[str], spans_key: str = "uner"):
        self.name = name
        self._labels = tuple(labels)
        self._extractor = extractor
        self._spans_key = spans_key
        if not Doc.has_extension("uner"):
            Doc.set_extension("uner", default=None)

    @property
    def labels(self) -> tuple[str, ...]:
        """The entity types that are asked for."""
        return self._labels

    def __call__(self, doc: Doc) -> Doc:
        """Find the entities of one document."""
        return self._marked(doc, self._extractor.predict_entities(doc.text, self._labels))

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Find the entities of documents, `batch_size` of them together."""
        fail: Callable[..., None] = self.get_error_handler()
        for docs in minibatch(stream, batch_size):
            try:
                found = self._extractor.inference([doc.text for doc in docs], self._labels)
            except InputError as error:
                fail(self.name, self, docs, error)
                continue
            yield from map(self._marked, docs, found)

    def _marked(self, doc: Doc, entities: list[Any]) -> Doc:
        doc._.uner = [dict(entity) for entity in entities]
        spans = [_whole_tokens(doc, entity) for entity in entities]
        scores = [entity["score"] for entity in entities]
        chosen: dict[tuple[int, int, str], int] = {}
        # of several that are widened to one, the one that was not widened, else the best.
        exact = [len(entity["text"].strip()) == len(span.text) for entity, span in zip(entities, spans, strict=True)]
        for place in sorted(range(len(spans)), key=lambda place: (exact[place], scores[place])):
            span = spans[place]
            chosen[span.start, span.end, span.label_] = place
        places = sorted(chosen.values())
        mark(doc, [spans[place] for place in places], [scores[place] for place in places], self._spans_key)
        return doc


def _whole_tokens(doc: Doc, entity: Any) -> Any:
    # spaCy takes no entity that begins or ends with white space.
    inner = entity["text"].strip()
    start = entity["start"] + entity["text"].index(inner)
    return doc.char_span(start, start + len(inner), label=entity["label"], alignment_mode="expand")
