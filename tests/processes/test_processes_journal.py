"""The journal: one write a record, nothing trusted that is torn, nothing lost in silence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pytest_jitguard.processes import caches
from pytest_jitguard.processes.journal import Journal, make_folder, read_folder, read_journal


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
    (tmp_path / "missing").mkdir()
    journal.close()
    goodbye = json.loads(journal.path.read_text())
    assert (goodbye["record"], goodbye["lost"]) == ("bye", 2)


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
