"""Examples that pytest-jitguard is shown on; not part of the installed package."""
