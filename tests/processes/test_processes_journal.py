"""The journal: one write a record, nothing trusted that is torn, nothing lost in silence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pytest_jitguard.processes import caches
from pytest_jitguard.processes.journal import Journal, make_folder, read_folder, read_journal
from pytest_jitguard.processes.relatives import Relatives
from tests.conftest import ROOT


def test_a_journal_begins_with_hello_and_ends_with_one_goodbye(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "pytest")
    journal.write({"record": "monitor", "name": "x"})
    journal.say_goodbye()
    journal.close()
    text = read_journal(journal.path)
    assert [record["record"] for record in text.records] == ["hello", "monitor", "bye"]
    assert (text.hello["role"], text.hello["pid"], text.hello["image"]) == ("pytest", os.getpid(), journal.image)
    assert text.ended
    assert text.rejected == []


def test_each_record_is_in_the_file_when_write_returns(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "pytest")
    journal.write({"record": "begin", "event": "1"})
    assert [record["record"] for record in read_journal(journal.path).records] == ["hello", "begin"]
    assert not read_journal(journal.path).ended


def test_a_torn_line_and_foreign_lines_are_reported_and_the_rest_is_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "pytest")
    with journal.path.open("ab") as file:
        file.write(b'[1]\n{"record": "unheard of"}\n\xff\xfe\n{"record": "begin", "event": "1"}\n{"record": "en')
    text = read_journal(journal.path)
    assert [record["record"] for record in text.records] == ["hello", "begin"]
    assert len(text.rejected) == 4
    assert text.rejected[0].startswith(f"{journal.path.name}:2: ")


def test_what_cannot_be_written_is_kept_and_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "missing", "pytest")
    journal.write({"record": "begin", "event": "1"})
    assert [record["record"] for record in journal.lost] == ["hello", "begin"]
    assert not (tmp_path / "missing").exists(), "who starts when the run is over must not litter"
    (tmp_path / "missing").mkdir()
    journal.close()
    text = read_journal(journal.path)
    assert [record["record"] for record in text.records] == ["hello", "begin", "bye"]
    assert text.records[-1]["lost"] == 0
    assert journal.lost == []


def test_a_record_that_cannot_be_told_is_counted_and_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    class Odd:
        def __str__(self) -> str:
            raise KeyError("odd")

    journal = Journal(tmp_path, "pytest")
    journal.write({"record": "begin", "of": Odd()})
    journal.write({"record": "begin", "event": "2"})
    journal.close()
    assert [record.get("event") for record in read_journal(journal.path).records] == [None, "2", None]
    assert read_journal(journal.path).records[-1]["lost"] == 1


def _written(journal: Journal) -> list[str]:
    text = read_journal(journal.path)
    assert text.rejected == []
    return [record.get("event", record["record"]) for record in text.records]


def _say(journal: Journal, *events: str) -> None:
    for event in events:
        journal.write({"record": "begin", "event": event})


def test_a_deleted_file_comes_back_with_all_it_held(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "pytest")
    _say(journal, "1")
    journal.path.unlink()
    _say(journal, "2", "3")
    assert _written(journal) == ["hello", "1", "2", "3"]
    assert journal.path.stat().st_mode & 0o777 == 0o600
    assert journal.lost == []


def test_a_deleted_folder_comes_back_with_all_it_held(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run")
    journal = Journal(folder, "pytest")
    _say(journal, "1")
    shutil.rmtree(folder)
    _say(journal, "2", "3")
    journal.close()
    assert _written(journal) == ["hello", "1", "2", "3", "bye"]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_come_back_leaves_all_in_memory(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run")
    journal = Journal(folder, "pytest")
    _say(journal, "1")
    shutil.rmtree(folder)
    folder.write_text("a file in its place")
    _say(journal, "2", "3")
    assert [record.get("event", record["record"]) for record in journal.lost] == ["hello", "1", "2", "3"]
    folder.unlink()
    make_folder(folder)
    _say(journal, "4")
    assert _written(journal) == ["hello", "1", "2", "3", "4"]


def test_a_child_that_outlives_the_run_does_not_bring_its_folder_back(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run")
    journal = Journal(folder, "child", guard="00000000")
    journal._parent = os.getppid() + 1  # as if the one that started us was gone
    shutil.rmtree(folder)
    _say(journal, "1")
    assert not folder.exists()
    assert [record["record"] for record in journal.lost] == ["hello", "begin"]


def test_whoever_closes_every_descriptor_does_not_lead_us_into_a_file_of_theirs(tmp_path: Path) -> None:
    program = f"""
