"""What a reader should know of an extraction besides its entities."""

from uner_jax.extraction.extractor import Extraction


def remarks(found: Extraction) -> list[str]:
    """How the text was read and what was lost, a phrase each; nothing is said of what went as it should."""
    said = []
    if found.chunks > 1:
        said.append(f"read in {found.chunks} windows")
    if found.ungrounded:
        said.append(f"left out {_answers(found.ungrounded)} of the model that the text does not have")
    if found.cut:
        said.append(f"{_answers(found.cut)} cut at the token limit")
    return said


def _answers(number: int) -> str:
    return f"{number:,} {'answer' if number == 1 else 'answers'}"
