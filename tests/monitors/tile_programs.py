"""Programs of TileLang, for the real library and for its stand-in."""

# Annotations of programs are read when the program is made, so they are values and no types.
# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, ANN202

import tilelang
import tilelang.language as T


@tilelang.jit(out_idx=[-1], target="c")
def add(size, dtype="float32"):
    @T.prim_func
    def main(A: T.Tensor((size,), dtype), B: T.Tensor((size,), dtype), C: T.Tensor((size,), dtype)):
        with T.Kernel(1):
            for i in T.serial(size):
                C[i] = A[i] + B[i]

    return main


@tilelang.jit(out_idx=[-1], target="c", pass_configs={"no.such.config": True})
def broken(size):
    @T.prim_func
    def main(A: T.Tensor((size,), "float32"), B: T.Tensor((size,), "float32")):
        with T.Kernel(1):
            for i in T.serial(size):
                B[i] = A[i]

    return main


@tilelang.autotune(configs=[{"factor": 1}, {"factor": 2}])
@tilelang.jit(out_idx=[-1], target="c")
def tuned(size, factor=1):
    @T.prim_func
    def main(A: T.Tensor((size, factor), "float32"), B: T.Tensor((size, factor), "float32")):
        with T.Kernel(1):
            for i in T.serial(size):
                B[i, 0] = A[i, 0] * factor

    return main
