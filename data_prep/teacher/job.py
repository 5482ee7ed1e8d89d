"""A labelling job: what is asked about a passage, and the key under which the answer is kept."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from data_prep.teacher.prompts import Prompt

# The fields of a request that bound its answer: the first is OpenAI's newer name, the second everybody's.
ANSWER_LIMITS = "max_completion_tokens", "max_tokens"


@dataclass(frozen=True)
class Job:
    """One teacher, one prompt and one set of parameters: together with a passage they are a request."""

    model: str
    prompt: Prompt
    parameters: dict[str, Any]

    def body(self, passage: str) -> dict[str, Any]:
        """The request of the chat completions API."""
        form = self.prompt.response_format()
        extra = {} if form is None else {"response_format": form}
        return {"model": self.model, "messages": self.prompt.messages(passage), **self.parameters, **extra}

    def key(self, passage: str) -> str:
        """A hash of all that decides the answer: model, prompt, parameters and passage."""
        canonical = json.dumps(self.body(passage), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def answer_limit(self) -> int | None:
        """The most tokens of an answer that a request asks for; None if it asks for no limit."""
        return max((self.parameters[name] for name in ANSWER_LIMITS if name in self.parameters), default=None)


@dataclass(frozen=True)
class Reply:
    """What the teacher said to one request; `finish_reason` "refused" and "refusal" are a no.

    Token counts are None where the server sends no usage.
    """

    content: str
    finish_reason: str
    model: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class MalformedReplyError(ValueError):
    """A reply that is no chat completion."""


def read_reply(body: Any) -> Reply:
    """The reply in a chat completion object; MalformedReplyError if there is none in it."""
    try:
        choice = body["choices"][0]
        message = choice["message"]
        content, reason = message.get("content"), choice.get("finish_reason")
        if content is None and message.get("refusal"):
            content, reason = message["refusal"], "refusal"
    except (LookupError, TypeError, AttributeError) as error:
        raise MalformedReplyError(f"no message in the reply {json.dumps(body)}") from error
    if content is None and reason == "content_filter":
        content = ""
    if isinstance(content, list):
        # the newer form: parts, each with its type.
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        texts = [text for text in parts if isinstance(text, str)]
        content = "".join(texts) if texts else None
    if not isinstance(content, str):
        raise MalformedReplyError(f"the message has no content: {json.dumps(message)}")
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
        # half of a surrogate pair fits into no file.
        content.encode("utf-8", "replace").decode("utf-8"),
        str(reason or "stop"),
        str(body.get("model") or ""),
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 <= value < 2**40 else None
