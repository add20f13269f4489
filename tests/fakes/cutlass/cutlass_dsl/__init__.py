"""The one DSL that is in use."""

from __future__ import annotations

from typing import Any

from cutlass.base_dsl.dsl import BaseDSL


class CuTeDSL(BaseDSL):  # type: ignore[misc]
    def compile_and_cache(self, *args: Any, **kwargs: Any) -> Any:
        return super().compile_and_cache(*args, **kwargs)
