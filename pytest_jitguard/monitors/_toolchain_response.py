"""Command lines whose arguments stand in a file: `@all.rsp` of gcc, clang and ld, `--options-file` of nvcc."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

_open = open
"""Not looked up at the time: tests replace `builtins.open`."""

_LONGEST = 2_000_000
_DEEPEST = 8
_OPTIONS_FILE = ("--options-file", "-optf")
_WORD = re.compile(r"""(?:"(?:\\.|[^"\\])*"?|'(?:\\.|[^'\\])*'?|\\.|[^\s"'\\])+""", re.DOTALL)
_PIECE = re.compile(r"""\\(.)|"((?:\\.|[^"\\])*)"?|'((?:\\.|[^'\\])*)'?|([^\s"'\\]+)""", re.DOTALL)


def is_elsewhere(words: Sequence[str]) -> bool:
    """Tell whether a command line names a file with arguments."""
    return any(word.startswith(("@", *_OPTIONS_FILE)) for word in words)


def expanded(words: Sequence[str], folder: str) -> list[str]:
    """Return a command line with the arguments that stand in files, named relative to the folder it is started in.

    A file that is not there stays the word that it is, as for the compilers. Files may name others, up to a depth; of
    a file that is too long, what comes after its first two million bytes is not read.
    """
    return list(_expanded(words, folder, _DEEPEST))


def _expanded(words: Sequence[str], folder: str, deep: int) -> Iterator[str]:
    rest = iter(words)
    for word in rest:
        option, _, names = word.partition("=")
        if option in _OPTIONS_FILE:
            for name in (names or next(rest, "")).split(","):
                yield from _inside(name, name, folder, deep)
        elif word.startswith("@"):
            yield from _inside(word, word[1:], folder, deep)
        else:
            yield word


def _inside(word: str, name: str, folder: str, deep: int) -> Iterator[str]:
    found = _arguments(Path(folder) / name) if deep and name else None
    if found is None:
        yield word
    else:
        yield from _expanded(found, folder, deep - 1)


def _arguments(file: Path) -> list[str] | None:
    """Return the words of a response file by GNU's rules, None if it cannot be read."""
    try:
        if not file.is_file():  # not a pipe, which we would empty
            return None
        with _open(file, encoding="utf-8", errors="surrogateescape") as text:
            return [_unquoted(word) for word in _WORD.findall(text.read(_LONGEST))]
    except (OSError, ValueError):
        return None


def _unquoted(word: str) -> str:
    def plain(piece: re.Match[str]) -> str:
        escaped, double, single, bare = piece.groups()
        inside = double if double is not None else single
        return str(escaped or bare or re.sub(r"\\(.)", r"\1", inside or "", flags=re.DOTALL))

    return _PIECE.sub(plain, word)