import os
from pathlib import Path
from pytest_jitguard.processes.journal import Journal
journal = Journal(Path({str(tmp_path)!r}), "child")
os.closerange(3, 64)
others = [os.open({str(tmp_path / "other")!r}, os.O_RDWR | os.O_CREAT) for _ in range(16)]
journal.write({{"record": "begin", "event": "1"}})
journal.close()
assert all(os.fstat(other) for other in others)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    assert (tmp_path / "other").read_bytes() == b""
    (text,) = read_folder(tmp_path)
    assert [record["record"] for record in text.records] == ["hello", "begin", "bye"]


LIMITED = """
import os, resource
from pathlib import Path
from pytest_jitguard.processes.journal import Journal
journal = Journal(Path(os.environ["FOLDER"]), "child")
def fill(size): FILL
fill(200)
for number in range(50): journal.write({"record": "begin", "event": str(number), "x": "x" * 500})
assert journal.lost
fill(None)
journal.write({"record": "begin", "event": "last"})
assert not journal.lost
journal.close()
"""
BY_LIMIT = """
    size = resource.RLIM_INFINITY if size is None else journal.path.stat().st_size + size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
"""
BY_DISK = """
    big = Path(os.environ["FOLDER"], "big")
    if size is None: return big.unlink()
    with big.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096): pass
        except OSError: pass
"""


def _fill_for_a_moment(folder: Path, fill: str) -> None:
    environment = {**os.environ, "FOLDER": str(folder)}
    program = LIMITED.replace("FILL", fill)
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env=environment, timeout=60)
    (text,) = read_folder(folder)
    assert text.rejected == []
    said = [record.get("event", record["record"]) for record in text.records]
    assert said == ["hello", *map(str, range(50)), "last", "bye"]


def test_what_a_limit_refuses_for_a_moment_is_written_first_when_it_is_lifted(tmp_path: Path) -> None:
    _fill_for_a_moment(tmp_path, BY_LIMIT)


def test_what_a_full_disk_refuses_for_a_moment_is_written_first_when_there_is_room(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root, to mount a small disk")
    try:
        _fill_for_a_moment(tmp_path, BY_DISK)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_read_only_folder_leaves_all_in_memory(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)]
    if os.geteuid() == 0:
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("root writes everywhere, and nothing can be mounted here")
    else:
        tmp_path.chmod(0o500)
    try:
        journal = Journal(tmp_path, "pytest")
        _say(journal, "1")
        journal.close()
        assert [record["record"] for record in journal.lost] == ["hello", "begin", "bye"]
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(tmp_path)], check=True)
        else:
            tmp_path.chmod(0o700)


def test_the_first_record_and_the_name_say_which_process_it_is(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "child", guard="00000000", scope="server:x#1")
    hello = read_journal(journal.path).hello
    host, pid, start, image = journal.path.stem.rsplit("-", 3)
    assert (hello["host"], str(hello["pid"]), str(hello["start"]), hello["image"]) == (host, pid, start, image)
    assert (hello["guard"], hello["scope"], hello["ppid"]) == ("00000000", "server:x#1", os.getppid())
    assert hello["start"] > 0
    guard = Journal(tmp_path, "pytest")
    assert read_journal(guard.path).hello["guard"] == guard.image


# -- what is not trusted -----------------------------------------------------------------------------------------------


def _why_not(path: Path) -> str:
    text = read_journal(path)
    assert text.records == []
    (why,) = text.rejected
    return why.removeprefix(f"{path.name}: not read: ")


def test_a_link_a_pipe_and_a_folder_are_not_read(tmp_path: Path) -> None:
    real = Journal(make_folder(tmp_path / "real"), "child").path
    (tmp_path / "link.jsonl").symlink_to(real)
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    assert _why_not(tmp_path / "link.jsonl") == "a symbolic link"
    assert _why_not(tmp_path / "pipe.jsonl") == "not a regular file"
    assert _why_not(tmp_path / "folder.jsonl") == "not a regular file"


