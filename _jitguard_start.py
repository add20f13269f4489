"""Runs at the start of every Python process of this environment, and does nothing unless a jitguard run started it."""

import os


def start() -> None:
    """Make this process report to the guard that started it, if one did. Never raises; a second call does nothing."""
    if "JITGUARD_PARENT" not in os.environ:
        return
    try:
        from pytest_jitguard.processes.bootstrap import start as begin

        begin()
    except (Exception, SystemExit):  # noqa: BLE001 - a process must start, also if a script is named as what we import
        pass
