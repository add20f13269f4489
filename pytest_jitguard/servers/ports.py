"""TCP ports: a free one, whether one is taken, and whose it is."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

from pytest_jitguard.processes import proc

_LISTENING = "0A"
_CONNECT_LIMIT = 2.0


def free_port(host: str) -> int:
    """Return a port of `host` that is free now.

    Between this and the server's own bind somebody else may take it; the server then says that the address is in use.
    The kernel hands out such ports in random order, so two runs rarely get the same one.
    """
    family, address = _addresses(host, 0)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(address)
        except OSError:
            return _free_port_of_any_interface()
        return int(probe.getsockname()[1])


def _free_port_of_any_interface() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def is_taken(host: str, port: int) -> bool:
    """Whether somebody listens on the port already, or holds it so that nobody else can."""
    return any(_is_held(family, address) or _answers(family, address) for family, address in _addresses(host, port))


def _addresses(host: str, port: int) -> list[tuple[int, tuple[object, ...]]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"host {host!r} of the server's url is not known: {error}") from None
    return [(family, address) for family, _, _, _, address in found]


def _is_held(family: int, address: tuple[object, ...]) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do, so that connections of an earlier server that are being closed do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def _answers(family: int, address: tuple[object, ...]) -> bool:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_LIMIT)
        with contextlib.suppress(OSError):
            probe.connect(address)
            return True
    return False


def stranger_on(port: int, server: int) -> int | None:
    """Return a process that serves the port though it was there before the server (its first process) was.

    So it is not the server, nor anybody whom that started, be it through a container's daemon. None where that cannot
    be told: another network namespace, processes whose files may not be seen, no /proc.
    """
    since, listening = proc.start_of(server), _listening(port)
    held = {pid: found for pid in proc.pids() if (found := _sockets(pid) & listening)}
    known = bool(listening) and listening == set().union(*held.values())
    return min(held) if known and all(proc.start_of(pid) < since for pid in held) else None


def _listening(port: int) -> set[str]:
    """Return the inodes of the sockets that listen on a port."""
    found = set()
    for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(fields[9])
    return found


def _sockets(pid: int) -> set[str]:
    """Return the inodes of a process's sockets, as far as they may be seen."""
    folder, found = f"/proc/{pid}/fd", set()
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 - entries vanish meanwhile
            with contextlib.suppress(FileNotFoundError):
                link = os.readlink(f"{folder}/{name}")  # noqa: PTH115
                found.add(link.removeprefix("socket:[").removesuffix("]"))
    return found
