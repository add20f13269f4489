"""What a command line compiles, if it does: the rules by which the toolchain's net tells a compile from a question."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


class Command(NamedTuple):
    """A compiler's command line that writes a file: the program's bare name, and the output as the command names it."""

    program: str
    output: str
    words: tuple[str, ...]

    @property
    def stem(self) -> str:
        """The output's name without folder and suffixes: what the event is called."""
        name = self.output.rpartition("/")[2]
        return name.partition(".")[0] or name


class Build(NamedTuple):
    """A run of ninja, which may find nothing to do: the folder that it works in (empty: where it is started)."""

    folder: str
    words: tuple[str, ...]


_VERSION = r"(-\d+(\.\d+)*)?"
_COMPILERS = re.compile(
    rf"(?P<cc>([\w.]+-)*(gcc|g\+\+|cc|c\+\+|clang|clang\+\+|hipcc|amdclang|amdclang\+\+|icx|icpx){_VERSION}|hipcc\.bin)"
    r"|(?P<cuda>nvcc|ptxas(-\w+)?|cicc|cudafe\+\+|nvlink|fatbinary|tileiras|nvrtc_compile)"
    rf"|(?P<link>(ld\.)?lld|ld\.lld{_VERSION}|cc1|cc1plus)"
)
_LAUNCHERS = frozenset({"ccache", "sccache", "distcc", "env", "nice", "nohup", "time", "timeout", "taskset", "setsid"})
_SHELLS = frozenset({"sh", "bash", "dash", "zsh"})

_ASKS = frozenset(
    {"-E", "-M", "-MM", "-fsyntax-only", "-###", "-Wl,-t", "--version", "-V", "-dumpversion", "-dumpmachine"}
    | {"--help", "-dryrun", "--dryrun", "--preprocess", "-dumpspecs", "-dumpfullversion", "--target-help"}
    | {"-list-gpu-code", "--list-gpu-code", "--list-gpu-arch", "-list-gpu-arch", "-cc1-version"}
)
"""Options that make a compiler answer, or check, and write nothing of its own."""

_ASKS_LIKE = re.compile(r"--?(print-|help)|-Wl,(-t|--trace|--verbose)\b")
_OUTPUT = frozenset({"-o", "--output-file", "-output-file", "--output", "--create", "--cuda-host-output"})
_IMPLIED = {"-c": ".o", "--compile": ".o", "-cubin": ".cubin", "--cubin": ".cubin", "-ptx": ".ptx", "--ptx": ".ptx"}
_IMPLIED_BY_CC = {**_IMPLIED, "-S": ".s"}
_IMPLIED_BY_CUDA = {**_IMPLIED, "-fatbin": ".fatbin", "--fatbin": ".fatbin", "-dc": ".o", "--device-c": ".o"}
_SOURCES = frozenset({"c", "cc", "cpp", "cxx", "C", "c++", "cu", "hip", "s", "S", "o"})
_TAKES_VALUE = frozenset({"-I", "-D", "-L", "-l", "-x", "-isystem", "-include", "-Xcompiler", "-Xlinker", "-MF", "-MT"})
_NOWHERE = frozenset({"/dev/null", "/dev/stdout", "/dev/stderr", "-"})
_QUESTIONS_TO_NINJA = frozenset({"--version", "-h", "--help", "-t", "-n"})


def command_of(argv: Any, executable: Any = None) -> Command | Build | None:
    """Tell what a command line builds; None if it builds nothing, or is no command line. Never raises.

    `argv` may be a list or one text for a shell. What a shell or a launcher (ccache, env) starts is looked through.
    """
    try:
        return _of_words(_words(argv), _word(executable) if executable else "", deep=3)
    except (TypeError, ValueError):
        return None


def _words(argv: Any) -> list[str]:
    if isinstance(argv, (str, bytes, os.PathLike)):
        return [_word(argv)]
    return [_word(word) for word in argv]


def _word(word: Any) -> str:
    return os.fsdecode(word)


def _of_words(words: Sequence[str], executable: str, deep: int) -> Command | Build | None:
    words = _without_launchers(words)
    if not words or not deep:
        return None
    name = words[0].rpartition("/")[2]
    if name in _SHELLS and "-c" in words[:3]:
        script = words[words.index("-c") + 1 :]
        return _first(_of_script(script[0], deep - 1)) if script else None
    if name in ("ninja", "ninja-build"):
        return _of_ninja(words)
    return _of_compiler(words, name) or (_of_compiler(words, executable.rpartition("/")[2]) if executable else None)


