"""Each test of the Triton monitor in a process of its own, at the price of a fork.

`python forks.py` is a server that has imported torch and Triton and done nothing with them. For each test it forks a
child, which imports the test's module, gives the test a `Watch` and sends back what was raised. A test written with
`@in_fork` therefore starts with empty in-process caches, and leaves nothing behind, whatever it patches or kills.
"""

from __future__ import annotations

import functools
import gc
import importlib
import inspect
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LIMIT = 120.0


class ForkServer:
    """The server's client; belongs to the pytest process."""

    def __init__(self, folder: Path) -> None:
        self._numbers = iter(range(1, 10**6))
        self.folder = folder
        env = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON", "JITGUARD"))}
        env["TRITON_DEFAULT_FP_FUSION"] = "1"  # Triton 3.9 warns while nobody decided it
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(HERE), env.get("PYTHONPATH", "")])
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=folder
        )

    def run(self, module: str, name: str, arguments: dict[str, Any]) -> str:
        """Run a test's body in a child; return what it raised, empty if nothing."""
        folder = self.folder / f"{next(self._numbers)}"
        folder.mkdir()
        assert self._server.stdin
        assert self._server.stdout
        request = {"module": module, "name": name, "arguments": arguments, "folder": str(folder)}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        if not answer:
            return "the fork server is gone"
        return str(json.loads(answer)["error"])

    def stop(self) -> None:
        """End the server."""
        assert self._server.stdin
        with self._server:
            self._server.stdin.close()


Body = Callable[..., None]


@overload
def in_fork(body: Body) -> Body: ...


@overload
def in_fork(*, armed: bool) -> Callable[[Body], Body]: ...


def in_fork(body: Body | None = None, *, armed: bool = True) -> Any:
    """Run a test in a forked child: it takes a `Watch`, armed unless said otherwise, and plain parameters."""
    if body is None:
        return functools.partial(in_fork, armed=armed)
    module, name = body.__module__.rpartition(".")[2], body.__name__

    def test(fork_server: ForkServer, **arguments: Any) -> None:
        __tracebackhide__ = True
        error = fork_server.run(module, name, arguments)
        if error:
            raise AssertionError(f"in a forked process:\n{error}")

    own = [p for p in inspect.signature(body).parameters.values() if p.name != "watch"]
    fixture = inspect.Parameter("fork_server", inspect.Parameter.KEYWORD_ONLY)
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    test.__signature__ = inspect.Signature([fixture, *own])  # type: ignore[attr-defined]
    test.__name__, test.__doc__, test.__module__ = body.__name__, body.__doc__, body.__module__
    vars(test)["body"], vars(test)["armed"] = body, armed
    return test


