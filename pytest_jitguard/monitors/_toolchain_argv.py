"""What a command line compiles, if it does: the rules by which the toolchain's net tells a compile from a question."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pytest_jitguard.monitors._toolchain_response import expanded, is_elsewhere


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
    rf"(?P<cc>([\w.]+-)*(gcc|g\+\+|cc|c\+\+|clang|clang\+\+|hipcc|amdclang|amdclang\+\+|icx|icpx|nvc|nvc\+\+|gfortran){_VERSION}|hipcc\.bin)"
    r"|(?P<cuda>nvcc|ptxas(-\w+)?|cicc|cudafe\+\+|nvlink|fatbinary|tileiras|nvrtc_compile)"
    rf"|(?P<link>(ld\.)?lld|ld\.lld{_VERSION}|cc1|cc1plus)"
)
_LAUNCHERS = {
    **dict.fromkeys(("ccache", "sccache", "distcc", "icecc", "nohup", "setsid", "exec", "command", "taskset"), ""),
    **{"env": "uC", "nice": "n", "time": "fo", "timeout": "sk", "stdbuf": "ioe", "ionice": "cn", "chrt": ""},
}
"""Programs that only start another one, with the options of theirs that take a word as their value."""

_TO_LAUNCHERS = re.compile(r"-.*|\d+(\.\d*)?[smhd]?|0x[0-9a-fA-F]+")
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh"})
_SUCCEED = frozenset(
    {"cd", "mkdir", "export", "set", "unset", "umask", "ulimit", "source", ".", "echo", "printf", "rm", "true", ":"}
)
"""Commands that are not asked for an answer: what stands behind `&&` runs after them."""

_BRANCHES = frozenset({"if", "for", "while", "until", "case", "select", "function", "return", "!"})
"""Words of a shell behind which nothing in a text is certain to run."""

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


def command_of(argv: Any, executable: Any = None, folder: str = "") -> Command | Build | None:
    """Tell what a command line builds; None if it builds nothing, or is no command line. Never raises.

    `argv` may be a list or one text for a shell. What a shell or a launcher (ccache, env) starts is looked through.
    `folder` is where it is started: response files are named relative to it.
    """
    try:
        return _of_words(_words(argv), _word(executable) if executable else "", folder, deep=3)
    except (OSError, TypeError, ValueError):
        return None


def process_of(words: Sequence[str], folder: str) -> Command | Build | None:
    """Tell what a living process builds itself: what a shell is told to start shows when it has started."""
    words = _without_launchers(words)
    if _script_of(words):
        return None
    try:
        return _of_words(words, "", folder, deep=1)
    except (OSError, ValueError):
        return None


def is_compiler(argv: Any) -> bool:
    """Tell whether a command line runs a compiler, be it only to ask. What that starts is its own business."""
    try:
        return _is_named_like_one(_without_launchers(_words(argv)))
    except (TypeError, ValueError):
        return False


def _is_named_like_one(words: Sequence[str]) -> bool:
    words = _wrapped(words)
    return bool(words) and _COMPILERS.fullmatch(words[0].rpartition("/")[2]) is not None


def _words(argv: Any) -> list[str]:
    if isinstance(argv, (str, bytes, os.PathLike)):
        return [_word(argv)]
    return [_word(word) for word in argv]


def _word(word: Any) -> str:
    return os.fsdecode(word)


def _of_words(words: Sequence[str], executable: str, folder: str, deep: int) -> Command | Build | None:
    words = _without_launchers(words)
    if not words or not deep:
        return None
    if script := _script_of(words):
        return _of_script(script, folder, deep - 1)
    words = _wrapped(words)
    name = words[0].rpartition("/")[2]
    if name in ("ninja", "ninja-build"):
        return _of_ninja(words)
    by_file = executable.rpartition("/")[2]
    return _of_compiler(words, name, folder) or (_of_compiler(words, by_file, folder) if by_file else None)


def script_command(script: Any, folder: str = "") -> Command | Build | None:
    """Tell what a text for a shell builds (`os.system`), if that is all it does; None if nothing. Never raises."""
    try:
        return _of_script(_word(script), folder, deep=2)
    except (OSError, TypeError, ValueError):
        return None


def _script_of(words: Sequence[str]) -> str:
    """Return the text that a shell is told to run (`bash -lc TEXT`), empty if these words do not."""
    at, has_text = _operand(words)
    return words[at] if has_text and at < len(words) else ""


def _wrapped(words: Sequence[str]) -> Sequence[str]:
    """Return the command line of a script, where it is a shell's (or perl's) first: wrappers of compilers are such."""
    at, has_text = _operand(words)
    return words[at:] if at and not has_text and at < len(words) else words


def _operand(words: Sequence[str]) -> tuple[int, bool]:
    """Return where the first word of a shell stands that is no option, and whether `-c` makes it a text; else 0."""
    name = words[0].rpartition("/")[2] if words else ""
    if name not in _SHELLS and name != "perl":
        return 0, False
    at, has_text = 1, False
    while at < len(words) and words[at][:1] in ("-", "+"):
        short = not words[at].startswith("--")
        has_text = has_text or (name != "perl" and short and "c" in words[at])
        at += 2 if (short and words[at][-1:] in "oO") or words[at] in ("--rcfile", "--init-file") else 1
    return at, has_text


def _of_script(script: str, folder: str, deep: int) -> Command | Build | None:
    """Return what a text builds: None unless it is certain to run, and all that the text has to do.

    What is built beside other things begins and ends at other moments than the shell, and may not be the last.
    """
    lexer = shlex.shlex(script, posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace, lexer.whitespace_split = " \t\r", True
    words: list[str] = []
    built: list[Command | Build] = []
    depends = branches = succeeds = redirects = False
    for token in [*lexer, ";"]:
        if token.strip("();<>|&\n"):
            words.append(token)
            continue
        found = None if depends or branches else _of_words(words, "", folder, deep)
        branches = branches or _branches(token, words) or (words[:1] == ["exit"] and not (depends and succeeds))
        # `cd build || exit 1` goes on; of what was asked for an answer nobody knows.
        succeeds = found is not None or bool(_SUCCEED.intersection(words[:1]))
        if found:
            built.append(found)
        elif words and not succeeds and words[0] != "exit" and not redirects:
            return None
        redirects = "<" in token or ">" in token
        depends = _depends(token, words, depends, succeeds)
        succeeds = succeeds and "||" in token
        words = []
    return built[0] if len(built) == 1 else None


def _branches(token: str, words: Sequence[str]) -> bool:
    """Tell whether nothing behind these words is certain to run, or is no command at all."""
    return bool(_BRANCHES.intersection(words[:1])) or "<<" in token or "()" in token


def _depends(token: str, before: Sequence[str], depended: bool, succeeds: bool) -> bool:
    """Tell whether what comes next in a shell's text runs only if what came before it says so."""
    if "||" in token or not before:
        return depended or "||" in token
    return "&&" in token and (depended or not succeeds)


def _without_launchers(words: Sequence[str]) -> Sequence[str]:
    """Leave out what only starts the compiler: launchers, their options and the variables that they set."""
    start = 0
    while (start < len(words) and words[start].rpartition("/")[2] in _LAUNCHERS) or _is_assignment(words, start):
        with_value = {f"-{letter}" for letter in _LAUNCHERS.get(words[start].rpartition("/")[2], "")}
        start += 1
        while start < len(words) and _TO_LAUNCHERS.fullmatch(words[start]):
            start += 2 if words[start] in with_value else 1
    return words[start:]


def _is_assignment(words: Sequence[str], at: int) -> bool:
    return at < len(words) and re.match(r"[A-Za-z_]\w*=", words[at]) is not None


def _of_ninja(words: Sequence[str]) -> Build | None:
    if _QUESTIONS_TO_NINJA & set(words):
        return None
    return Build(_value_of(words, "-C"), tuple(words))


def _of_compiler(words: Sequence[str], name: str, folder: str) -> Command | None:
    kind = _COMPILERS.fullmatch(name)
    options = expanded(words[1:], folder) if kind and is_elsewhere(words) else words[1:]
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
