"""numba on the CPU, for real: dispatchers, ufuncs, C callbacks, the disk cache."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from armed import Armed, armed

from pytest_jitguard.contract import MonitorContract
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.keys import diff

NUMBA = "pytest_jitguard.monitors.numba:NumbaMonitor"


def fresh(number: int, body: str = "return x + {number}") -> Any:
    """Return a function that nobody has compiled."""
    import numba

    namespace: dict[str, Any] = {"__name__": "made_for_a_test"}
    exec(f"def kernel_{number}(x):\n    {body.format(number=number)}\n", namespace)
    return numba.njit(namespace[f"kernel_{number}"])


@pytest.mark.tells(
    "numba",
    "compile",
    "hit",
    "cache_load",
    "name",
    "seconds",
    "key",
    "failed",
    "threads",
    "uninstall",
    "blind",
    "no_frames",
)
class TestContract(MonitorContract):
    monitor = NUMBA
    requires = ("numba",)
    not_there: ClassVar[Mapping[str, str]] = {
        "alias": "what compiles is a method of the dispatcher: no name of it can be taken before us",
        "reset": "there is no reset but of one dispatcher, see test_recompile",
        "reload": "numba registers types at its import, which it cannot do twice",
    }

    def environment(self, folder: Path) -> Mapping[str, str]:
        (folder / "stored.py").write_text(
            "import numba\n\n\n@numba.njit(cache=True)\ndef stored(x):\n    return x * 3\n", encoding="utf-8"
        )
        return {"NUMBA_CACHE_DIR": f"{folder}/cache"}

    def prepare(self) -> None:
        fresh(0)(1)

    def compile_new(self) -> str:
        number = self.number()
        self.last = fresh(number)
        assert self.last(1) == number + 1
        return f"kernel_{number}"

    def repeat(self) -> None:
        self.last(2)

    def fail(self) -> None:
        fresh(self.number(), "return x.nothing")(1)

    def load_from_disk(self) -> None:
        sys.path.insert(0, str(self.folder))
        assert importlib.import_module("stored").stored(2) == 6

    def hide(self) -> None:
        import numba.core.event

        numba.core.event._registered["numba:compile"].clear()

    def sneak_in(self) -> None:
        from numba.core import event

        self.kept = function = fresh(self.number())
        listeners = event._registered["numba:compile"]
        hidden, listeners[:] = listeners[:], []
        function(1)
        listeners[:] = hidden


@pytest.fixture
def watch() -> Iterator[Armed]:
    pytest.importorskip("numba")
    with armed(NUMBA) as watch:
        yield watch
        watch.monitors.settle()
        assert watch.monitor.state != "blind", watch.monitor.detail


def one(events: Iterable[CompileEvent]) -> CompileEvent:
    (event,) = events
    return event


def key(event: CompileEvent) -> dict[str, tuple[str, str, str]]:
    assert event.key is not None
    return {part.name: (part.role, part.type, part.value) for part in event.key}


@pytest.mark.tells("numba", "parts")
def test_a_function_that_is_called_is_a_part_of_its_caller(watch: Armed) -> None:
    import numba

    def add_one(x: Any) -> Any:
        return x + 1

    callee = numba.njit(add_one)

    def twice(x: Any) -> Any:
        return callee(x) * 2

    assert numba.njit(twice)(1) == 4
    outer, inner = watch.all_news()
    assert outer.full_name.endswith("twice")
    assert (inner.full_name.endswith("add_one"), inner.parent) == (True, outer.id)
    assert outer.stack[0].startswith(__file__)
    assert outer.stages["nopython_type_inference"] <= (outer.seconds or 0)
    assert callee(1) == 2  # compiled as a part
    assert watch.all_news() == []


@pytest.mark.tells("numba", "key", "reason")
def test_types_and_flags_are_the_key(watch: Armed) -> None:
    import numba
    import numpy

    def scale(values: Any, factor: Any, times: int = 2) -> Any:
        return values * factor * times

    plain = numba.njit(fastmath=True)(scale)
    plain(numpy.ones((2, 2)), 1)
    first = one(watch.news())
    assert key(first) == {
        "values": ("argument", "array(float64, 2d, C)", ""),
        "factor": ("argument", "int64", ""),
        "times": ("argument", "omitted", "default 2"),
        "fastmath": ("option", "", "True"),
        "nopython": ("option", "", "True"),
    }
    plain(numpy.ones((2, 2)).T, 1.5)
    second = one(watch.news())
    assert first.key is not None
    assert second.key is not None
    assert [str(change) for change in diff(first.key, second.key)] == [
        "values: array(float64, 2d, C) → array(float64, 2d, F)",
        "factor: int64 → float64",
    ]
    assert first.artifact_hash != second.artifact_hash


def test_literal_arguments_are_told_by_value(watch: Armed) -> None:
    import numba

    def by_value(x: Any) -> Any:
        return numba.literally(x)

    literal = numba.njit(by_value)
    assert [literal(5), literal(6)] == [5, 6]
    tried, five, again, six = watch.news()
    assert tried.status == again.status == "failed"
    assert "compiled anew for their values" in tried.detail
    assert key(five)["x"] == ("argument", "int64", "literal 5")
    assert key(six)["x"] == ("argument", "int64", "literal 6")


STORED = """
import numba


