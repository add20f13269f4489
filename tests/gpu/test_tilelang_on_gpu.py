"""TileLang's kernels on a real GPU: compiled for a request, loaded by the next process; with a witness and without."""

from __future__ import annotations

import importlib.util

import pytest

from tests.conftest import GuardedRun

pytestmark = pytest.mark.gpu

SERVED = """
    import tilelang, torch
    import tilelang.language as T

    @tilelang.jit(out_idx=[2], target="cuda")  # 0.1.15 keeps a kernel under two hashes where it is -1
    def add(size, block):
        @T.prim_func
        def main(
            a: T.Tensor((size,), "float32"), b: T.Tensor((size,), "float32"), c: T.Tensor((size,), "float32")
        ):
            with T.Kernel(T.ceildiv(size, block), threads=block) as index:
                for i in T.Parallel(block):
                    c[index * block + i] = a[index * block + i] + b[index * block + i]

        return main

    def serve(size, block=128):
        x = torch.ones(size, device="cuda")
        assert (add(size, block)(x, x) == 2).all()

    def warm_up(): serve(1024)
"""
SUITE = """
    from served import serve

    pytestmark = pytest.mark.jitguard

    def test_warm(): serve(1024)
    def test_cold(): serve(2048)
    def test_cold_again(): serve(2048)
    def test_another_block(): serve(1024, block=64)
"""


@pytest.mark.tells("tilelang", "compile", "hit", "cache_load", "name")
@pytest.mark.parametrize("witness", ["off", "cupti"])
def test_what_is_compiled_for_a_request_is_its_violation(
    witness: str, guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("tilelang") is None:
        pytest.skip("needs TileLang")
    monkeypatch.setenv("TILELANG_CACHE_DIR", str(guarded.path / "tilelang"))
    guarded.pytester.makepyfile(served=SERVED)
    guarded.suite(SUITE)
    args = ("--jitguard-warmup=served:warm_up", f"--jitguard-witness={witness}")
    for kind in ("compile", "cache_load"):
        guarded.run(*args, fake=False)
        told = {
            name: [(v["system"], v["kind"], v["kernel"]) for v in guarded.violations(name)]
            for name, verdict in guarded.verdicts().items()
            if verdict != "clean"
        }
        assert told == {name: [("tilelang", kind, "add.main")] for name in ("test_cold", "test_another_block")}
        assert guarded.report["findings"] == []
