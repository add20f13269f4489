"""OpenAI's completions protocol: what a request must look like, and what is answered. Pure: no I/O."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass
from typing import Any

from examples.server import vocabulary

MODEL = "wna16-moe-small"
DEFAULT_MAX_TOKENS = 16


class RequestError(Exception):
    """A request that cannot be served as it is; `status` is HTTP's, the rest goes into OpenAI's error object."""

    def __init__(self, message: str, param: str | None = None, *, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


@dataclass(frozen=True)
class Completion:
    """A request for a completion, checked."""

    prompt: tuple[int, ...]
    max_tokens: int
    stream: bool
    include_usage: bool


def parse(body: bytes, max_model_len: int) -> Completion:
    """Read a request's body; RequestError says what is wrong with it. What it asks for beyond this is ignored.

    Sampling is always greedy.
    """
    told = _json_object(body)
    _check_model(told.get("model"))
    if told.get("n", 1) not in (1, None):
        raise RequestError("only n=1 is supported", "n")
    prompt = _tokens(told.get("prompt"))
    max_tokens = _max_tokens(told.get("max_tokens"))
    _check_length(len(prompt), max_tokens, max_model_len)
    stream = _flag(told.get("stream"), "stream")
    return Completion(prompt, max_tokens, stream, _include_usage(told.get("stream_options"), stream))


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        told = json.loads(body)
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {error}") from error
    if not isinstance(told, dict):
        raise RequestError("the body is not a JSON object")
    return told


def _check_model(model: object) -> None:
    if not isinstance(model, str):
        raise RequestError("you must provide a model", "model")
    if model != MODEL:
        raise RequestError(
            f"the model {model!r} does not exist; this server has {MODEL!r}",
            "model",
            status=404,
            code="model_not_found",
        )


def _tokens(prompt: object) -> tuple[int, ...]:
    """Return a prompt's tokens, given as text or as token ids."""
    if isinstance(prompt, str):
        tokens = vocabulary.encode(prompt)
    elif isinstance(prompt, list) and all(type(token) is int for token in prompt):
        tokens = prompt
    else:
        raise RequestError("prompt must be one text, or one list of token ids", "prompt")
    if not tokens:
        raise RequestError("prompt must not be empty", "prompt")
    for token in tokens:
        if not 0 <= token < vocabulary.SIZE:
            raise RequestError(f"token id {token} in prompt is not between 0 and {vocabulary.SIZE - 1}", "prompt")
    return tuple(tokens)


def _max_tokens(value: object) -> int:
    if value is None:
        return DEFAULT_MAX_TOKENS
    if type(value) is not int or value < 1:
        raise RequestError(f"max_tokens must be an integer of at least 1, not {value!r}", "max_tokens")
    return value


def _check_length(prompt: int, completion: int, most: int) -> None:
    if prompt + completion > most:
        raise RequestError(
            f"this model's maximum context length is {most} tokens, but {prompt + completion} were asked for: "
            f"{prompt} in the prompt and {completion} for the completion",
            code="context_length_exceeded",
        )


def _flag(value: object, name: str) -> bool:
    if value not in (None, True, False):
        raise RequestError(f"{name} must be true or false, not {value!r}", name)
    return bool(value)


def _include_usage(options: object, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise RequestError("stream_options is only allowed when stream is true", "stream_options")
    if not isinstance(options, dict):
        raise RequestError("stream_options must be an object", "stream_options")
    return _flag(options.get("include_usage"), "stream_options.include_usage")


class Answer:
    """The objects that answer one request."""

    def __init__(self, request: Completion) -> None:
        self.request = request
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}

    def whole(self, tokens: list[int]) -> dict[str, Any]:
        """Return the answer to a request that does not stream."""
        return {**self._with(_choice(tokens, finished=True)), "usage": self._usage(len(tokens))}

    def chunk(self, token: int, *, finished: bool) -> dict[str, Any]:
        """Return one event of a stream."""
        return self._with(_choice([token], finished=finished))

    def usage_chunk(self) -> dict[str, Any]:
        """Return the event that ends a stream whose reader has asked for the usage."""
        return {**self._head, "model": MODEL, "choices": [], "usage": self._usage(self.request.max_tokens)}

    def _with(self, choice: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "model": MODEL, "choices": [choice]}

    def _usage(self, generated: int) -> dict[str, int]:
        prompt = len(self.request.prompt)
        return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


def _choice(tokens: list[int], *, finished: bool) -> dict[str, Any]:
    # The model has no token that ends a text.
    reason = "length" if finished else None
    return {"index": 0, "text": vocabulary.decode(tokens), "logprobs": None, "finish_reason": reason}


def models() -> dict[str, Any]:
    """Return the list of models."""
    return {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "examples"}]}


def error(message: str, status: int, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return OpenAI's error object."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
