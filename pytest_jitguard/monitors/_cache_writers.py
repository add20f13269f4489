"""Whose an entry in a cache folder may be: folders are shared, and a file does not say which process wrote it."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Sequence
from pathlib import Path

from pytest_jitguard.monitors._proc import link, names, pids, read

_MOST_LEVELS = 64
"""How many parents a process is followed through."""


def hints(paths: Sequence[Path]) -> list[str]:
    """Say for each of some entries what there is to know of who wrote it, empty if nothing.

    None of it is proof: so no entry is excused. Not even another owner is: what a server in a container compiles for
    this run belongs to the container's user. Nor is that this process wrote too little (/proc/self/io): linkers that
    map their output are not counted there.
    """
    users = _users([os.fsencode(path) for path in paths]) if paths else {}
    return [_hint(path, users.get(os.fsencode(path), [])) for path in paths]


def _hint(path: Path, users: list[int]) -> str:
    ours = [pid for pid in users if _is_below(pid, os.getpid())]
    if ours:
        return "this process uses it" if os.getpid() in ours else f"pid {ours[0]} of this run uses it"
    if users:
        return f"pid {users[0]} ({_command(users[0])}), which this run did not start, uses it"
    return _owner(path)


def _owner(path: Path) -> str:
    try:
        uid = path.stat().st_uid
    except OSError:
        return "it is gone again"
    return "" if uid == os.geteuid() else f"it belongs to {_name(uid)}, and this process to {_name(os.geteuid())}"


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _users(paths: Sequence[bytes]) -> dict[bytes, list[int]]:
    """Return the processes that have an entry, or a file in it, open or mapped, as far as /proc lets us see."""
    found: dict[bytes, list[int]] = {}
    wanted = re.compile(b"|".join(map(re.escape, paths)))
    for pid in pids():
        used = b"\n".join([*_opened(pid), read(f"/proc/{pid}/maps"), b""])
        if wanted.search(used):
            for path in paths:
                if any(path + end in used for end in (b"\n", b"/")):
                    found.setdefault(path, []).append(pid)
    return found


def _opened(pid: int) -> list[bytes]:
    folder = f"/proc/{pid}/fd"
    return [os.fsencode(link(f"{folder}/{name.decode()}")) for name in names(folder) if name.isdigit()]


def _is_below(pid: int, top: int) -> bool:
    for _ in range(_MOST_LEVELS):
        if pid in (top, 0):
            return pid == top
        fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        pid = int(fields[1]) if len(fields) > 1 else 0
    return False


def _command(pid: int) -> str:
    words = read(f"/proc/{pid}/cmdline").rstrip(b"\0").split(b"\0")
    return os.fsdecode(b" ".join(words))[:80]
