"""Why a request brought no answer, and what follows: try again, give the passage up, or stop the run."""

import email.utils
import re
import time
from collections.abc import Mapping
from typing import Any, Literal

import httpx2
import openai

from data_prep.teacher.job import MalformedReplyError

Verdict = Literal["retry", "limited", "failed", "refused", "stop"]

# What is wrong with one passage, and will be wrong with it the next time.
PASSAGE_CODES = {"context_length_exceeded", "content_policy_violation", "content_filter", "string_above_max_length"}
# What is wrong with every request.
STOP_CODES = {"insufficient_quota", "billing_hard_limit_reached", "model_not_found", "invalid_api_key"}
STOP_STATUSES = {401, 402, 403, 404}
RETRY_STATUSES = {408, 409, 425, 429}
ADVICE = {
    401: "set OPENAI_API_KEY to a key that this server takes",
    403: "this key may not use this model here",
    404: "check --model and --base-url",
}
DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class TeacherFault(Exception):  # noqa: N818  it is a finding about a request, and not always an error of anybody
    """A request without an answer.

    `verdict`: "retry" it, "limited" by a rate (retry it, and slow down), "failed" (the same request would
    fail again now), "refused" (this passage always will be), or "stop" the run. `wait` is how many seconds the
    server asks to wait, if it does. `maybe_billed`: the answer was lost on the way, so the server may have
    counted it. `status` is the HTTP status, 0 if there was none.
    """

    def __init__(
        self, verdict: Verdict, message: str, wait: float | None = None, maybe_billed: bool = False, status: int = 0
    ):
        super().__init__(message)
        self.verdict, self.wait, self.maybe_billed, self.status = verdict, wait, maybe_billed, status

    def said_as(self, message: str) -> "TeacherFault":
        """The same fault in other words."""
        return TeacherFault(self.verdict, message, self.wait, self.maybe_billed, self.status)


def fault_of(error: Exception) -> TeacherFault:
    """What an exception of the client means."""
    if isinstance(error, openai.APIStatusError):
        return status_fault(error.status_code, error.body, error.response.headers)
    if isinstance(error, MalformedReplyError):
        return TeacherFault("retry", str(error), maybe_billed=True)
    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return TeacherFault("retry", "no answer within the time limit (--timeout)", maybe_billed=True)
    cause = error.__cause__
    # a connection that never stood carried no request.
    sent = not isinstance(cause, httpx2.ConnectError)
    return TeacherFault("retry", f"connection failed: {cause or error}", maybe_billed=sent)


def status_fault(status: int, body: Any, headers: Mapping[str, str]) -> TeacherFault:
    """What an HTTP status with its error object means; also for the replies inside a batch."""
    inner = body.get("error", body) if isinstance(body, dict) else {}
    inner = inner if isinstance(inner, dict) else {"message": inner}
    code = str(inner.get("code") or inner.get("type") or "")
    said = f"HTTP {status}{f' {code}' if code else ''}: {inner.get('message') or body or ''}"
    if status in STOP_STATUSES or code in STOP_CODES:
        advice = ADVICE.get(status)
        if code == "insufficient_quota":
            advice = "the account has no credit left; what was answered is kept, so pay and run the same command again"
        return TeacherFault("stop", f"{advice}; the server says: {said}" if advice else said, status=status)
    if code in PASSAGE_CODES or status == 413 or "maximum context length" in said:
        return TeacherFault("refused", said, status=status)
    if status == 429:
        return TeacherFault("limited", said, retry_after(headers), status=status)
    if status in RETRY_STATUSES or status >= 500:
        return TeacherFault("retry", said, retry_after(headers), status=status)
    return TeacherFault("failed", said, status=status)


def raise_error_in(body: Any) -> None:
    """Raise the fault that a reply with status 200 tells of: some servers put an error object where choices belong."""
    if isinstance(body, dict) and body.get("error") and not body.get("choices"):
        # as a server's error, which may pass, unless its code says more.
        raise status_fault(500, body, {})


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait (RFC 9110, section 10.2.3: a number or a date); None if it says nothing."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            seconds = _seconds_until(value)
        if 0 <= seconds < float("inf"):
            return seconds
    return None


def _seconds_until(date: str) -> float:
    """Seconds until an HTTP date; negative if it is none."""
    parsed = email.utils.parsedate_tz(date)
    try:
        return email.utils.mktime_tz(parsed) - time.time() if parsed else -1.0
    except (ValueError, OverflowError):
        return -1.0


def exhausted_for(headers: Mapping[str, str]) -> float:
    """Seconds until the server takes another request, by its rate-limit headers; 0 if one is left now."""
    waits = [0.0]
    for what in ("requests", "tokens"):
        left, reset = headers.get(f"x-ratelimit-remaining-{what}"), headers.get(f"x-ratelimit-reset-{what}")
        if left is not None and reset is not None and left.strip() == "0":
            waits.append(sum(float(count) * UNIT_SECONDS[unit] for count, unit in DURATION.findall(reset)))
    return max(waits)
