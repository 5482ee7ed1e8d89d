"""Label Studio's tasks with predictions, and the labelling interface that they need.

Its editor counts code points, as we do; it draws lines from line feeds alone, so a carriage return is
written as a space (before a line feed) or a line feed, which leaves all offsets as they are.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.sax.saxutils import quoteattr

from uner_jax.export.documents import Choices, Document, Survey
from uner_jax.export.losses import Loss, Losses
from uner_jax.export.output import text_file, write_array

# what XML 1.0 cannot hold, in no spelling.
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write(documents: Iterable[Document], survey: Survey, output: Path, choices: Choices, losses: Losses) -> None:
    """Write the tasks as one JSON array, and `.xml` beside it: the interface, with every label."""
    write_array(output, _tasks(documents, losses))
    labels = "".join(f"    <Label value={quoteattr(_NO_XML.sub('', label))}/>\n" for label in survey.labels)
    with text_file(output.with_suffix(".xml")) as file:
        file.write('<View>\n  <Labels name="label" toName="text">\n')
        file.write(f'{labels}  </Labels>\n  <Text name="text" value="$text"/>\n</View>\n')


def _tasks(documents: Iterable[Document], losses: Losses) -> Iterator[dict]:
    for document in documents:
        losses[Loss.CARRIAGE] += document.text.count("\r")
        text = _one_kind_of_line_end(document.text)
        regions = [_region(number, entity, text) for number, entity in enumerate(document.entities)]
        prediction = {"model_version": "uner", "result": regions}
        if regions:
            prediction["score"] = min(region["score"] for region in regions)
        yield {"data": {"text": text, "id": document.id}, "predictions": [prediction]}


def _one_kind_of_line_end(text: str) -> str:
    return text.replace("\r\n", " \n").replace("\r", "\n")


def _region(number: int, entity: dict, text: str) -> dict:
    start, end = entity["start"], entity["end"]
    return {
        "id": f"e{number}",
        "from_name": "label",
        "to_name": "text",
        "type": "labels",
        "score": entity["score"],
        "value": {"start": start, "end": end, "text": text[start:end], "labels": [entity["label"]]},
    }
