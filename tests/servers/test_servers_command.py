"""Commands: what follows from what, and what is refused with which words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_jitguard.servers.command import ServerCommand


def test_placeholders_are_filled_in_and_json_is_left_alone() -> None:
    command = ServerCommand(
        ("serve", "--port={port}", "--host", "{host}", '{"a": {"b": {}}}', "{{port}}"), url="http://localhost:{port}/"
    )
    filled = ("serve", "--port=81", "--host", "localhost", '{"a": {"b": {}}}', "{port}")
    assert command.arguments(81) == filled
    assert command.base_url(81) == "http://localhost:81"
    assert command.ready_url(81) == "http://localhost:81/health"


def test_readiness_may_have_a_url_of_its_own() -> None:
    command = ServerCommand(("serve", "{port}"), ready="http://127.0.0.1:{port}/v1/models")
    assert command.ready_url(81) == "http://127.0.0.1:81/v1/models"


@pytest.mark.parametrize(
    ("argv", "name", "adapter"),
    [
        (("vllm", "serve", "M", "--port", "{port}"), "vllm", "vllm"),
        (("/venv/bin/vllm", "serve", "M", "--port={port}"), "vllm", "vllm"),
        (("uv", "run", "vllm", "serve", "--port={port}"), "vllm", "vllm"),
        (("python", "-m", "vllm.entrypoints.openai.api_server", "--port={port}"), "vllm", "vllm"),
        (("python3", "-m", "sglang.launch_server", "--port={port}"), "sglang", "sglang"),
        (("sglang", "serve", "--port={port}"), "sglang", "sglang"),
        (("/usr/bin/uvicorn", "app:app", "--port={port}"), "uvicorn", "none"),
        (("serve", "--model-path", "/models/vllm", "{port}"), "serve", "none"),
    ],
)
def test_name_and_adapter_follow_from_the_command(argv: tuple[str, ...], name: str, adapter: str) -> None:
    command = ServerCommand(argv)
    assert (command.name, command.adapter) == (name, adapter)
    assert ServerCommand(argv, name="mine", kind="none").adapter == "none"
    assert ServerCommand(argv, name="mine").name == "mine"


@pytest.mark.parametrize(
    ("more", "port"),
    [
        ({}, None),
        ({"port": 81}, 81),
        ({"url": "http://127.0.0.1:82"}, 82),
        ({"url": "http://127.0.0.1:82", "port": 82}, 82),
        ({"url": "http://localhost"}, 80),
        ({"url": "https://localhost"}, 443),
    ],
)
def test_the_port_is_the_one_that_was_said(more: dict[str, Any], port: int | None) -> None:
    assert ServerCommand(("serve", "{port}"), **more).port == port


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"command": ()}, r"command \(\) is empty: give the program"),
        ({"command": ("",)}, r"is empty: give the program"),
        ({"command": "vllm serve"}, r"command 'vllm serve' is one text: give a sequence"),
        ({"command": ("serve", 8000)}, r"command part 8000 is not a text"),
        ({"command": ("serve", "a\0b", "{port}")}, r"command part 'a\\x00b' is not a text"),
        (
            {"command": ("serve", "{prot}")},
            r"unknown placeholder \{prot\} in '\{prot\}': known here: \{port\} and \{host\}",
        ),
        ({"command": ("serve", "8000")}, r"command 'serve 8000' does not say \{port\}.*or give port="),
        ({"url": "http://{host}:{port}"}, r"url has an unknown placeholder \{host\}.*known here: \{port\};"),
        ({"url": "ftp://127.0.0.1:{port}"}, r"'ftp://127.0.0.1:1' is not a URL that can be asked"),
        ({"url": "127.0.0.1:80"}, r"'127.0.0.1:80' is not a URL that can be asked"),
        ({"url": "http://127.0.0.1:80a"}, r"is not a URL that can be asked"),
        ({"url": "http://127.0.0.1:82", "port": 81}, r"says port 82, port= says 81: leave one of them out"),
        ({"ready": "health"}, r"'health' is not a URL that can be asked"),
        ({"ready_status": 99}, r"ready_status 99 is not an HTTP status"),
        (
            {"timeout": -1},
            r"timeout -1 is not a number of seconds from 0 on: it says how long it may take to get ready",
        ),
        ({"timeout": float("nan")}, r"timeout nan is not a number of seconds"),
        ({"grace": "10"}, r"grace '10' is not a number of seconds from 0 on: it says how long it may take to end"),
        ({"port": 0}, r"port 0 is not from 1 to 65535: leave it out"),
        ({"port": 65536}, r"port 65536 is not from 1 to 65535"),
        ({"port": True}, r"port True is not from 1 to 65535"),
        ({"environment": {"A": 1}}, r"environment variable A is 1, which is not text: use str"),
        ({"environment": {"A": None}}, r"environment variable A is None, which is not text"),
        ({"environment": {"A=B": "1"}}, r"environment variable 'A=B' is not a name"),
        ({"environment": ["A"]}, r"environment \['A'\] is not a mapping"),
        ({"kind": "tgi"}, r"kind 'tgi' is not known: use one of auto, vllm, sglang, none"),
        ({"name": "a/b"}, r"name 'a/b' cannot be shown"),
    ],
)
def test_bad_input_is_named_with_its_remedy(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ServerCommand(**{"command": ("serve", "{port}"), **more})


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"program 'no-such-program' of server 'x' was not found .*: give its full"):
        ServerCommand(("no-such-program", "{port}"), name="x").check_program()
    with pytest.raises(ValueError, match=r"program '/etc/passwd' of server"):
        ServerCommand(("/etc/passwd", "{port}"), name="x").check_program()
    with pytest.raises(ValueError, match=r"cwd '.*nowhere' of server 'x' is no folder"):
        ServerCommand(("sh", "{port}"), name="x", cwd=tmp_path / "nowhere").check_program()


def test_a_program_is_looked_for_where_the_server_will_run(tmp_path: Path) -> None:
    program = tmp_path / "serve"
    program.write_text(f"#!{sys.executable}\n")
    program.chmod(0o755)
    ServerCommand(("./serve", "{port}"), cwd=tmp_path).check_program()
    ServerCommand(("serve", "{port}"), environment={"PATH": str(tmp_path)}).check_program()
