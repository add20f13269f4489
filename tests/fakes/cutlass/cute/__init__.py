"""What people import."""

from __future__ import annotations

from cutlass.base_dsl.compiler import CompileCallable
from cutlass.cute import experimental as experimental
from cutlass.cute import runtime as runtime
from cutlass.cutlass_dsl import CuTeDSL

jit = CuTeDSL.jit
compile = CompileCallable()
