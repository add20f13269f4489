"""AITER's build engine without AITER: the module surface and lock files of the wheels, ninja and a C compiler."""

__version__ = "0.1.7.post2.dev18"
