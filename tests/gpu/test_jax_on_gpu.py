"""JAX on a real GPU: a request's compile is its violation, and what XLA loads is no news to the witness below."""

from __future__ import annotations

import importlib.util

import pytest

from tests.conftest import GuardedRun

pytestmark = pytest.mark.gpu

SERVED = """
    import jax, numpy

    @jax.jit
    def scale(x):
        return x * 2 + 1

    def serve(size):
        assert (numpy.asarray(scale(numpy.ones(size, numpy.float32))) == 3).all()

    def warm_up():
        assert jax.default_backend() == "gpu"
        serve(64)
"""
SUITE = """
    from served import serve

    pytestmark = pytest.mark.jitguard

    def test_warm(): serve(64)
    def test_cold(): serve(65)
    def test_cold_again(): serve(65)
"""


@pytest.mark.tells("jax", "compile", "hit", "name")
@pytest.mark.parametrize("witness", ["off", "cupti"])
def test_a_compile_for_a_request_is_its_violation(
    witness: str, guarded: GuardedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec("jax") is None:
        pytest.skip("needs JAX")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    guarded.pytester.makepyfile(served=SERVED)
    guarded.suite(SUITE)
    guarded.run("--jitguard-warmup=served:warm_up", f"--jitguard-witness={witness}", fake=False)
    assert guarded.verdicts() == {"test_warm": "clean", "test_cold": "violated", "test_cold_again": "clean"}
    (violation,) = guarded.violations("test_cold")
    assert (violation["system"], violation["kind"], violation["kernel"]) == ("jax", "compile", "scale")
    assert guarded.report["findings"] == []
