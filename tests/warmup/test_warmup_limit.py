"""The limit raises in the block's thread, leaves other people's signals alone, and ends a process that is stuck in C.

Every case is a process of its own: signals and timers belong to the process.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time

import pytest

HEAD = """
import ctypes, faulthandler, os, signal, sys, threading, time
from pytest_jitguard.warmup.limit import WarmupTimeout, limit

def caught(block, seconds=0.1, **options):
    began = time.monotonic()
    try:
        with limit(seconds, **options):
            block()
    except WarmupTimeout as error:
        print("timeout", type(error.__cause__).__name__)
    else:
        print("no timeout")
    assert time.monotonic() - began < 2
"""


def script(body: str) -> subprocess.CompletedProcess[str]:
    code = HEAD + textwrap.dedent(body)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)


def output(body: str) -> list[str]:
    done = script(body)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_hanging_in_python_is_interrupted() -> None:
    assert output("caught(lambda: time.sleep(5))") == ["timeout NoneType"]


def test_a_busy_loop_is_interrupted() -> None:
    assert output("def spin():\n    while True: pass\ncaught(spin)") == ["timeout NoneType"]


def test_a_block_in_time_leaves_nothing_behind() -> None:
    body = """
    caught(lambda: None, grace=0.1)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    time.sleep(0.4)  # neither clock strikes afterwards
    print("alive")
    """
    assert output(body) == ["no timeout", "alive"]


def test_no_limit_touches_nothing() -> None:
    body = """
    def look():
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    caught(look, seconds=None)
    """
    assert output(body) == ["no timeout"]


def test_except_exception_does_not_swallow_it() -> None:
    body = """
    def stubborn():
        while True:
            try: time.sleep(5)
            except Exception: pass
    caught(stubborn)
    """
    assert output(body) == ["timeout NoneType"]


def test_a_late_block_is_late_whatever_it_does_with_the_timeout() -> None:
    body = """
    def swallows():
        try: time.sleep(5)
        except BaseException: pass
    def turns_around():
        try: time.sleep(5)
        except BaseException as error: raise ValueError("mine") from error
    caught(swallows)
    caught(turns_around)
    """
    assert output(body) == ["timeout NoneType", "timeout ValueError"]


def test_other_exceptions_pass_and_leave_nothing_behind() -> None:
    body = """
    def interrupted(): raise KeyboardInterrupt
    def wrong(): raise ValueError
    def late():
        try: time.sleep(5)
        except BaseException: raise KeyboardInterrupt
    for block in (interrupted, wrong, late):
        try: caught(block)
        except (KeyboardInterrupt, ValueError) as error: print(type(error).__name__)
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    """
    assert output(body) == ["KeyboardInterrupt", "ValueError", "KeyboardInterrupt"]


def test_handler_and_timer_of_somebody_else_are_put_back() -> None:
    body = """
    rung = []
    def handler(*_): rung.append(time.monotonic())
    signal.signal(signal.SIGALRM, handler)
    began = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.5, 7)
    caught(lambda: time.sleep(5))
    assert signal.getsignal(signal.SIGALRM) is handler and not rung
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    assert interval == 7 and left < 0.41, (left, interval)
    time.sleep(0.6)
    print(0.45 < rung[0] - began < 0.58)
    """
    assert output(body) == ["timeout NoneType", "True"]


def test_a_timer_of_somebody_else_that_fell_due_meanwhile_rings_afterwards() -> None:
    body = """
    rung = []
    signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    caught(lambda: time.sleep(0.15), seconds=3)
    time.sleep(0.1)
    print(rung)
    """
    assert output(body) == ["no timeout", "[1]"]


def test_a_signal_taken_over_inside_stays_with_the_taker() -> None:
    body = """
    rung = []
    theirs = lambda *_: rung.append(1)
    def take(): signal.signal(signal.SIGALRM, theirs)
    caught(take, seconds=0.2)
    assert signal.getsignal(signal.SIGALRM) is theirs
    time.sleep(0.3)
    print(rung)  # our timer does not reach them
    def take_timer():
        signal.signal(signal.SIGALRM, lambda *_: rung.append(2))
        signal.setitimer(signal.ITIMER_REAL, 0.1)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    caught(take_timer, seconds=1)
    time.sleep(0.2)
    print(rung)  # theirs does
    """
    assert output(body) == ["no timeout", "[]", "no timeout", "[2]"]


def test_another_thread_is_interrupted_when_it_runs_python_again() -> None:
    body = """
    def spin():
        while True: time.sleep(0.01)
    thread = threading.Thread(target=caught, args=(spin,))
    thread.start()
    thread.join()
    """
    assert output(body) == ["timeout NoneType"]


def test_another_thread_in_time_is_not_hit_later() -> None:
    # Ends at the limit, give or take: whatever was set must be taken back, and nothing may strike after the block.
    body = """
    from contextlib import suppress
    from pytest_jitguard.warmup import limit as module
    def work():
        for n in range(60):
            with suppress(WarmupTimeout):
                with limit(0.005):
                    time.sleep(0.0042 + n / 60 * 0.0016)
            for _ in range(2000): pass
        late = module._ThreadBell()
        late.arm(60)
        late.disarm()
        late._ring()  # the timer's thread was already on its way
        for _ in range(2000): pass
        print("unharmed")
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    """
    assert output(body) == ["unharmed"]


def test_the_main_thread_in_time_is_not_hit_later() -> None:
    body = """
    from contextlib import suppress
    for n in range(100):
        with suppress(WarmupTimeout):
            bound = limit(0.005)
            with bound:
                time.sleep(0.0042 + n / 100 * 0.0016)
        bound.close()  # as its callers do: the alarm may strike between the last line of the block and its end
        assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    print("unharmed")
    """
    assert output(body) == ["unharmed"]


def test_the_signal_that_comes_while_the_block_is_left_does_not_skip_the_clean_up() -> None:
    # A frame that counts as ours, which is there for long enough.
    body = """
    from pytest_jitguard.warmup import limit as module
    source = "def leave(*args):\\n    time.sleep(0.3)\\n    return real(*args)\\n"
    names = {"time": time, "real": module.Limit.__exit__}
    exec(compile(source, module.__file__, "exec"), names)
    module.Limit.__exit__ = names["leave"]
    caught(lambda: time.sleep(0.02), grace=0.5)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    time.sleep(0.5)
    print("clean")
    """
    assert output(body) == ["timeout NoneType", "clean"]


def test_the_asynchronous_exception_that_strikes_during_the_clean_up_does_not_skip_it() -> None:
    body = """
    from pytest_jitguard.warmup import limit as module
    real = module._ThreadBell.disarm
    strikes = [1]
    def disarm(bell):
        if strikes:
            strikes.pop()
            module._raise_in(threading.get_ident())
            for _ in range(1000): time.sleep(0)
        real(bell)
    module._ThreadBell.disarm = disarm
    thread = threading.Thread(target=caught, args=(lambda: None, 60))
    thread.start()
    thread.join()
    time.sleep(0.1)
    print(strikes, threading.active_count())  # the timer's thread is gone as well
    """
    assert output(body) == ["no timeout", "[] 1"]


# A mutex that is locked twice: waits for ever in C without giving the interpreter lock away, whatever signals come.
GIL_HELD = "lambda m=ctypes.create_string_buffer(64): [ctypes.PyDLL(None).pthread_mutex_lock(m) for _ in 'ab']"


@pytest.mark.parametrize("thread", [False, True])
def test_hanging_in_c_with_the_lock_held_ends_the_process_with_stacks(thread: bool) -> None:
    run = f"block = {GIL_HELD}\ndef stuck(): block()\n"
    run += "t = threading.Thread(target=caught, args=(stuck, 0.2), kwargs={'grace': 0.3})\nt.start(); t.join()\n"
    if not thread:
        run = f"block = {GIL_HELD}\ndef stuck(): block()\ncaught(stuck, 0.2, grace=0.3)\n"
    began = time.monotonic()
    done = script(run + "print('came back')")
    assert done.returncode == 1
    assert "Timeout (0:00:00.5" in done.stderr
    assert "in stuck" in done.stderr
    assert "most recent call first" in done.stderr
    assert done.stdout == ""
    assert time.monotonic() - began < 5


def test_swallowing_for_good_ends_the_process() -> None:
    body = """
    def stubborn():
        while True:
            try: time.sleep(5)
            except BaseException: pass
    caught(stubborn, 0.1, grace=0.2)
    """
    done = script(body)
    assert done.returncode == 1
    assert "in stubborn" in done.stderr


def test_the_stacks_go_to_the_file_that_was_asked_for() -> None:
    body = f"""
    import tempfile
    file = tempfile.TemporaryFile()
    os.set_inheritable(file.fileno(), True)
    if os.fork() == 0:
        caught({GIL_HELD}, 0.1, grace=0.1, file=file)
    print(os.wait()[1] >> 8)
    file.seek(0)
    print(b"<lambda>" in file.read())
    """
    done = script(body)
    assert done.stdout == "1\nTrue\n"
    assert "Timeout" not in done.stderr
