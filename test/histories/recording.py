"""A client of the gateway whose calls are recorded."""

from __future__ import annotations

from collections.abc import Callable
from http.client import HTTPException

import msgspec
from e2e import client
from e2e.client import Answer
from histories.model import Invocation, Ok, Outcome, Refused, Unknown
from histories.recorder import Recorder


class Recording:
    """`post` and `get` as in e2e.client; `name` says who called."""

    def __init__(self, recorder: Recorder, name: str) -> None:
        self._recorder = recorder
        self._name = name

    def post(self, path: str, key: str | None = None) -> Answer:
        """Post, with an Idempotency-Key if one is given; no answer raises OSError or HTTPException."""
        return self._call(Invocation(self._name, "POST", path, key), lambda: client.post(path, key))

    def get(self, path: str) -> Answer:
        """Get."""
        return self._call(Invocation(self._name, "GET", path), lambda: client.get(path))

    def _call(self, invocation: Invocation, call: Callable[[], Answer]) -> Answer:
        number = self._recorder.began(invocation)
        try:
            answer = call()
        except (OSError, HTTPException):
            self._recorder.ended(number, Unknown())
            raise
        self._recorder.ended(number, outcome_of(answer.status, answer.body))
        return answer


def outcome_of(status: int, body: bytes) -> Outcome:
    """Return what an HTTP answer means (architecture.md, I4)."""
    fields = _fields(body)
    if 200 <= status < 300:
        return Ok(body.decode() if fields is None else fields)
    if 400 <= status < 500:
        return Refused(status, str((fields or {}).get("detail", "")))
    return Unknown()


def _fields(body: bytes) -> dict[str, object] | None:
    """Return the fields of a JSON object, or None if it is anything else."""
    try:
        return msgspec.json.decode(body, type=dict[str, object])
    except msgspec.DecodeError:
        return None
