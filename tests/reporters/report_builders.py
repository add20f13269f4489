"""Builds the records of a process step by step, with the product's own classes, so that their forms are real."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pytest_jitguard.core.baseline import Baseline
from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.explain import Background
from pytest_jitguard.core.keys import Component, SpecializationKey
from pytest_jitguard.core.phases import PhaseLog, Window
from pytest_jitguard.core.policy import Policy
from pytest_jitguard.core.verdicts import Served, Verdict, judge
from pytest_jitguard.reporters.model import ProcessRecords

LAYER = "/repo/examples/wna16_moe/layer.py:88:gemm"


def key(block: int) -> SpecializationKey:
    return SpecializationKey(
        (Component("A", "argument", "*fp16", "16-byte aligned"), Component("BLOCK_SIZE_M", "constexpr", "", str(block)))
    )


class FakeProcess:
    """A process on a clock of its own: every event and window moves it on."""

    def __init__(self, role: str = "pytest", pid: int = 100, image: str = "aaaa1111", born: float = 1000.0) -> None:
        self.role, self.pid, self.image = role, pid, image
        self.now = 50.0
        self.log = PhaseLog()
        self.warmed: list[CompileEvent] = []
        self.numbers = 0
        self.records: list[dict[str, Any]] = [
            {
                "record": "hello",
                "schema": 1,
                "image": image,
                "host": "node1",
                "pid": pid,
                "role": role,
                "monotonic": self.now,
                "time": born,
                "python": "3.11.0",
                "argv": ["pytest"],
            }
        ]

    def note(self, **record: Any) -> None:
        self.records.append(record)

    def environment(self, **changed: Any) -> FakeProcess:
        known = {
            "record": "environment",
            "pytest": "9.2.0",
            "python": "3.11.0",
            "platform": "Linux",
            "packages": {"torch": None, "triton": "3.9.0"},
            "jitguard": "0.1.0",
            "offline": "cuda:90",
            "cache": "cold",
            "cache_folder": "/tmp/cold",
            "root": "/repo",
            "settings": {"mode": "fail"},
            "waive": [],
        }
        self.note(**{**known, **changed})
        return self

    def open(self, phase: str, label: str = "", **details: Any) -> Window:
        self.now += 0.01
        window = self.log.open(phase, label, self.now, **details)
        self.records.append(window.open_record())
        return window

    def close(self, window: Window) -> None:
        self.now += 0.01
        self.records.extend(closed.close_record() for closed in self.log.close(window, self.now))

    @contextlib.contextmanager
    def window(self, phase: str, label: str = "", **details: Any) -> Iterator[Window]:
        window = self.open(phase, label, **details)
        yield window
        self.close(window)

    def begin(self, kernel: str = "wna16_gemm", kind: str = "compile", **fields: Any) -> CompileEvent:
        self.now += 0.01
        self.numbers += 1
        event = CompileEvent(
            f"{self.image}-{self.numbers}", "triton", kernel, "layer", self.now, kind, pid=self.pid, **fields
        )
        self.records.append(event.begin_record())
        return event

    def end(self, event: CompileEvent, seconds: float = 0.5, **changed: Any) -> CompileEvent:
        event.ended = event.started + seconds
        self.now = max(self.now, event.ended)
        for name, value in {"status": "ok", **changed}.items():
            setattr(event, name, value)
        self.records.append(event.end_record())
        return event

    def compile(self, block: int, seconds: float = 0.5, **fields: Any) -> CompileEvent:
        event = self.begin(stack=(LAYER,), **fields)
        cure = f"layer.wna16_gemm.warmup(BLOCK_SIZE_M={block})"
        return self.end(event, seconds, key=key(block), artifact_hash=f"{event.kernel}-{block}", cure=cure)

    def warmup(self, *blocks: int, status: str = "ok", cause: str = "", label: str = "", **fields: Any) -> None:
        with self.window("warmup", label or "session", owner=label, attempt=0):
            self.warmed += [self.compile(block) for block in blocks]
        step = {"path": "suite:warm", "status": status, "seconds": 3.2, "error": cause, "traceback": ""}
        known = {"record": "warmup", "label": label, "status": status, "seconds": 3.2, "waited": 0.0, "cause": cause}
        self.note(**{**known, "steps": [step], **fields})

    def monitor(self, state: str = "armed", detail: str = "", name: str = "triton") -> FakeProcess:
        version = "" if state == "waiting" else "3.9.0"
        self.note(record="monitor", name=name, state=state, version=version, detail=detail)
        return self

    def test(
        self,
        nodeid: str,
        *blocks: int,
        attempt: int = 1,
        outcome: str | None = None,
        xfail: bool = False,
        policy: Policy | None = Policy(),  # noqa: B008 - frozen
        known: Baseline | None = None,
        kernel: str = "wna16_gemm",
        seconds: float = 0.5,
        guarded: bool = True,
    ) -> Verdict:
        """Run a test whose call compiles some variants, judge it, and report it as pytest would."""
        for phase in ("setup", "serving"):
            with self.window(phase, nodeid, owner=nodeid, attempt=attempt):
                served = [self.compile(b, seconds, kernel=kernel) for b in blocks] if phase == "serving" else []
            if phase == "setup":
                self.outcome(nodeid, "setup", "passed", attempt=attempt)
        verdict = Verdict(nodeid, "unguarded", attempt=attempt)
        if guarded and policy is not None:
            verdict.mode = policy.mode
            self.judge(verdict, served, policy, known)
        self.records.append(verdict.to_wire())
        word = outcome or ("failed" if verdict.violated and verdict.mode == "fail" else "passed")
        self.outcome(nodeid, "call", word, attempt=attempt, xfail=xfail)
        with self.window("teardown", nodeid, owner=nodeid, attempt=attempt):
            pass
        self.outcome(nodeid, "teardown", "passed", attempt=0)
        return verdict

    def judge(
        self, verdict: Verdict, events: Sequence[CompileEvent], policy: Policy, known: Baseline | None = None
    ) -> None:
        background = Background(warmed=self.warmed, root="/repo")
        judge(verdict, [Served(e) for e in events], policy, background, (known or Baseline()).knows, self.now)
        verdict.evidence = {
            "monitors_armed": ["triton"],
            "processes": [self.pid],
            "warmup_events": len(self.warmed),
            "launches": 7,
            "expected": {},
        }

    def outcome(
        self, nodeid: str, when: str, outcome: str, *, attempt: int = 1, xfail: bool = False, **more: Any
    ) -> None:
        known = {"record": "outcome", "nodeid": nodeid, "when": when, "outcome": outcome, "xfail": xfail}
        self.note(**{**known, "attempt": attempt, **more})

    def finish(self, *, order_dependent: bool = False, armed: Sequence[str] = ("triton",), **more: Any) -> FakeProcess:
        known = {"record": "session", "monitors": [], "ever_armed": list(armed), "order_dependent": order_dependent}
        self.note(**{**known, "launches": {"layer.wna16_gemm": 7}, **more})
        self.note(record="bye", monotonic=self.now, lost=0)
        return self

    @property
    def raw(self) -> ProcessRecords:
        """The records as they come back from a file."""
        return ProcessRecords(self.role, self.image, json.loads(json.dumps(self.records)))

    def write(self, folder: Path) -> Path:
        """Write the journal's file."""
        path = folder / f"node1-{self.pid}-1000-{self.image}.jsonl"
        path.write_text("".join(f"{json.dumps(record)}\n" for record in self.records))
        return path


