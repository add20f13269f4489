"""Any client will do: phases come from the test, so the requests may come from a program that knows nothing of us."""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import ROOT, GuardedRun
from tests.processes.conftest import START_UP

pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("uvicorn")

Place = tuple[str, str, int]
RANK_0 = ("server:example#1", "rank-0", 0)
RANK_1 = ("server:example#1", "rank-1", 1)
SKIPPED = """guidellm is not there. In an environment of its own, for it brings a torch of its own:
pip install guidellm==0.8.1; and put that environment's bin folder at the end of PATH"""

EXAMPLE = """
import asyncio, json, os, subprocess, sys, tempfile

import pytest
from examples.server import vocabulary
from examples.server.prompts import REQUESTS, find_prompt
from examples.server.protocol import MODEL

ASKED = dict(model=MODEL, max_tokens=4, timeout=120)

def prompt(name):
    length, classes = REQUESTS[name]
    return vocabulary.decode(find_prompt(length, classes))

@pytest.fixture(scope="session")
def server(jitguard_server):
    return jitguard_server([sys.executable, "-m", "examples.server", "--port", "{port}", "--warmup", "basic"],
                           name="example")
"""


class ExampleRun(GuardedRun):
    """A guarded run against the example server: two ranks on the offline target, after the `basic` warmup."""

    def suite(self, body: str, name: str = "test_suite.py") -> None:
        self.pytester.makepyfile(**{name.removesuffix(".py"): EXAMPLE + textwrap.dedent(body)})

    def run(self, *args: str, on: bool = True, fake: bool = False, timeout: float = 300) -> pytest.RunResult:
        return super().run("--jitguard-offline=h100", *args, on=on, fake=fake, timeout=timeout)

    def compiles(self, name: str) -> Counter[Place]:
        """Where the compiles happened that a test is charged with: server, role and rank."""
        violations = self.violations(name)
        assert {violation["kind"] for violation in violations} <= {"compile"}
        return Counter((v["scope"], v["role"], v["rank"]) for v in violations)


@pytest.fixture
def example(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, reporting_python: Path) -> ExampleRun:
    run = ExampleRun(pytester, monkeypatch)
    run.python = str(reporting_python)
    return run


def test_the_openai_client(example: ExampleRun) -> None:
    pytest.importorskip("openai")
    example.suite("""
    import openai

    @pytest.fixture(scope="module")
    def client(server):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            yield client

    def asynchronous(server, *names, **how):
        async def ask(client, name):
            answer = await client.completions.create(prompt=prompt(name), **ASKED, **how)
            return [part async for part in answer] if how else answer

        async def all_of_them():
            async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
                return await asyncio.gather(*(ask(client, name) for name in names))

        return asyncio.run(all_of_them())

    def streamed(client, name):
        with client.completions.create(prompt=prompt(name), stream=True, **ASKED) as parts:
            return list(parts)

    @pytest.mark.jitguard
    def test_whole(client):
        assert client.completions.create(prompt=prompt("25-tokens"), **ASKED).usage.completion_tokens == 4

    @pytest.mark.jitguard
    def test_whole_cold(client):
        assert client.completions.create(prompt=prompt("25-tokens-that-rank-1-has-not-seen"), **ASKED).choices

    @pytest.mark.jitguard
    def test_whole_again(client):
        assert client.completions.create(prompt=prompt("25-tokens"), **ASKED).choices

    @pytest.mark.jitguard
    def test_stream(client): assert len(streamed(client, "25-tokens")) == 4

    @pytest.mark.jitguard
    def test_stream_cold(client): assert len(streamed(client, "50-tokens-that-rank-1-has-not-seen")) == 4

    @pytest.mark.jitguard
    def test_async(server): assert len(asynchronous(server, "short", "short")) == 2

    @pytest.mark.jitguard
    def test_async_stream_cold(server):
        (parts,) = asynchronous(server, "60-tokens-that-no-rank-has-seen", stream=True)
        assert len(parts) == 4

    @pytest.mark.jitguard
    def test_async_stream(server): assert len(asynchronous(server, "25-tokens", stream=True)[0]) == 4
    """)
    result = example.run()
    result.assert_outcomes(passed=5, failed=3)
    assert example.verdicts() == {
        "test_whole": "clean",
        "test_whole_cold": "violated",
        "test_whole_again": "clean",
        "test_stream": "clean",
        "test_stream_cold": "violated",
        "test_async": "clean",
        "test_async_stream_cold": "violated",
        "test_async_stream": "clean",
    }
    assert example.compiles("test_whole_cold") == {RANK_1: 2}
    assert example.compiles("test_stream_cold") == {RANK_1: 2}
    assert example.compiles("test_async_stream_cold") == {RANK_0: 2, RANK_1: 2}
    assert example.report["findings"] == []
    assert example.report["children"]["silent"] == []
    assert example.report["servers"][0]["events"] == {"warmup": 8, "served": 8}


