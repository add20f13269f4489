"""Children in bad shape and journals of strangers: nothing hangs, no test is hit, and what is not trusted is told."""

from __future__ import annotations

import os
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import ServedRun

BEFORE = f"""
    import os, resource, shutil, signal, subprocess, sys
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from hostile import begin, folder, guard, hello, put, python
    LAUNCH = "import fakejit; fakejit.launch({{!r}})"
"""


def suite(run: ServedRun, body: str) -> None:
    run.suite(BEFORE.replace("{{!r}}", "{!r}") + body)


def kernels(report: Any) -> dict[str, set[str]]:
    """The kernels of each test."""
    found: dict[str, set[str]] = {}
    for event in report["events"]:
        found.setdefault(str(event["test"]).rpartition("::")[2], set()).add(event["kernel"])
    return found


# -- children in bad shape ---------------------------------------------------------------------------------------------

SHAPES = """
    @pytest.mark.jitguard
    def test_zombie():
        pid = os.fork()
        if pid == 0:
            fakejit.launch("zombie")
            os.kill(os.getpid(), signal.SIGKILL)
        while open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)

    @pytest.mark.jitguard
    def test_closes_everything():
        assert python("import os; os.closerange(0, 300)", LAUNCH.format("closed")) == 0

    @pytest.mark.jitguard
    def test_fork_closes_everything():
        pid = os.fork()
        if pid == 0:
            os.closerange(0, 300)
            for _ in range(20): os.open("/dev/null", os.O_RDWR)  # the number of our descriptor is somebody else's now
            fakejit.launch("reopened")
            os._exit(0)
        os.waitpid(pid, 0)

    @pytest.mark.jitguard
    def test_elsewhere():
        assert python("import os; os.chdir('/proc')", LAUNCH.format("elsewhere")) == 0

    @pytest.mark.jitguard
    def test_no_more_files():
        limits = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))"
        assert python("import fakejit", limits, LAUNCH.format("limited")) == 0

    @pytest.mark.jitguard
    def test_many():
        many = [subprocess.Popen([sys.executable, "-c", LAUNCH.format(f"k{i}")]) for i in range(64)]
        assert [one.wait() for one in many] == [0] * 64

    @pytest.mark.jitguard
    def test_after(): pass
"""


def test_children_in_bad_shape_are_seen(served: ServedRun) -> None:
    suite(served, SHAPES)
    served.run("-q", timeout=120).assert_outcomes(failed=6, passed=1)
    assert kernels(served.report) == {
        "test_zombie": {"zombie"},
        "test_closes_everything": {"closed"},
        "test_fork_closes_everything": {"reopened"},
        "test_elsewhere": {"elsewhere"},
        "test_no_more_files": {"limited"},
        "test_many": {f"k{i}" for i in range(64)},
    }
    assert served.verdicts()["test_after"] == "clean"
    assert served.report["findings"] == []
    assert (served.report["children"]["python"], served.report["children"]["silent"]) == (69, [])


NAMELESS = {
    "a fork without files": """
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        pid = os.fork()
        if pid == 0:
            fakejit.launch("unseen")
            os._exit(0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert os.waitpid(pid, 0)[1] == 0
    """,
    "damaged JSON": """assert python(LAUNCH.format("unseen"), JITGUARD_PARENT='{"folder":') == 0""",
    "a list": """assert python(LAUNCH.format("unseen"), JITGUARD_PARENT='[]') == 0""",
    "nothing in it": """assert python(LAUNCH.format("unseen"), JITGUARD_PARENT='{}') == 0""",
    "a folder that cannot be": (
        """assert python(LAUNCH.format("unseen"), JITGUARD_PARENT=os.environ["JITGUARD_PARENT"]"""
        """.replace(str(folder()), "/proc/nowhere")) == 0"""
    ),
    "another guard's folder": (
        """(folder().parent / "other").mkdir(); assert python(LAUNCH.format("unseen"), """
        """JITGUARD_PARENT=os.environ["JITGUARD_PARENT"].replace(str(folder()), str(folder().parent / "other"))) == 0"""
    ),
}


