"""Kept for `monitors/triton.py` until it imports `PatchSet` from `pytest_jitguard.patching`; then to be deleted."""

from pytest_jitguard.patching import PatchSet as PatchSet
