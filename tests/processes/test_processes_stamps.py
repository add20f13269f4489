"""The moment at which an engine's worker has warmed up, told by the engine's own method."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pytest_jitguard.processes import stamps
from tests.processes.conftest import Run, kinds

WORKER = """
import fakejit
class Base:
    def compile_or_warm_up_model(self, *, fail=False):
        fakejit.launch("warmed", n=1)
        if fail: raise RuntimeError("on purpose")
        return "seconds"
class Worker(Base): METHOD
"""


def _engine(folder: Path, method: str = "pass") -> None:
    for name in ("vllm", "vllm/v1", "vllm/v1/worker"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
    (folder / "vllm/v1/worker/gpu_worker.py").write_text(WORKER.replace("METHOD", method))


IMPORT = "import fakejit; from vllm.v1.worker.gpu_worker import Worker; "


def test_a_worker_of_vllm_tells_when_it_has_warmed_up(run: Run, tmp_path: Path) -> None:
    _engine(tmp_path)
    program = "assert Worker().compile_or_warm_up_model() == 'seconds'; fakejit.launch('served', n=1)"
    run("-c", IMPORT + program, PYTHONPATH=str(tmp_path))
    (text,) = run.journals
    told = [(record["record"], record.get("kernel", record.get("what"))) for record in text.records]
    told = [one for one in told if one[0] in ("begin", "end", "stamp")]
    assert told == [("begin", "warmed"), ("end", "warmed"), ("stamp", "warmed"), ("begin", "served"), ("end", "served")]
    (stamp,) = run.records("stamp")
    ends = {record["kernel"]: record["ended"] for record in run.records("end")}
    assert stamp["by"] == "vllm worker"
    assert ends["warmed"] <= stamp["at"] <= ends["served"]


def test_a_warmup_that_raises_is_no_warmup(run: Run, tmp_path: Path) -> None:
    _engine(tmp_path)
    program = "import contextlib\nwith contextlib.suppress(RuntimeError): Worker().compile_or_warm_up_model(fail=True)"
    run("-c", f"{IMPORT}\n{program}", PYTHONPATH=str(tmp_path))
    assert "stamp" not in kinds(run.journals[0])


def test_an_engine_without_the_method_is_left_alone(run: Run, tmp_path: Path) -> None:
    _engine(tmp_path, "compile_or_warm_up_model = None")
    run("-c", IMPORT + "assert Worker.compile_or_warm_up_model is None", PYTHONPATH=str(tmp_path))
    assert run.records("trouble") == []


def test_another_engine_is_one_line_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "an_engine.py").write_text("class Engine:\n    def warm(self): return 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    noted: list[object] = []
    line = stamps.Stamp("an_engine", "Engine", "warm", "warmed", "an engine")
    undo = stamps.watch(noted.append, (line,))
    import an_engine  # type: ignore[import-not-found]

    plain = an_engine.Engine.warm.__wrapped__
    assert an_engine.Engine().warm() == 7
    assert len(noted) == 1
    undo()
    assert vars(an_engine.Engine)["warm"] is plain
    assert an_engine.Engine().warm() == 7
    assert len(noted) == 1
    del sys.modules["an_engine"]