def script_command(script: Any) -> Command | Build | None:
    """Tell what a text for a shell builds first (`os.system`); None if nothing. Never raises."""
    try:
        return _first(_of_script(_word(script), deep=2))
    except (TypeError, ValueError):
        return None


def _of_script(script: str, deep: int) -> Iterator[Command | Build]:
    lexer = shlex.shlex(script, posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace, lexer.whitespace_split = " \t\r", True
    words: list[str] = []
    for token in [*lexer, ";"]:
        if not token.strip("();<>|&\n"):
            found = _of_words(words, "", deep)
            words = []
            if found:
                yield found
        else:
            words.append(token)


def _first(found: Iterator[Command | Build]) -> Command | Build | None:
    return next(found, None)


def _without_launchers(words: Sequence[str]) -> Sequence[str]:
    """Leave out what only starts the compiler: launchers, their options and the variables that they set."""
    start = 0
    while (start < len(words) and words[start].rpartition("/")[2] in _LAUNCHERS) or _is_assignment(words, start):
        start += 1
        while start < len(words) and (words[start].startswith("-") or words[start].isdecimal()):
            start += 1
    return words[start:]


def _is_assignment(words: Sequence[str], at: int) -> bool:
    return at < len(words) and re.match(r"[A-Za-z_]\w*=", words[at]) is not None


def _of_ninja(words: Sequence[str]) -> Build | None:
    if _QUESTIONS_TO_NINJA & set(words):
        return None
    return Build(_value_of(words, "-C"), tuple(words))


def _of_compiler(words: Sequence[str], name: str) -> Command | None:
    kind = _COMPILERS.fullmatch(name)
    options = words[1:]
    if kind is None or any(word in _ASKS or _ASKS_LIKE.match(word) for word in _own(options)):
        return None
    inputs = _inputs(options)
    if not inputs or set(inputs) <= {"/dev/null"}:
        return None
    output = _output(options) or _implied(options, inputs, _IMPLIED_BY_CUDA if kind["cuda"] else _IMPLIED_BY_CC)
    if not output and (kind["cc"] or name == "nvcc"):
        output = _linked(inputs)
    # A mere probe for libraries has neither a source nor an object, and a mere check no file that stays.
    return Command(name, output, tuple(words)) if output and output not in _NOWHERE else None


def _own(options: Sequence[str]) -> Iterator[str]:
    """Yield the options that are the compiler's own: humming's helper passes those behind `--` to NVRTC."""
    for word in options:
        if word == "--":
            return
        yield word


def _output(options: Sequence[str]) -> str:
    for option in _OUTPUT:
        if found := _value_of(options, option):
            return found
    # Written together, as in `-okernel.o`; not the many long options that begin with these letters.
    return next((word[2:] for word in options if re.fullmatch(r"-o[\w./~-]+\.\w+", word)), "")


def _value_of(words: Sequence[str], option: str) -> str:
    """Return what follows an option, as the next word or behind `=`; empty if it is not there."""
    for at, word in enumerate(words):
        if word == option and at + 1 < len(words):
            return words[at + 1]
        if option.startswith("--") and word.startswith(f"{option}="):
            return word[len(option) + 1 :]
    return ""


def _implied(options: Sequence[str], inputs: Sequence[str], suffixes: dict[str, str]) -> str:
    suffix = next((suffixes[word] for word in options if word in suffixes), "")
    return inputs[0].rpartition("/")[2].rpartition(".")[0] + suffix if suffix else ""


def _linked(inputs: Sequence[str]) -> str:
    """Return what a compiler driver writes that is told neither a name nor to stop before it links."""
    return "a.out" if any(word.rpartition(".")[2] in _SOURCES for word in inputs) else ""


def _inputs(options: Sequence[str]) -> list[str]:
    """Return the words that are files to compile or to link."""
    found, skip, language = [], False, "-x" in options
    for word in options:
        if skip:
            skip = False
        elif word in _TAKES_VALUE or (word in _OUTPUT and word != "--create"):
            skip = True
        elif (
            word == "-"
            or word.startswith("@")
            or (not word.startswith("-") and ("." in word or language))
            or word == "/dev/null"
        ):
            found.append(word)
        elif value := re.match(r"--(input|image[\w-]*)=(.+)", word):
            found.append(value[2])
    return found


def shown(words: Sequence[str], most: int = 160) -> str:
    """Return a command line for people, cut short."""
    text = shlex.join(words)
    return text if len(text) <= most else f"{text[: most - 1]}…"