def fork(action: Callable[[], Any], *, limit: float = LIMIT) -> Any:
    """Run something in a forked child and return what it returns, as JSON; raise what it raised, as text."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        code = 0
        try:
            os.close(receive)
            answer = {"result": _careful(action)} if action is not None else {}
        except BaseException as error:  # noqa: BLE001 - whatever it is, it goes to the parent
            answer, code = {"error": _described(error)}, 1
        try:
            with os.fdopen(send, "w") as pipe:
                pipe.write(json.dumps(answer))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(send)
    text = _read(receive, time.monotonic() + limit, child)
    _, status = os.waitpid(child, 0)
    if not text:
        raise AssertionError(f"the forked process ended without an answer, status {status}")
    answer = json.loads(text)
    if "error" in answer:
        raise AssertionError(answer["error"])
    return answer["result"]


def _careful(action: Callable[[], Any]) -> Any:
    result = action()
    json.dumps(result)
    return result


def _read(pipe: int, deadline: float, child: int) -> str:
    chunks = []
    while True:
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            break
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            break
        chunks.append(chunk)
    os.close(pipe)
    return b"".join(chunks).decode()


def _described(error: BaseException) -> str:
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    last = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename.startswith(str(HERE)):
            last = frame
    shown = {name: _short(value) for name, value in (last.f_locals if last else {}).items()}
    return "".join(lines)[-6000:] + "".join(f"\n    {name} = {value}" for name, value in shown.items())


def _short(value: Any) -> str:
    try:
        return repr(value)[:400]
    except Exception as error:  # noqa: BLE001 - some tests make such objects
        return f"<repr raised {error!r}>"


class Watch:
    """A Triton monitor with a recorder, on an offline GPU, in the process of one test."""

    def __init__(self, folder: Path) -> None:
        from pytest_jitguard.core.recorder import Recorder
        from pytest_jitguard.monitors import MonitorSet
        from pytest_jitguard.monitors.triton import TritonMonitor
        from pytest_jitguard.offline import OfflineTarget, parse_target

        self.folder = folder
        self.records: list[Any] = []
        self.recorder = Recorder("image", self.records.append)
        self.monitors = MonitorSet(["triton"], self.recorder)
        (monitor,) = self.monitors.monitors
        assert isinstance(monitor, TritonMonitor)
        self.monitor = monitor
        self._parse, self._offline_class = parse_target, OfflineTarget
        self._offline: Any = None
        self._told = 0

    def on(self, target: str) -> None:
        """Become an offline GPU; forgets the one before."""
        if self._offline is not None:
            self._offline.uninstall()
        self._offline = self._offline_class(self._parse(target), "cpu")
        self._offline.install_triton()
        self._offline.install_torch()

    def arm(self) -> None:
        """Take hold of Triton, as at the session's start."""
        self.monitors.arm()
        assert self.monitor.state == "unproven", self.monitor.detail

    def settle(self) -> None:
        """End a phase."""
        self.monitors.settle()

    @property
    def events(self) -> list[Any]:
        """All events so far."""
        return self.recorder.events

    def news(self) -> list[Any]:
        """Return the events since the last call."""
        self.settle()
        fresh, self._told = self.events[self._told :], len(self.events)
        return fresh

    def told(self, *, loads: bool = False) -> list[str]:
        """Return `kind kernel` (and the status, if it is not ok) of the events since the last call."""
        fresh = [event for event in self.news() if loads or event.kind != "device_load"]
        return [" ".join([e.kind, e.kernel, *([] if e.status == "ok" else [e.status])]) for e in fresh]

    @property
    def state(self) -> tuple[str, str]:
        """State and detail of the monitor."""
        return self.monitor.state, self.monitor.detail

    @contextmanager
    def cache(self, name: str) -> Iterator[Path]:
        """Use another disk cache."""
        before = os.environ["TRITON_CACHE_DIR"]
        os.environ["TRITON_CACHE_DIR"] = str(self.folder / name)
        try:
            yield self.folder / name
        finally:
            os.environ["TRITON_CACHE_DIR"] = before


def tensor(size: int = 256, dtype: str = "float32") -> Any:
    """Return an argument for a launch."""
    import torch

    return torch.zeros(size, dtype=getattr(torch, dtype), device="cuda")


def before_the_assembler(watch: Watch, command: str) -> None:
    """Put a shell command before ptxas; asked for its version it answers as the real one."""
    import triton

    for tool in ("ptxas", "ptxas_blackwell"):
        real = getattr(triton.knobs.nvidia, tool).path
        script = watch.folder / tool
        script.write_text(f'#!/bin/sh\n[ "$1" = --version ] || {{ {command}; }}\nexec {real} "$@"\n')
        script.chmod(0o755)
        os.environ[f"TRITON_{tool.upper()}_PATH"] = str(script)


def _child(request: dict[str, Any]) -> None:
    folder = Path(request["folder"])
    os.environ["TRITON_CACHE_DIR"] = str(folder / "cache")
    os.chdir(folder)
    module = importlib.import_module(request["module"])
    test = getattr(module, request["name"])
    watch = Watch(folder)
    watch.on("cuda:90")
    if test.armed:
        watch.arm()
    takes = inspect.signature(test.body).parameters
    test.body(**({"watch": watch} if "watch" in takes else {}), **request["arguments"])


def _serve() -> None:
    import pytest  # noqa: F401 - the test modules need it
    import torch  # noqa: F401
    import triton
    import triton.experimental.gluon  # noqa: F401
    import wrapt  # noqa: F401
    from triton.runtime.cache import triton_key

    triton_key()  # half a second that every child would spend
    gc.collect()
    gc.freeze()  # or each child would copy every page that its collector looks at
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what tests print is no answer
    for line in sys.stdin:
        request = json.loads(line)
        try:
            fork(lambda: _child(request))  # noqa: B023 - called at once
            error = ""
        except AssertionError as raised:
            error = str(raised)
        answers.write(json.dumps({"error": error}) + "\n")
        answers.flush()
    os._exit(0)


if __name__ == "__main__":
    sys.modules["forks"] = sys.modules["__main__"]
    _serve()
