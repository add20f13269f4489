"""FlashInfer's builds without FlashInfer: the module surface and the files of 0.7, ninja and a C compiler for real."""

__version__ = "0.7.2"