def test_a_file_of_another_user_is_not_read(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file away")
    journal = Journal(tmp_path, "child")
    os.chown(journal.path, 65534, 65534)
    assert _why_not(journal.path) == "it belongs to another user (uid 65534)"


def test_a_journal_is_not_written_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", lambda size: b"\0" * size)
    name = Journal(make_folder(tmp_path / "first"), "child").path.name
    target = tmp_path / "target"
    target.write_text("mine")
    (make_folder(tmp_path / "second") / name).symlink_to(target)
    journal = Journal(tmp_path / "second", "child")
    assert [record["record"] for record in journal.lost] == ["hello"]
    assert target.read_text() == "mine"


def test_garbage_is_reported_and_does_not_take_for_ever(tmp_path: Path) -> None:
    holes, lines, line = (tmp_path / f"{name}.jsonl" for name in ("holes", "lines", "line"))
    with holes.open("wb") as file:
        file.truncate(1 << 40)
    lines.write_bytes(b"x\n" * 1_000_000)
    line.write_bytes(b"[" * 20_000_000)
    assert _why_not(holes) == "larger than 1 GiB"
    assert len(read_journal(lines).rejected) == 1001
    assert read_journal(lines).rejected[-1] == "lines.jsonl: not read any further: 1000 lines are no records"
    assert [why[:16] for why in read_journal(line).rejected] == ["line.jsonl:1: [[", "line.jsonl:2: [["]


WRITER = """
import sys
from pathlib import Path
from pytest_jitguard.processes.journal import Journal
journal = Journal(Path(sys.argv[1]), "child", guard="00000000")
sys.stdin.read()
for number in range(300): journal.write({"record": "begin", "event": str(number), "x": "x" * 20_000})
journal.close()
"""


@pytest.mark.soak
def test_sixty_four_processes_that_write_at_once_tear_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT) for _ in range(64)]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    assert [writer.wait(300) for writer in writers] == [0] * 64
    texts = list(read_folder(tmp_path))
    assert len(texts) == 64
    for text in texts:
        assert text.rejected == []
        assert [record["record"] for record in text.records] == ["hello", *["begin"] * 300, "bye"]


def test_threads_that_write_at_once_tear_nothing_while_the_file_is_deleted(tmp_path: Path) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        _write_and_delete(tmp_path)
    finally:
        sys.setswitchinterval(before)


def _write_and_delete(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "child")
    together = threading.Barrier(9)

    def work(name: str) -> None:
        together.wait()
        _say(journal, *(f"{name}-{number}" for number in range(300)))

    threads = [threading.Thread(target=work, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    together.wait()
    while any(thread.is_alive() for thread in threads):
        journal.path.unlink(missing_ok=True)
    for thread in threads:
        thread.join()
    _say(journal, "last")
    assert sorted(_written(journal)[1:-1]) == sorted(f"{name}-{n}" for name in range(8) for n in range(300))


def test_what_json_cannot_say_is_written_as_text(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "pytest")
    journal.write({"record": "begin", "path": Path("/x"), "name": "lone \udc80 surrogate", "set": {1}})
    assert journal.lost == []
    assert read_journal(journal.path).records[1]["path"] == "/x"


def test_a_forked_child_does_not_write_into_its_parents_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "pytest")
    pid = os.fork()
    if not pid:
        journal.write({"record": "begin", "event": "of the child"})
        journal.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert [record["record"] for record in read_journal(journal.path).records] == ["hello"]


def test_folder_and_files_are_for_their_user_only(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a" / "b")
    journal = Journal(folder, "pytest")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert journal.path.stat().st_mode & 0o777 == 0o600
    assert [text.path for text in read_folder(folder)] == [journal.path]


def test_redirected_caches_come_back_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "/mine")
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
    restore = caches.redirect(tmp_path)
    for variable, name in caches.CACHE_ROOTS.items():
        assert os.environ[variable] == str(tmp_path / name)
        assert (tmp_path / name).is_dir()
    restore()
    assert os.environ["TRITON_CACHE_DIR"] == "/mine"
    assert "VLLM_CACHE_ROOT" not in os.environ


def test_no_two_systems_share_a_folder() -> None:
    assert len(set(caches.CACHE_ROOTS.values())) == len(caches.CACHE_ROOTS)


@pytest.mark.parametrize(
    "line", [b"[" * 100_000, b'{"record":[]}', b"7", b"{", b"\xff", b'{"record":"hello","scope":["x"],"image":[]}']
)
def test_a_line_that_is_no_record_stops_no_reader(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "h-1-1-aaaa0001.jsonl").write_bytes(line + b"\n")
    relatives = Relatives(tmp_path, "guard")
    relatives.scopes.add("server:x#1")
    assert relatives.poll() == []
    (text,) = read_folder(tmp_path)
    assert len(text.rejected) + len(text.records) == 1
