"""Who accounts for what: loads and compiles as CUPTI tells them, against events as monitors record them."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.witness._order import Backlog, owner_of
from pytest_jitguard.witness.accounting import SLACK, Jit, Ledger, Sighting, gather, joined
from pytest_jitguard.witness.images import CUBIN, LARGE, PTX, Image
from pytest_jitguard.witness.records import BEGAN, CALL, COMPILER, MODULE, Record

NAMES = {11: "MainThread", 12: "worker"}
PTX_TEXT = b".version 8.0\n.visible .entry add_one(.param .u64 p) { ret; }"
WRAPPED = b"\xb1\x43\x62\x46" + bytes(12)
TO_PTX, TO_CUBIN = 2, 1
LOADED, STORED, COMPILED = 1, 2, 3


def load(at: float, *kernels: str, thread: str = "MainThread", **more: Any) -> Sighting:
    known = more.pop("known", True)
    return Sighting(at, at + 0.001, thread, known, Image(CUBIN, 14_336, kernels), "cuModuleLoadData", **more)


def compiled(at: float, thread: str = "MainThread") -> Sighting:
    return Sighting(at, at + 0.1, thread, True, jits=(Jit(at, at + 0.1, "PTX to cubin", True),))


def event(number: int, kernel: str, started: float, ended: float | None, **more: Any) -> CompileEvent:
    more = {"thread": "MainThread", "status": "running" if ended is None else "ok", **more}
    return CompileEvent(f"cafe-{number}", "triton", kernel, "", started, ended=ended, **more)


def owners(sightings: list[Sighting], *events: CompileEvent, living: tuple[str, ...] = ("MainThread",)) -> list[str]:
    told = Ledger().account(sightings, events, living)
    return [owner.id.rpartition("-")[2] if owner else "nobody" for _, owner in told]


# -- who accounts for a module -----------------------------------------------------------------------------------------


def test_a_compile_accounts_for_the_load_that_follows() -> None:
    assert owners([load(11.0, "scale")], event(1, "scale", 10.0, 10.9)) == ["1"]


def test_a_load_with_no_event_is_nobodys() -> None:
    assert owners([load(11.0, "scale")]) == ["nobody"]


def test_two_variants_of_one_kernel_need_two_events() -> None:
    loads = [load(11.0, "scale"), load(11.1, "scale")]
    assert owners(loads, event(1, "scale", 10.0, 10.9)) == ["1", "nobody"]
    assert owners(loads, event(1, "scale", 10.0, 10.9), event(2, "scale", 11.05, 11.06)) == ["1", "2"]


def test_an_event_counts_once_over_several_looks() -> None:
    ledger, one = Ledger(), event(1, "scale", 10.0, 10.9)
    assert ledger.account([load(11.0, "scale")], [one])[0][1] is one
    assert ledger.account([load(11.5, "scale")], [one])[0][1] is None


def test_an_autotune_run_loads_many() -> None:
    loads = [load(10.0 + n / 10, "scale") for n in range(8)]
    assert owners(loads, event(1, "scale", 9.9, 12.0, kind="autotune")) == ["1"] * 8


def test_what_an_autotune_run_compiled_is_put_down_to_its_compiles_first() -> None:
    tuning = event(1, "scale", 10.0, 12.0, kind="autotune")
    part = event(2, "scale", 10.1, 10.5, parent="cafe-1")
    assert owners([load(10.6, "scale"), load(13.0, "scale")], tuning, part) == ["2", "1"]
    assert owners([load(10.6, "scale"), load(10.7, "scale"), load(12.0 + SLACK + 1, "other")], tuning, part) == [
        "2",
        "1",
        "nobody",
    ]


def test_a_kernel_that_was_warmed_is_loaded_at_its_first_launch() -> None:
    warmed, loaded = event(1, "scale", 10.0, 10.9), event(2, "scale", 900.0, 900.01, kind="device_load")
    assert owners([load(900.005, "scale")], warmed, loaded) == ["2"]
    assert owners([load(900.005, "scale")], warmed) == ["1"]


def test_a_load_before_the_event_is_not_its_own() -> None:
    assert owners([load(9.0, "scale")], event(1, "scale", 10.0, 10.9)) == ["nobody"]


def test_a_name_of_another_kernel_accounts_for_nothing_later() -> None:
    assert owners([load(10.9 + SLACK + 1, "scale")], event(1, "shift", 10.0, 10.9)) == ["nobody"]


def test_without_a_name_the_thread_that_has_just_compiled_accounts_for_one_load() -> None:
    nvrtc = event(1, "default_program", 10.0, 10.5)
    assert owners([load(10.6, "_Z3addPf"), load(10.7, "hidden")], nvrtc) == ["1", "nobody"]
    assert owners([load(10.6, "_Z3addPf", thread="worker")], nvrtc) == ["nobody"]
    assert owners([load(10.5 + SLACK + 1, "_Z3addPf")], nvrtc) == ["nobody"]


def test_names_go_before_times() -> None:
    # The hidden module comes first, right after the compile whose own module is still to come.
    loads = [load(10.95, "hidden"), load(11.0, "scale")]
    assert owners(loads, event(1, "scale", 10.0, 10.9)) == ["nobody", "1"]


def test_whatever_is_loaded_while_the_thread_compiles_is_part_of_it() -> None:
    dynamo = event(1, "forward", 10.0, 20.0)
    assert owners([load(12.0, "anything")], dynamo) == ["1"]
    assert owners([load(12.0, "anything", thread="worker")], dynamo) == ["nobody"]
    assert owners([load(12.0, "anything")], event(1, "forward", 10.0, None)) == ["1"]


def test_an_outer_event_is_no_excuse_for_what_comes_after_its_parts() -> None:
    dynamo, part = event(1, "forward", 10.0, 20.0), event(2, "fused_add", 15.0, 16.0, parent="cafe-1")
    assert owners([load(16.1, "fused_add"), load(20.5, "hidden")], dynamo, part) == ["2", "nobody"]


def test_a_compile_that_failed_loads_nothing() -> None:
    assert owners([load(11.0, "scale")], event(1, "scale", 10.0, 10.9, status="failed")) == ["nobody"]


@pytest.mark.parametrize("kind", ["graph_capture", "lock_wait", "fallback"])
def test_kinds_that_load_nothing_account_for_nothing(kind: str) -> None:
    assert owners([load(11.0, "scale")], event(1, "scale", 10.0, 12.0, kind=kind)) == ["nobody"]


def test_a_thread_that_is_gone_may_have_been_any_that_ran_then() -> None:
    gone = load(10.5, "anything", thread="thread 4711", known=False)
    assert owners([gone], event(1, "forward", 10.0, 20.0, thread="Thread-3")) == ["1"]
    assert owners([gone], event(1, "forward", 10.0, 20.0)) == ["nobody"]  # MainThread is there to ask


@pytest.mark.parametrize(
    ("kernel", "symbol", "owner"),
    [
        ("add_one", "_Z7add_onePf", "1"),
        ("ns::scale<3>", "_ZN2ns5scaleILi3EEEvPf", "1"),
        ("sm90_fp8_gemm", "_ZN9deep_gemm18sm90_fp8_gemm_impliE", "1"),
        ("add", "_Z7add_onePf", "nobody"),
        ("", "_Z7add_onePf", "nobody"),
    ],
)
def test_names_of_systems_and_symbols_of_cubins(kernel: str, symbol: str, owner: str) -> None:
    assert owners([load(100.0, symbol)], event(1, kernel, 10.0, 10.9)) == [owner]


def test_a_compile_without_a_load_is_accounted_for_only_while_something_is_under_way() -> None:
    nvrtc = event(1, "program", 10.0, 10.5)
    assert owners([compiled(10.2)], nvrtc) == ["1"]
    assert owners([compiled(10.6)], nvrtc) == ["nobody"]
    assert owners([compiled(10.2, "worker")], nvrtc) == ["nobody"]


# -- what belongs together ---------------------------------------------------------------------------------------------


def call(number: int, at: float, data: bytes, **more: Any) -> Record:
    more = {"thread": 11, "name": "cuModuleLoadData", "size": len(data), **more}
    return Record(CALL, at, at + 0.1, call=number, data=data, **more)


def jit(at: float, stage: int, operation: int, thread: int = 11) -> Record:
    return Record(COMPILER, at, at + 0.05, thread, stage=stage, operation=operation)


def test_ptx_that_the_driver_compiles_is_one_sighting() -> None:
    records = [call(1, 10.0, PTX_TEXT), Record(MODULE, 10.09, 10.09, 11, call=1, size=5_000, data=b"\x7fELF")]
    records += [jit(10.01, TO_CUBIN, COMPILED), jit(10.07, TO_CUBIN, STORED)]
    (seen,), library = gather(records, NAMES)
    assert (seen.kind, seen.thread, seen.call, library) == ("compile", "MainThread", "cuModuleLoadData", 0)
    assert seen.image == Image(PTX, len(PTX_TEXT), ("add_one",))
    assert list(seen.stages) == ["PTX to cubin"]


def test_ptx_from_the_drivers_cache_is_a_load() -> None:
    (seen,), _ = gather([call(1, 10.0, PTX_TEXT), jit(10.01, TO_CUBIN, LOADED)], NAMES)
    assert seen.kind == "cache_load"


def test_calls_in_a_row_have_their_own_compiler_each() -> None:
    # As measured: two loads from the driver's cache, 0.1 ms apart.
    first, second = (
        Record(CALL, at, at + length, 11, n, "cuModuleLoadData", len(PTX_TEXT), PTX_TEXT)
        for n, at, length in ((1, 10.0, 0.000135), (2, 10.00014, 0.000045))
    )
    jits = [Record(COMPILER, at, at, 11, stage=TO_CUBIN, operation=LOADED) for at in (10.00004, 10.00016)]
    seen, _ = gather([first, second, *jits], NAMES)
    assert [(one.kind, len(one.jits)) for one in seen] == [("cache_load", 1), ("cache_load", 1)]


def test_the_nearer_call_is_the_owner() -> None:
    first, second = call(1, 10.0, PTX_TEXT), call(2, 10.1, PTX_TEXT)  # one ends as the other begins
    compiled = Record(COMPILER, 10.1, 10.1, 11, stage=TO_CUBIN, operation=LOADED)
    assert owner_of(compiled, [first, second]) is second
    near = compiled._replace(started=10.09999, ended=10.09999)
    assert owner_of(near, [first, second._replace(started=10.10003)]) is first  # inside goes before near
    assert owner_of(compiled._replace(thread=12), [first, second]) is None
    assert owner_of(compiled._replace(started=10.3, ended=10.3), [first, second]) is None


def test_what_is_stored_at_a_calls_end_is_not_the_next_calls() -> None:
    first = call(1, 10.0, PTX_TEXT)._replace(ended=10.1617)
    second = call(2, 10.1618, PTX_TEXT)._replace(ended=10.1694)
    times = (
        (10.0001, 0.1613, COMPILED),
        (10.1613, 0.0002, STORED),
        (10.1619, 0.0073, COMPILED),
        (10.1691, 0.0001, STORED),
    )
    jits = [Record(COMPILER, at, at + length, 11, stage=TO_CUBIN, operation=what) for at, length, what in times]
    seen, _ = gather([first, second, *jits], NAMES)
    assert [len(one.jits) for one in seen] == [2, 2]


def test_what_nvrtc_stores_just_before_a_load_is_not_the_loads() -> None:
    # As measured: NVRTC's compile is told by the look into the driver's cache before it and the store after it.
    times = [(10.0, 0.0001, TO_PTX, LOADED), (10.0299, 0.0002, TO_PTX, STORED)]
    times += [(10.0302, 0.0, TO_CUBIN, LOADED), (10.0609, 0.0002, TO_CUBIN, STORED)]
    jits = [Record(COMPILER, at, at + length, 11, stage=stage, operation=what) for at, length, stage, what in times]
    (compiled, loaded), _ = gather([*jits, call(1, 10.06112, b"\x7fELF")], NAMES)
    assert (loaded.jits, compiled.started) == ((), 10.0)
    assert {stage: round(seconds, 3) for stage, seconds in compiled.stages.items()} == {
        "NVVM IR to PTX": 0.030,
        "PTX to cubin": 0.031,
    }


def began(number: int, at: float, thread: int = 11) -> Record:
    return Record(BEGAN, at, at, thread, number)


def test_what_belongs_to_a_call_under_way_waits_for_it() -> None:
    backlog, compiled = Backlog(), jit(10.01, TO_CUBIN, COMPILED)
    module, loaded = Record(MODULE, 10.09, 10.09, 11, call=1), call(1, 10.0, PTX_TEXT)
    others = [jit(10.02, TO_CUBIN, COMPILED, thread=12), Record(MODULE, 10.03, 10.03, 12)]
    assert backlog.complete([began(1, 10.0), *others], [compiled]) == others
    assert backlog.complete([module], []) == []
    assert backlog.complete([loaded], []) == [compiled, module, loaded]
    assert backlog.waiting == []


def test_a_call_that_ends_during_a_flush_waits_for_the_next() -> None:
    backlog, loaded, compiled = Backlog(), call(1, 10.0, PTX_TEXT), jit(10.01, TO_CUBIN, COMPILED)
    assert backlog.complete([], [began(1, 10.0), loaded]) == []
    assert backlog.complete([], [compiled]) == [loaded, compiled]
    assert backlog.waiting == []


def test_what_came_before_a_call_under_way_does_not_wait_for_it() -> None:
    backlog, compiled = Backlog(), jit(9.9, TO_CUBIN, COMPILED)
    assert backlog.complete([began(1, 10.0)], [compiled]) == [compiled]


def test_nothing_waits_for_a_call_whose_end_was_lost_once_its_thread_has_begun_another() -> None:
    backlog, compiled, loaded = Backlog(), jit(10.01, TO_CUBIN, COMPILED), call(2, 11.0, PTX_TEXT)
    assert backlog.complete([began(1, 10.0)], [compiled]) == []
    assert backlog.complete([began(2, 11.0), loaded], []) == [compiled, loaded]
    assert backlog.waiting == []


def test_library_code_is_told_apart() -> None:
    records = [
        call(1, 10.0, WRAPPED, name="cuLibraryLoadData"),
        Record(MODULE, 10.05, 10.05, 11, call=1, size=3_000_000),
        Record(MODULE, 12.0, 12.0, 11, size=30_000, data=b"\x7fELF"),  # in no call: loaded lazily
        call(2, 13.0, b"\x7fELF", size=LARGE),
    ]
    seen, library = gather(records, NAMES)
    assert (seen, library) == ([], 2)


def test_compiles_without_a_load_are_one_each() -> None:
    records = [jit(10.0, TO_PTX, STORED), jit(10.05, TO_CUBIN, STORED), jit(11.0, TO_PTX, STORED)]
    seen, _ = gather([*records, jit(10.0, TO_PTX, COMPILED, thread=12)], NAMES)
    assert [(one.thread, len(one.jits)) for one in seen] == [("MainThread", 2), ("worker", 1), ("MainThread", 1)]


def test_a_lookup_in_the_drivers_cache_alone_is_nothing() -> None:
    assert gather([jit(10.0, TO_CUBIN, LOADED)], NAMES).sightings == []


def test_a_thread_that_python_does_not_know_goes_by_its_number() -> None:
    (seen,), _ = gather([call(1, 10.0, PTX_TEXT, thread=4711)], NAMES)
    assert (seen.thread, seen.is_known) == ("thread 4711", False)


def test_a_file_is_named() -> None:
    (seen,), _ = gather([call(1, 10.0, b"/tmp/kernel.cubin", name="cuModuleLoad")], NAMES)
    assert (seen.call, seen.kernels) == ("cuModuleLoad from /tmp/kernel.cubin", ())


def test_a_file_is_read_where_no_module_tells_what_is_in_it() -> None:
    files = {"/tmp/kernel.ptx": PTX_TEXT}
    (seen,), _ = gather([call(1, 10.0, b"/tmp/kernel.ptx", name="cuLibraryLoadFromFile")], NAMES, files.__getitem__)
    assert (seen.kernels, seen.image) == (("add_one",), Image(PTX, len(PTX_TEXT), ("add_one",)))


def test_a_load_that_failed_is_told_as_failed() -> None:
    (seen,), _ = gather([call(1, 10.0, PTX_TEXT[:4], result=218)], NAMES)
    assert seen.failed


def test_what_is_compiled_and_then_loaded_is_one() -> None:
    (one,) = joined([compiled(10.0), load(10.2, "erfinv")])
    assert (one.started, one.kernels, list(one.stages)) == (10.0, ("erfinv",), ["PTX to cubin"])
    assert len(joined([compiled(10.0), load(10.2, "erfinv", thread="worker")])) == 2
    assert len(joined([compiled(10.0), load(10.2, "a"), load(10.3, "b")])) == 2
    assert len(joined([compiled(10.0), load(10.1 + SLACK + 1, "a")])) == 2
