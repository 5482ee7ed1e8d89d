"""How long a passage and its conversation are, in words or in a tokenizer's tokens."""

from collections.abc import Callable

from uner_jax.records import Conversation
from uner_jax.template import encode_conversation
from uner_jax.tokenizer import Tokenizer

# (text of the passage, its conversation) -> (length of the passage, length of the conversation)
Measure = Callable[[str, Conversation], tuple[int, int]]


def in_words(text: str, conversation: Conversation) -> tuple[int, int]:
    """Lengths in words, which are what stands between spaces; of a conversation, those of its turns."""
    return len(text.split()), sum(len(turn["value"].split()) for turn in conversation["conversations"])


def in_tokens(tokenizer: Tokenizer) -> Measure:
    """Lengths in tokens; of a conversation, with the template and the ends of turns, as it is trained on."""

    def measure(text: str, conversation: Conversation) -> tuple[int, int]:
        return len(tokenizer.encode(text)), len(encode_conversation(conversation, tokenizer)[0])

    return measure
