"""A second `CompileCallable`."""

from __future__ import annotations

from cutlass.base_dsl.compiler import CompileCallable

compile = CompileCallable()
