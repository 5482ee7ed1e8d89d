"""Open named-entity recognition with a small LLaMA, in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uner_jax.extraction.extractor import Extractor

__all__ = ["Extractor"]


def __getattr__(name: str) -> Any:
    """Import the extractor when it is asked for: the data steps start without it."""
    if name == "Extractor":
        from uner_jax.extraction.extractor import Extractor

        return Extractor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
