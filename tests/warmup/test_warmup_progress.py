"""The line says what compiles, how many variants so far, and seconds; it neither floods nor raises."""

from __future__ import annotations

from pytest_jitguard.core.events import CompileEvent
from pytest_jitguard.core.kinds import KINDS
from pytest_jitguard.core.recorder import Recorder
from pytest_jitguard.warmup.progress import Progress


class Terminal:
    def __init__(self) -> None:
        self.now = 100.0
        self.lines: list[str] = []
        self.progress = Progress(self.lines.append, interval=0.5, clock=lambda: self.now)

    def begin(self, name: str, kernel: str = "k", kind: str = "compile") -> CompileEvent:
        event = CompileEvent(name, "triton", kernel, "m", self.now, kind)
        self.progress.begin(event)
        return event

    def end(self, event: CompileEvent, status: str = "ok", kind: str | None = None) -> None:
        event.status, event.kind = status, kind or event.kind
        self.progress.end(event)


def test_what_compiles_how_many_and_seconds() -> None:
    terminal = Terminal()
    terminal.end(terminal.begin("1"))
    terminal.now += 12.34
    terminal.begin("2", "fused_moe_kernel")
    assert terminal.lines == [
        "jitguard warmup: 0 variants, k: compiling (0.0 s)",
        "jitguard warmup: 1 variant, fused_moe_kernel: compiling (12.3 s)",
    ]


def test_a_hundred_variants_of_one_kernel_do_not_flood() -> None:
    terminal = Terminal()
    for number in range(100):
        event = terminal.begin(str(number))
        terminal.now += 0.01
        terminal.end(event)
    assert 2 <= len(terminal.lines) <= 4
    terminal.now += 1
    terminal.begin("last")
    assert terminal.lines[-1] == "jitguard warmup: 100 variants, k: compiling (2.0 s)"


def test_a_kernel_not_shown_yet_is_never_held_back() -> None:
    terminal = Terminal()
    terminal.end(terminal.begin("1", "quick"))
    terminal.begin("2", "takes_minutes")
    assert "takes_minutes: compiling" in terminal.lines[-1]


def test_autotuning_is_shown_again_after_the_compile_inside() -> None:
    terminal = Terminal()
    terminal.begin("1", "tuned", "autotune")
    terminal.end(terminal.begin("2", "tuned"))
    assert terminal.lines[-1] == "jitguard warmup: 1 variant, tuned: tuning (0.0 s)"


def test_every_kind_is_told_in_words() -> None:
    terminal = Terminal()
    for kind in KINDS:
        terminal.end(terminal.begin(kind, kind="lock_wait" if kind == "compile" else kind))
    assert all(": " in line and "_" not in line.partition(": ")[2] for line in terminal.lines if "k: " in line)
    assert "k: loading from disk" in "".join(terminal.lines)


def test_only_variants_count() -> None:
    terminal = Terminal()
    terminal.end(terminal.begin("1"), kind="cache_load")
    terminal.end(terminal.begin("2"), status="failed")
    terminal.end(terminal.begin("3"), kind="autotune")
    terminal.now += 1
    terminal.progress.message("next")
    assert terminal.lines[-1] == "jitguard warmup: 1 variant, next (1.0 s)"


def test_messages_are_one_line_and_come_back() -> None:
    terminal = Terminal()
    terminal.progress.message("batch 4\n of 12")
    assert terminal.lines == ["jitguard warmup: 0 variants, batch 4 of 12 (0.0 s)"]
    terminal.end(terminal.begin("1"))
    assert terminal.lines[-1] == "jitguard warmup: 1 variant, batch 4 of 12 (0.0 s)"


def test_done_clears_once_and_only_what_was_written() -> None:
    terminal = Terminal()
    terminal.progress.done()
    assert terminal.lines == []
    terminal.progress.message("x")
    terminal.progress.done()
    terminal.progress.done()
    assert terminal.lines[1:] == [""]


def test_a_broken_terminal_does_not_reach_the_compile() -> None:
    def broken(_: str) -> None:
        raise BrokenPipeError

    Progress(broken).message("x")
    recorder = Recorder("image", lambda record: None)
    progress = Progress(broken)
    recorder.on_begin, recorder.on_end = progress.begin, progress.end
    recorder.end(recorder.begin("triton", "k", "m"))
