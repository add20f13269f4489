"""Text to tokens and back: a token is a byte of UTF-8, and the model says printable ASCII only."""

from __future__ import annotations

from collections.abc import Iterable

SIZE = 256
PRINTABLE = range(32, 127)


def encode(text: str) -> list[int]:
    """Return a text's tokens."""
    return list(text.encode())


def decode(tokens: Iterable[int]) -> str:
    """Return the text of tokens that the model has chosen."""
    return bytes(tokens).decode("ascii")
