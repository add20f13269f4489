"""Loads object files."""

from __future__ import annotations

from cutlass.base_dsl.export.external_binary_module import ExternalBinaryModule


def load_module(file_path: str, *, enable_tvm_ffi: bool = False) -> ExternalBinaryModule:
    return ExternalBinaryModule(file_path, enable_tvm_ffi=enable_tvm_ffi)
