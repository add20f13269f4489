"""The closed sets of words that settings, events and reports share."""

FAILING_KINDS = ("compile", "cache_load", "autotune", "fallback", "download")
"""Kinds of events that fail a serving phase unless configuration says otherwise."""

RECORDED_KINDS = ("graph_capture", "device_load", "lock_wait")
"""Kinds that are shown but fail only where asked."""

KINDS = FAILING_KINDS + RECORDED_KINDS

MODES = ("fail", "warn", "record", "raise")
"""What a violation does."""
