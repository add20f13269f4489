"""Processes of their own for the checks of a contract: a clean start, or a fork of one that imported the library.

`python -m pytest_jitguard._contract_process` takes one request per line and answers each with a line of JSON.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUMBERS = 1_000
"""How many numbers each check has for things that nobody has compiled yet."""


class NotThere(Exception):
    """What a check needs does not exist for this monitor; the text is the reason."""


class Broken(AssertionError):
    """The contract is broken; the text says how."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the class that describes a monitor to its contract is defined, and the scratch folder of its checks."""

    module: str
    file: str
    name: str
    folder: str

    @classmethod
    def of(cls, kind: type, folder: Path) -> Origin:
        """Return the origin of a class of a test module."""
        return cls(kind.__module__, inspect.getfile(kind), kind.__qualname__, str(folder))

    def load(self) -> Any:
        """Import the module from its file and make the class's object."""
        if self.module not in sys.modules:
            spec = importlib.util.spec_from_file_location(self.module, self.file)
            assert spec is not None
            assert spec.loader is not None
            sys.modules[self.module] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        found: Any = sys.modules[self.module]
        for name in self.name.split("."):
            found = getattr(found, name)
        subject = found()
        subject.folder = Path(self.folder)
        return subject


class CheckProcess:
    """A process that runs checks; with `forks` each in a fork of it, else one only, in itself.

    With `preloaded` it imports the library and prepares it, before the first check and before any fork.
    """

    def __init__(self, origin: Origin, variables: dict[str, str], *, forks: bool, preloaded: bool) -> None:
        start = {**dataclasses.asdict(origin), "forks": forks, "preloaded": preloaded}
        path = os.pathsep.join(
            dict.fromkeys(filter(None, [variables.pop("PYTHONPATH", ""), str(Path.cwd()), *sys.path]))
        )
        kept = {name: value for name, value in os.environ.items() if not name.startswith("JITGUARD")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(start)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**kept, **variables, "PYTHONPATH": path},
            cwd=origin.folder,
        )

    def run(self, check: str, arguments: dict[str, Any], first: int, limit: float) -> dict[str, str]:
        """Run a check: empty if the contract holds, else `broken` or `not there`, with a text."""
        assert self._process.stdin is not None
        request = {"check": check, "arguments": arguments, "first": first}
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return {"broken": "the process of the checks is gone; what it wrote to stderr says why"}
        answer: dict[str, str] = json.loads(self._answer(limit))
        return answer

    def _answer(self, limit: float) -> str:
        assert self._process.stdout is not None
        until, text = time.monotonic() + limit, b""
        while not text.endswith(b"\n"):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self._process.kill()
                return json.dumps({"broken": f"the check did not end within {limit:.0f} s"})
            chunk = os.read(self._process.stdout.fileno(), 1 << 16)
            if not chunk:
                return json.dumps({"broken": "the process of the checks died; what it wrote to stderr says why"})
            text += chunk
        return text.decode()

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with self._process:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                pass
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()


def forked(action: Callable[[], dict[str, str]], limit: float = 600.0) -> dict[str, str]:
    """Run something in a forked process and return its answer."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.close(receive)
        _answer_and_die(action, send)
    os.close(send)
    text = _read(receive, time.monotonic() + limit, child)
    _, status = os.waitpid(child, 0)
    if not text:
        return {"broken": f"a forked process ended without an answer (status {status})"}
    answer: dict[str, str] = json.loads(text)
    return answer


def _answer_and_die(action: Callable[[], dict[str, str]], send: int) -> None:
    try:
        with os.fdopen(send, "w") as pipe:
            pipe.write(json.dumps(action()))
        sys.stderr.flush()
    finally:
        os._exit(0)


def _read(pipe: int, until: float, child: int) -> bytes:
    chunks = []
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            break
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            break
        chunks.append(chunk)
    os.close(pipe)
    return b"".join(chunks)


def answer(action: Callable[[], None]) -> dict[str, str]:
    """Run a check and say what came of it."""
    try:
        action()
    except NotThere as reason:
        return {"not there": str(reason)}
    except Broken as broken:
        return {"broken": str(broken)}
    except BaseException as error:  # noqa: BLE001 - whatever it is, it goes to the parent
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        return {"broken": "".join(lines)[-6000:]}
    return {}


def _serve(start: dict[str, Any]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints is no answer
    forks, preloaded = start.pop("forks"), start.pop("preloaded")
    subject = Origin(**start).load()
    failed = answer(subject.bring) if preloaded else {}
    for line in sys.stdin:
        answers.write(json.dumps(failed or _do(subject, json.loads(line), forks)) + "\n")
        answers.flush()
        if not forks:
            break


def _do(subject: Any, request: dict[str, Any], forks: bool) -> dict[str, str]:
    from pytest_jitguard import _contract_checks, _contract_ways

    name = request["check"]
    check = getattr(_contract_ways, name, None) or getattr(_contract_checks, name)

    def act() -> dict[str, str]:
        subject.count_from(request["first"])
        tempfile.tempdir = None
        return answer(lambda: check(subject, **request["arguments"]))

    return forked(act) if forks else act()


if __name__ == "__main__":
    # Under its proper name, so that a check and this program mean the same classes.
    importlib.import_module("pytest_jitguard._contract_process")._serve(json.loads(sys.argv[1]))
