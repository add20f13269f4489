"""SGLang's kernel loader without SGLang: the module surface and cache layout of 0.5.23, ninja and a C compiler."""

__version__ = "0.5.23"
