"""The test suite's root: pytest's own plugin-testing fixtures."""

pytest_plugins = ["pytester"]
