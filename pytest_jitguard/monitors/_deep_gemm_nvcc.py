"""A compiler that tells what it compiles, and has it compiled by the real one. A program, imported for no effect.

DeepGEMM starts it in the place of nvcc. Its text is copied into a private folder by `_deep_gemm_door`, beside the spool
that it writes to, and run by `python -IS`: no start-up file, nothing but the standard library, quick to start.
"""

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Iterator

MOST_TEXT = 65_536
"""Characters of a kernel's source that are kept; DeepGEMM's have 1,000 to 2,000."""

_SHELLS = ("sh", "bash", "dash", "ash", "zsh", "ksh", "busybox", "env", "timeout", "nice", "ionice", "ccache")
"""Programs that may stand between a library and its compiler, and compile nothing themselves."""

_SELF = "/jitguard-deepgemm-"
"""What is in the path of every copy of this program: one that outlived its guard hands on to an outer guard's."""

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_REFUSED = (
    "jitguard refused to let DeepGEMM compile: warmup is over and the run was told to deny its compiles "
    "(--jitguard-deny)\n"
)


def main(folder: str, arguments: list[str]) -> int:
    """Compile as asked; return nvcc's exit code."""
    chained = json.loads(_read(f"{folder}/compiler.json") or b"{}")
    compiler = str(chained.get("compiler") or find_compiler())
    source = source_of(arguments)
    if source is None:
        os.execvp(compiler, [compiler, *arguments])
    return _told(folder, compiler, arguments, source)


def find_compiler() -> str:
    """Look for nvcc where DeepGEMM does."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            return f"{os.environ[name]}/bin/nvcc"
    for place in os.environ.get("PATH", os.defpath).split(os.pathsep):
        if os.access(f"{place}/nvcc", os.X_OK):
            return f"{place}/nvcc"
    return "/usr/local/cuda/bin/nvcc"


def source_of(arguments: list[str]) -> str | None:
    """Return the file that is compiled to a binary; None for a question of the version, or a listing besides."""
    outputs = [after for before, after in itertools.pairwise(arguments) if before in _OUTPUTS]
    outputs += [argument.partition("=")[2] for argument in arguments if argument.startswith("--output-file=")]
    if not any(output.endswith((".cubin", ".so")) for output in outputs):
        return None
    return next((argument for argument in arguments if argument.endswith((".cu", ".cpp"))), None)


_OUTPUTS = ("-o", "--output-file")


def _told(folder: str, compiler: str, arguments: list[str], source: str) -> int:
    owner, thread = _owner()
    known = {"record": "begin", "id": f"{os.getpid()}-{time.monotonic_ns()}", "started": time.monotonic()}
    known |= {"owner": owner, "owner_start": start_of(owner), "thread": thread, "pid": os.getpid()}
    known |= {"argv": _argv_of(owner)[:8], "arguments": arguments, "scope": _scope()}
    _write(folder, {**known, "text": _text_of(source)})
    if thread != owner:
        _wake(folder, owner)  # the main thread can have a look at the one that compiles, if that let go of the GIL
    refused = os.path.exists(f"{folder}/refuse")  # noqa: PTH110
    status = _refuse() if refused else _run(compiler, arguments)
    code = os.waitstatus_to_exitcode(status)
    _write(folder, {"record": "end", "id": known["id"], "ended": time.monotonic(), "code": code, "refused": refused})
    _wake(folder, owner)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _refuse() -> int:
    os.write(2, _REFUSED.encode())
    return 1 << 8


def _run(compiler: str, arguments: list[str]) -> int:
    """Run the real compiler on our own standard streams; return its status as `waitpid` does."""
    try:
        child = os.posix_spawnp(compiler, [compiler, *arguments], os.environ)
    except OSError as error:
        os.write(2, f"{compiler}: {error.strerror}\n".encode())
        return 127 << 8
    for number in _FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os.kill(child, number))
    return os.waitpid(child, 0)[1]


# -- who asked ---------------------------------------------------------------------------------------------------------


def _owner() -> tuple[int, int]:
    """Return the process that asked for the compile, shells left out, and its thread; 0 where that is not known."""
    below = os.getpid()
    for pid in _ancestors():
        argv = _argv_of(pid)
        program = os.path.basename(argv[0]) if argv else ""  # noqa: PTH119
        if program.lstrip("-") not in _SHELLS and not any(_SELF in part for part in argv[:6]):
            return pid, _thread_of(pid, below)
        below = pid
    return os.getppid(), 0


def _ancestors() -> Iterator[int]:
    pid = os.getppid()
    while pid > 1:
        yield pid
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        pid = int(fields[1]) if len(fields) > 1 else 0


def _thread_of(owner: int, child: int) -> int:
    """Return the thread of a process that forked a child off; 0 where the kernel does not list children."""
    try:
        threads = os.listdir(f"/proc/{owner}/task")  # noqa: PTH208
    except OSError:
        return 0
    for thread in threads:
        if str(child).encode() in _read(f"/proc/{owner}/task/{thread}/children").split():
            return int(thread)
    return 0


def _wake(folder: str, owner: int) -> None:
    """Send SIGURG to who asked, if a monitor waits there for it; everybody else ignores it by default."""
    if not os.path.exists(f"{folder}/watching/{owner}-{start_of(owner)}"):  # noqa: PTH110
        return
    for line in _read(f"/proc/{owner}/status").splitlines():
        if line.startswith(b"SigCgt:") and int(line.split()[1], 16) >> (signal.SIGURG - 1) & 1:
            os.kill(owner, signal.SIGURG)


def start_of(pid: int) -> int:
    """Return when a process began, in clock ticks since boot; 0 if unknown."""
    fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return int(fields[19]) if len(fields) > 19 else 0


def _argv_of(pid: int) -> list[str]:
    return [os.fsdecode(part) for part in _read(f"/proc/{pid}/cmdline").rstrip(b"\0").split(b"\0") if part]


def _scope() -> str:
    """Return the server in whose tree we are, empty if in none."""
    try:
        return str(json.loads(os.environ.get("JITGUARD_PARENT", "{}")).get("scope", ""))
    except (ValueError, AttributeError):
        return ""


def _text_of(source: str) -> str:
    return _read(source).decode("utf-8", "replace")[:MOST_TEXT]


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs a start
            return file.read()
    except OSError:
        return b""


def _write(folder: str, line: dict[str, object]) -> None:
    """Append one line at once; a spool that is gone or full must not fail the user's compile."""
    try:
        spool = os.open(f"{folder}/spool.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(spool, json.dumps(line).encode() + b"\n")
        finally:
            os.close(spool)
    except OSError:
        pass


if __name__ == "__main__":
    sys.exit(main(os.path.dirname(os.path.abspath(__file__)), sys.argv[1:]))  # noqa: PTH100, PTH120