@numba.njit(cache=True, fastmath=True)
def stored(x, y):
    return x * y


@numba.vectorize(cache=True)
def ufunc(x, y):
    return x * y
"""

PROGRAM = """
import sys

sys.path[:0] = [{folder!r}, {here!r}]
from armed import armed

import numba, numpy
import stored

with armed({monitor!r}) as watch:
    stored.stored(numpy.ones(3), 2)
    stored.ufunc(numpy.ones(3), 2)
    for event in watch.news():
        print(event.kind, event.full_name, event.artifact_hash, event.status, *event.key, sep="|")
    print(watch.monitor.state, watch.monitor.detail)
"""


@pytest.mark.tells("numba", "cache_load", "key")
def test_a_load_is_told_by_the_key_of_its_compile(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    (tmp_path / "stored.py").write_text(STORED)
    program = PROGRAM.format(folder=str(tmp_path), here=str(Path(__file__).parent), monitor=NUMBA)
    first, second = (run(program, tmp_path) for _ in range(2))
    kinds = [[line.partition("|")[0] for line in lines[:-1]] for lines in (first, second)]
    assert kinds == [["compile", "compile"], ["cache_load", "cache_load"]]
    assert [line.partition("|")[2] for line in first[:-1]] == [line.partition("|")[2] for line in second[:-1]]
    assert [line.split("|")[1] for line in first[:-1]] == ["stored.stored", "stored.ufunc"]
    assert first[-1] == second[-1] == "unproven "


def run(program: str, folder: Path) -> list[str]:
    import os

    env = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_ufuncs_and_callbacks_which_have_no_event(watch: Armed) -> None:
    import numba
    import numpy

    def plus(x: Any, y: Any) -> Any:
        return x + y

    add = numba.vectorize(plus)
    assert add(numpy.ones(2), 1).tolist() == [2.0, 2.0]
    event = one(watch.news())
    assert event.full_name.endswith("plus")
    assert key(event)["y"][1] == "int64"
    assert add(numpy.ones(3), 2).tolist() == [3.0, 3.0, 3.0]
    assert watch.all_news() == []

    def half(x: Any) -> Any:
        return x / 2

    assert numba.cfunc("float64(float64)")(half).ctypes(3.0) == 1.5
    event = one(watch.news())
    assert event.full_name.endswith("half")
    assert key(event)["return type"] == ("option", "", "float64")


FIRST_CALLBACK = """
import sys
import numba
from armed import armed

with armed("numba") as watch:
    assert "numba.core.ccallback" not in sys.modules
    numba.cfunc("float64(float64)")(lambda x: x / 2)
    print(len(watch.news()))