@pytest.mark.parametrize("how", NAMELESS)
def test_a_child_that_cannot_report_runs_on_and_is_named(how: str, served: ServedRun) -> None:
    body = textwrap.indent(textwrap.dedent(NAMELESS[how]).strip("\n"), 8 * " ")
    suite(served, f"    @pytest.mark.jitguard\n    def test_a():\n{body}\n")
    result = served.run("-q")
    assert (result.ret, served.verdicts()) == (0, {"test_a": "clean"})
    assert len(served.report["children"]["silent"]) == 1
    result.stdout.fnmatch_lines(["warning: children: 1 of 1 Python process did not report: *"])
    assert served.run("-q", "--jitguard-children=require").ret == pytest.ExitCode.TESTS_FAILED


def test_a_deleted_folder_takes_nothing_along_in_silence(served: ServedRun) -> None:
    suite(
        served,
        """
    @pytest.mark.jitguard
    def test_before(): assert python(LAUNCH.format("before")) == 0

    @pytest.mark.jitguard
    def test_deletes(): assert python(f"import shutil; shutil.rmtree({str(folder())!r})", LAUNCH.format("k")) == 0

    @pytest.mark.jitguard
    def test_after(): assert python(LAUNCH.format("after")) == 0
    """,
    )
    result = served.run("-q")
    assert set(served.verdicts().values()) == {"violated"}
    assert [[v["kernel"] for v in served.violations(f"test_{n}")] for n in ("before", "deletes", "after")] == [
        ["before"],
        ["k"],
        ["after"],
    ]
    result.stdout.fnmatch_lines(["warning: children: 1 of 3 Python processes did not report: *'before'*"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs root, and the right to mount")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


FILL = """
import fakejit, os, sys
with open(sys.argv[1], "wb", buffering=0) as file:
    for size in (65536, 1):
        try:
            while True: file.write(b"x" * size)
        except OSError: pass
for n in range(50):
    fakejit.launch(f"full{n}")
if sys.argv[2] == "emptied":
    os.unlink(sys.argv[1])
if sys.argv[2] == "dies":
    os._exit(0)
"""


@pytest.mark.parametrize("then", ["emptied", "stays", "dies"])
def test_a_full_disk_loses_nothing_in_silence(served: ServedRun, small_disk: Path, then: str) -> None:
    (served.path / "fill.py").write_text(FILL)
    suite(
        served,
        f"""
    @pytest.mark.jitguard
    def test_a(): subprocess.run([sys.executable, "fill.py", str(folder() / "filler"), {then!r}], check=True)

    @pytest.mark.jitguard
    def test_b(): pass
    """,
    )
    result = served.run("-q", f"--jitguard-journal={small_disk}")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert served.verdicts() == {"test_a": "violated", "test_b": "clean"}
    seen = kernels(served.report)["test_a"]
    if then == "emptied":
        assert seen == {f"full{n}" for n in range(50)}
        assert served.report["findings"] == []
    else:
        assert len(seen) < 50, "the disk was not full"
        assert [finding["name"] for finding in served.report["findings"]] == ["journal-incomplete"]


# -- journals of strangers ---------------------------------------------------------------------------------------------

FORGED = {
    # what: (statement, part of what the report says)
    "of another image": ("put('aaaa0001', hello('aaaa0002'), begin('aaaa0002-1'))", "its first record is that of"),
    "of another process": (
        "put('aaaa0001', hello('aaaa0001', pid=1), begin('aaaa0001-1'))",
        "its first record is that",
    ),
    "of another schema": ("put('aaaa0001', hello('aaaa0001', schema=99), begin('aaaa0001-1'))", "schema 99"),
    "of the guard": (
        "put(guard()['guard'], hello(guard()['guard']), begin(guard()['guard'] + '-1'))",
        "second journal",
    ),
    "headless": ("put('aaaa0001', begin('aaaa0001-1'))", "lost its first record"),
    "pid": ("put('aaaa0001', hello('aaaa0001', pid='x'), begin('aaaa0001-1'))", "does not fit in pid"),
    "time": ("put('aaaa0001', hello('aaaa0001', time={}), begin('aaaa0001-1'))", "does not fit in time"),
    "scope": ("put('aaaa0001', hello('aaaa0001', scope=[1]), begin('aaaa0001-1'))", "does not fit in scope"),
    "argv": ("put('aaaa0001', hello('aaaa0001', argv=5), begin('aaaa0001-1'))", "does not fit in argv"),
    "infinity": ("put('aaaa0001', hello('aaaa0001', monotonic=1e999))", "does not fit in monotonic"),
    "no moment": ("put('aaaa0001', hello('aaaa0001'), begin('aaaa0001-1', started=1e999))", "is no moment"),
    "unhashable": ("put('aaaa0001', hello('aaaa0001'), {'record': 'end', 'event': []})", "end record: TypeError"),
    "a server's": (
        "server = {'record': 'server', 'scope': 's', 'name': 's', 'state': 's', 'at': 1, 'argv': 7, 'lost': 'x'}; "
        "put('aaaa0001', hello('aaaa0001'), server, {**server, 'at': 'now'})",
        "server record: does not fit in at",
    ),
    "nested": ("(folder() / 'x-1-1-aaaa0001.jsonl').write_text('[' * 100_000)", "[[[["),
    "not text": ("(folder() / 'x-1-1-aaaa0001.jsonl').write_bytes(bytes(range(256)) * 9)", "aaaa0001.jsonl:1"),
    "FIFO": ("os.mkfifo(folder() / 'x-1-1-aaaa0001.jsonl')", "not a regular file"),
    "link": ("os.symlink('/etc/passwd', folder() / 'x-1-1-aaaa0001.jsonl')", "a symbolic link"),
    "folder": ("os.mkdir(folder() / 'x-1-1-aaaa0001.jsonl')", "not a regular file"),
    "another user's": (
        "os.chown(put('aaaa0001', hello('aaaa0001'), begin('aaaa0001-1')), 65534, 65534)",
        "another user",
    ),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_journal_that_cannot_be_trusted_is_told_and_hits_no_test(what: str, served: ServedRun) -> None:
    if what == "another user's" and os.geteuid() != 0:
        pytest.skip("needs root, to give a file away")
    statement, told = FORGED[what]
    suite(
        served,
        f"""
    @pytest.mark.jitguard
    def test_forges(): {statement}

    @pytest.mark.jitguard
    def test_real(): assert python(LAUNCH.format("real")) == 0

    @pytest.mark.jitguard
    def test_after(): pass
    """,
    )
    result = served.run("-q", timeout=60)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert served.verdicts() == {"test_forges": "clean", "test_real": "violated", "test_after": "clean"}
    assert kernels(served.report)["test_real"] == {"real"}
    assert [finding["name"] for finding in served.report["findings"]] == ["journal-incomplete"]
    assert any(told in line for process in served.report["processes"] for line in process["rejected"])


def test_a_second_journal_of_a_child_is_told(served: ServedRun) -> None:
    suite(
        served,
        """
    @pytest.mark.jitguard
    def test_forges():
        assert python(LAUNCH.format("real")) == 0
        (mine,) = [path for path in folder().glob("*.jsonl") if guard()["guard"] not in path.name]
        image = mine.stem.rpartition("-")[2]
        put(image, hello(image), begin(f"{image}-1"))
    """,
    )
    served.run("-q")
    assert [finding["name"] for finding in served.report["findings"]] == ["journal-incomplete"]
    assert any("a second journal of image" in line for p in served.report["processes"] for line in p["rejected"])
