"""What a monitor is built on that wraps functions of its library; the public name of it, for monitors of others."""

from pytest_jitguard.monitors._wrapping import Compiling, HookGone, WrappingMonitor

__all__ = ["Compiling", "HookGone", "WrappingMonitor"]