print(numba.core.ccallback.CFunc._compile_uncached.__module__)
"""


def test_the_first_callback_of_a_process_whose_module_numba_imports_for_it() -> None:
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    script = f"import sys; sys.path[:0] = {folders!r}\n{FIRST_CALLBACK}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "numba.core.ccallback"]


def test_a_lifted_loop_goes_by_the_function_around_it(watch: Armed) -> None:
    import numba

    def around(n: int) -> int:
        names: list[str] = [str(object())]
        total = 0
        for i in range(n):
            total += i
        return total + 0 * len(names)

    assert numba.jit(forceobj=True)(around)(5) == 10
    assert [event.kernel.rpartition(".")[2] for event in watch.news()] == ["around", "around (loop)"]


def test_recompile(watch: Armed) -> None:
    function = fresh(91)
    function(1)
    assert len(watch.news()) == 1
    function.recompile()
    assert [event.kind for event in watch.news()] == ["compile"]


@pytest.mark.tells("numba", "cure")
def test_the_cure_compiles_what_was_missing(watch: Armed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy

    source = """
        import numba

        @numba.njit
        def served(x, y, z):
            return x.sum() + y.sum() + z
    """
    (tmp_path / "with_a_cure.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("with_a_cure")
    module.served(numpy.ones((2, 2)), numpy.ones((2, 2)).T, 1)
    cure = one(watch.news()).cure
    assert cure == "from with_a_cure import served\n\nserved.compile('(float64[:, ::1], float64[::1, :], int64)')"
    importlib.reload(module)
    exec(cure, {})
    assert len(watch.news()) == 1
    module.served(numpy.ones((2, 2)), numpy.ones((2, 2)).T, 1)
    assert watch.news() == []


def test_no_cure_is_given_that_means_something_else(
    watch: Armed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy

    (tmp_path / "without_a_cure.py").write_text("import numba\n\n\n@numba.njit\ndef served(x):\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    served = importlib.import_module("without_a_cure").served
    read_only = numpy.ones(3)
    read_only.flags.writeable = False
    for value, cure in ((read_only, False), ((1, 2), False), (numpy.ones(3), True), (fresh(96), False)):
        served(value)
        assert bool(one(watch.news()).cure) == cure, value
    fresh(97)(1)
    assert one(watch.news()).cure == "", "a function that cannot be imported"


def test_what_listens_beside_us_is_not_disturbed(watch: Armed) -> None:
    from numba.core import event

    with event.install_recorder("numba:compile") as recorded:
        fresh(93)(1)
    assert [told.is_start for _, told in recorded.buffer] == [True, False]
    assert len(watch.news()) == 1


@pytest.mark.tells("numba", "blind")
def test_a_listener_that_was_thrown_out_is_missed() -> None:
    pytest.importorskip("numba")
    from numba.core import event

    with armed(NUMBA) as watch:
        (listener,) = event._registered["numba:compile"]
        event.unregister("numba:compile", listener)
        watch.monitors.settle()
        assert (watch.monitor.state, watch.monitor.detail) == ("blind", "the listener of numba:compile was thrown out")


@pytest.mark.tells("numba", "uninstall")
def test_the_listener_is_gone_once_disarmed() -> None:
    pytest.importorskip("numba")
    from numba.core import event

    before = list(event._registered["numba:compile"])
    with armed(NUMBA) as watch:
        assert len(event._registered["numba:compile"]) == len(before) + 1
    assert event._registered["numba:compile"] == before
    fresh(94)(1)
    assert watch.recorder.events == []


def test_what_is_resident_is_listed(watch: Armed) -> None:
    function = fresh(95)
    before = set(watch.monitor.resident())
    function(1)
    function(1.5)
    names = [name for token, name in watch.monitor.resident().items() if token not in before]
    assert names == ["made_for_a_test.kernel_95"] * 2
    watch.monitors.settle()


def test_numba_s_own_cuda_is_not_compared_with_the_versions_of_numba_cuda() -> None:
    from types import ModuleType

    from pytest_jitguard.core.recorder import Recorder
    from pytest_jitguard.monitors.numba_cuda import NumbaCudaMonitor

    monitor = NumbaCudaMonitor(Recorder("image", lambda record: None))
    module = ModuleType("numba.cuda.dispatcher")
    module.__file__ = "/site-packages/numba/cuda/dispatcher.py"
    monitor.version = monitor.version_of(module)
    assert monitor.untested().startswith("numba's own numba.cuda, here of numba ")
    module.__file__ = "/site-packages/numba_cuda/numba/cuda/dispatcher.py"
    monitor.version = monitor.version_of(module) or "0.30.1"
    assert monitor.untested() == ""