@pytest.mark.soak
@pytest.mark.parametrize("reports", [True, False], ids=["with the guard beside it", "without"])
def test_a_load_generator_from_pypi(example: ExampleRun, reports: bool) -> None:
    command = reporting_command(example.path) if reports else [generator()]
    example.suite(LOAD.replace("GENERATOR", repr(command)))
    result = example.run(timeout=500)
    result.assert_outcomes(passed=2, failed=1)
    assert example.verdicts() == {"test_load": "clean", "test_cold_load": "violated", "test_load_again": "clean"}
    assert example.compiles("test_cold_load") == {RANK_1: 2}
    (server,) = example.report["servers"]
    assert server["events"] == {"warmup": 8, "served": 2}
    assert len(server["processes"]) == 5  # API, resource tracker, engine, two ranks: the generator is not among them
    if reports:
        check_heard(example, command)
    else:
        check_silent(example)


def check_heard(example: ExampleRun, command: list[str]) -> None:
    """Its processes are the test's own, none of them compiles, and nothing is left to complain about."""
    theirs = [process for process in example.report["processes"] if process["argv"][:2] == command]
    assert {(process["scope"], process["events"]) for process in theirs} == {("", 0)}
    assert len({process["pid"] for process in theirs if process["role"] == "child"}) == 3  # what it forks has names
    assert example.report["children"]["silent"] == []
    assert example.report["findings"] == []


def check_silent(example: ExampleRun) -> None:
    """It is named as what did not report, which is a warning only."""
    children = example.report["children"]
    assert children["reported"] == 5  # those of the server
    assert [(child["how"], child["argv"][0]) for child in children["silent"]] == [("subprocess", generator())] * 3
    (finding,) = example.report["findings"]
    assert (finding["name"], finding["severity"]) == ("children", "warning")
    assert finding["message"].startswith("3 of 8 Python processes did not report: ")


LOAD = """
def load(server, tmp_path, name):
    lines = json.dumps({"prompt": prompt(name), "output_tokens_count": 4}) + "\\n"
    (tmp_path / "prompts.jsonl").write_text(3 * lines)
    command = [
        *GENERATOR, "run", "--disable-console",
        "--backend", f"kind=openai_http,target={server.url},model={MODEL},request_format=/v1/completions",
        "--profile", "kind=synchronous", "--data", f"kind=json_file,path={tmp_path}/prompts.jsonl",
        "--constraint", "kind=max_requests,count=3", "--output", f"kind=json,path={tmp_path}/result.json",
    ]
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # sockets go there, whose paths must not be long
        environment = {**os.environ, "TMPDIR": short}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (benchmark,) = json.loads((tmp_path / "result.json").read_text())["benchmarks"]
    return len(benchmark["requests"]["successful"])

@pytest.mark.jitguard
def test_load(server, tmp_path): assert load(server, tmp_path, "25-tokens") == 3

@pytest.mark.jitguard
def test_cold_load(server, tmp_path):
    assert load(server, tmp_path, "25-tokens-that-rank-1-has-not-seen") == 3

@pytest.mark.jitguard
def test_load_again(server, tmp_path): assert load(server, tmp_path, "25-tokens") == 3
"""


def generator() -> str:
    """Return the load generator's command; it is too heavy (its own torch) to be a requirement of the tests."""
    return shutil.which("guidellm") or pytest.skip(SKIPPED)


def reporting_command(folder: Path) -> list[str]:
    """Return the same command in an environment that differs from its own in one thing: its Pythons report."""
    python = Path(generator()).read_text().splitlines()[0].removeprefix("#!")
    packages = ask_python(python, "import sysconfig; print(sysconfig.get_path('purelib'))")
    subprocess.run([python, "-m", "venv", "--without-pip", folder / "beside"], check=True)
    site = next((folder / "beside").glob("lib/python*/site-packages"))
    (site / "_generator.pth").write_text(f"{packages}\n")
    for name in START_UP:
        shutil.copy(ROOT / name, site)
    return [str(folder / "beside" / "bin" / "python"), generator()]


def ask_python(python: str, code: str) -> str:
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
