"""The prompt as a chat template: what `tokenizer.apply_chat_template` of transformers makes ids with.

The messages are the turns of a conversation as they stand in the published form: user says "Text: ..." (see
`template.passage_turn`), assistant acknowledges, then user asks and assistant answers.
"""

import json
from itertools import product
from pathlib import Path

import tokenizers

from uner_jax.template import (
    ACKNOWLEDGEMENT,
    Noun,
    encode_context,
    encode_question,
    opening,
    passage_turn,
    question_turn,
)
from uner_jax.tokenizer import Tokenizer

TEMPLATE_NAME = "chat_template.jinja"

# A passage may hold the text of a special token. Here it stays text, but transformers would make the token of it, and
# so end the turn: the template refuses it. What begins a turn after an EOS depends on the tokenizer: see `_gaps`.
TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
{{- raise_exception('messages must be of user and assistant in turn, and begin with the passage of the user') -}}
{%- endif -%}
{%- for token in SPECIAL -%}
{%- if token in message['content'] -%}
{{- raise_exception('a message holds the text of the special token ' + token) -}}
{%- endif -%}
{%- endfor -%}
{%- if message['role'] == 'assistant' -%}
{{- ' ASSISTANT: ' + message['content'] + eos_token -}}
{%- elif loop.first -%}
{{- BOSOPENING + message['content'] -}}
{%- else -%}
{{- GAP + message['content'] -}}
{%- endif -%}
{%- if loop.last and add_generation_prompt and message['role'] == 'user' -%}
{{- ' ASSISTANT:' -}}
{%- endif -%}
{%- endfor -%}
"""


def chat_template(tokenizer: Tokenizer, noun: Noun = "text") -> str | None:
    """The Jinja template whose ids are those of `uner_jax.template`; None if the tokenizer allows none.

    With the special tokens of the vocabulary in it, it is for this tokenizer only.
    """
    gaps = _gaps(tokenizer, noun)
    if gaps is None:
        return None
    added = tokenizer.backend.get_added_tokens_decoder().values()
    replacements = {
        "BOS": "bos_token + " if tokenizer.adds_bos else "",
        "OPENING": json.dumps(f"{gaps[0]}{opening(noun)}"),
        "GAP": json.dumps(f"{gaps[1]}USER: "),
        # the last, as a token may be called BOS.
        "SPECIAL": json.dumps([token.content for token in added if token.special], ensure_ascii=False),
    }
    template = TEMPLATE
    for name, text in replacements.items():
        template = template.replace(name, text)
    return template


def noun_of(template: str) -> Noun:
    """What such a template calls the passage."""
    return "paragraph" if opening("paragraph") in template else "text"


def _gaps(tokenizer: Tokenizer, noun: Noun) -> tuple[str, str] | None:
    """What stands behind BOS and behind EOS in the one string, that its ids are those of the turns encoded apart.

    SentencePiece puts a space before each piece of text, or before a text that begins with no special token.
    """
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
    backend.encode_special_tokens = False
    passage, question = passage_turn("Ada met Grace."), question_turn("person")
    expected = encode_context(passage, tokenizer, noun=noun) + encode_question(question, tokenizer)
    bos = backend.id_to_token(tokenizer.bos_id) if tokenizer.adds_bos and tokenizer.bos_id is not None else ""
    eos = backend.id_to_token(tokenizer.eos_id)
    turns = f"{opening(noun)}{passage} ASSISTANT: {ACKNOWLEDGEMENT}{eos}", f"USER: {question} ASSISTANT:"
    for behind_bos, behind_eos in product(("", " "), repeat=2):
        text = f"{bos}{behind_bos}{turns[0]}{behind_eos}{turns[1]}"
        if backend.encode(text, add_special_tokens=False).ids == expected:
            return behind_bos, behind_eos
    return None


def write_prompt(directory: Path, tokenizer: Tokenizer, noun: Noun) -> bool:
    """Write the tokenizer, with the prompt as its chat template; False if it allows no such template."""
    tokenizer.save(directory)
    template = chat_template(tokenizer, noun)
    if template is not None:
        (directory / TEMPLATE_NAME).write_text(template, encoding="utf-8")
    return template is not None