def gap() -> FakeProcess:
    """The run that the project starts from: warmed with a small batch, served with a large one."""
    process = FakeProcess().environment().monitor()
    process.warmup(16)
    process.test("tests/test_moe.py::test_large", 64, seconds=0.83)
    process.test("tests/test_moe.py::test_larger", 64, seconds=0.55)
    process.test("tests/test_moe.py::test_small")
    return process.finish()


def tuned(policy: Policy = Policy()) -> FakeProcess:  # noqa: B008 - frozen
    """A request that tuned a kernel: 3 s, of which its two configs took 2.5 s to compile."""
    process = FakeProcess().environment().monitor()
    process.warmup(16)
    with process.window("serving", "a.py::test", owner="a.py::test", attempt=1):
        run = process.begin("tuned", "autotune", stack=(LAYER,))
        parts = [process.compile(64, 1.5, kernel="tuned", parent=run.id), process.begin("tuned", parent=run.id)]
        process.end(parts[1], 1.0, kind="cache_load", cure="import layer\n\nlayer.tuned.warmup(2)")
        process.end(run, 3.0, cure="# call it once")
    verdict = Verdict("a.py::test", "unguarded", mode="fail")
    process.judge(verdict, [run, *parts], policy)
    process.records.append(verdict.to_wire())
    process.outcome("a.py::test", "call", "failed" if verdict.violated else "passed")
    return process.finish()
