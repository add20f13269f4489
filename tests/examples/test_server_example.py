"""The example server speaks OpenAI's protocol, shares steps, leaves no process, and compiles where it is meant to."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")
pytest.importorskip("openai")

import httpx
import openai
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.server import prompts, protocol, vocabulary, warmup
from examples.server.messages import Step
from examples.server.model import LAYER, LocalExperts, Trunk, experts_of_rank, layer_of_rank
from examples.server.prompts import REQUESTS
from examples.server.rank import Rank
from examples.server.scheduler import Chunk, Scheduler, Sequence
from examples.wna16_moe.layer import WNA16MoE
from examples.wna16_moe.reference import TOLERANCE, reference_output

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 120.0
STEP = re.compile(r"step (\d+): (\d+) requests, (\d+) tokens, rows ([\d+]+), kernels ([\d+]+)")


class TestScheduler:
    @given(
        requests=st.lists(
            st.tuples(st.integers(0, 20), st.integers(1, 40), st.integers(1, 5)), min_size=1, max_size=12
        ),
        budget=st.integers(1, 16),
        max_running=st.integers(1, 8),
    )
    def test_budget_is_kept_nobody_starves_and_everything_is_seen_in_order(
        self, requests: list[tuple[int, int, int]], budget: int, max_running: int
    ) -> None:
        scheduler = Scheduler(budget, max_running)
        arriving = sorted((arrival, number) for number, (arrival, _, _) in enumerate(requests))
        seen: dict[int, list[int]] = {number: [] for number in range(len(requests))}
        sequences: dict[int, Sequence] = {}
        step = 0
        while arriving or scheduler:
            while arriving and arriving[0][0] <= step:
                _, number = arriving.pop(0)
                _, length, max_tokens = requests[number]
                sequences[number] = Sequence(number, list(range(length)), max_tokens)
                scheduler.add(sequences[number])
            chunks = scheduler.schedule()
            self.check_step(scheduler, chunks, budget, max_running)
            for chunk in chunks:
                seen[chunk.sequence.request] += chunk.tokens
                scheduler.advance(chunk, 1000 + step)
            step += 1
            assert step <= 20 + sum(length + most for _, length, most in requests)
        for number, (_, length, max_tokens) in enumerate(requests):
            assert len(sequences[number].tokens) == length + max_tokens
            assert seen[number] == sequences[number].tokens[:-1]  # nobody needs to know what follows the last one

    @staticmethod
    def check_step(scheduler: Scheduler, chunks: list[Chunk], budget: int, max_running: int) -> None:
        assert sum(len(chunk.tokens) for chunk in chunks) <= budget
        assert len(scheduler.running) <= max_running
        served = {chunk.sequence.request for chunk in chunks}
        assert {sequence.request for sequence in scheduler.running if sequence.pending == 1} <= served
        reading = [sequence.request for sequence in scheduler.running if sequence.pending > 1]
        assert set(reading[:1]) <= served

    def test_long_prompt_is_read_in_chunks_beside_a_running_decode(self) -> None:
        scheduler = Scheduler(token_budget=8, max_running=4)
        scheduler.add(Sequence(1, [0], max_tokens=9))
        assert self.run_step(scheduler) == {1: 1}
        scheduler.add(Sequence(2, [0] * 16, max_tokens=2))
        assert [self.run_step(scheduler) for _ in range(4)] == [{1: 1, 2: 7}, {1: 1, 2: 7}, {1: 1, 2: 2}, {1: 1, 2: 1}]
        assert self.run_step(scheduler) == {1: 1}

    def test_token_is_chosen_after_the_whole_prompt_only(self) -> None:
        scheduler = Scheduler(token_budget=2, max_running=4)
        scheduler.add(Sequence(1, [0] * 3, max_tokens=1))
        assert [scheduler.advance(scheduler.schedule()[0], 7) for _ in range(2)] == [False, True]
        assert not scheduler

    def test_cancelled_requests_leave_the_queue_and_the_steps(self) -> None:
        scheduler = Scheduler(token_budget=8, max_running=1)
        for request in (1, 2, 3):
            scheduler.add(Sequence(request, [0], max_tokens=5))
        assert self.run_step(scheduler) == {1: 1}
        scheduler.cancel(1)
        scheduler.cancel(2)
        scheduler.cancel(4)
        assert self.run_step(scheduler) == {3: 1}
        scheduler.cancel(3)
        assert not scheduler

    @staticmethod
    def run_step(scheduler: Scheduler) -> dict[int, int]:
        chunks = scheduler.schedule()
        for chunk in chunks:
            scheduler.advance(chunk, 7)
        return {chunk.sequence.request: len(chunk.tokens) for chunk in chunks}


@functools.cache
def trunk() -> Trunk:
    return Trunk()


def some_tokens(count: int) -> torch.Tensor:
    return torch.randint(0, vocabulary.SIZE, (count,), generator=torch.Generator().manual_seed(count))


def expert_parallel(tokens: torch.Tensor, ranks: int) -> torch.Tensor:
    """Run the layer as the ranks do together, all of them in this process."""
    output = torch.zeros((len(tokens), LAYER.hidden))
    for rank in range(ranks):
        slots = trunk().slots(tokens, experts_of_rank(rank, ranks))
        rows = LocalExperts(rank, ranks, "cpu").run(
            trunk().embeddings[tokens][slots.positions], slots.weights, slots.experts
        )
        output.index_add_(0, slots.positions, rows.float())
    return output


def check_expert_parallel(tokens: torch.Tensor, ranks: int) -> None:
    whole = WNA16MoE(LAYER, device="cpu")
    whole.router = trunk().router
    expected = reference_output(whole, trunk().embeddings[tokens])
    torch.testing.assert_close(expert_parallel(tokens, ranks), expected, **TOLERANCE)


class TestModel:
    @pytest.mark.parametrize("ranks", range(1, 9))
    def test_every_expert_is_on_one_rank(self, ranks: int) -> None:
        held = [expert for rank in range(ranks) for expert in experts_of_rank(rank, ranks)]
        assert held == list(range(LAYER.experts))
        assert all(experts_of_rank(rank, ranks) for rank in range(ranks))

    def test_rows_follow_from_each_token_alone(self) -> None:
        tokens = some_tokens(100).tolist()
        alone = [trunk().rows([token], 2) for token in tokens]
        assert trunk().rows(tokens, 2) == [sum(rows) for rows in zip(*alone, strict=True)]
        assert sum(trunk().rows(tokens, 2)) == 100 * LAYER.top_k
        assert {tuple(rows) for rows in alone} == {(2, 0), (1, 1), (0, 2)}

    @pytest.mark.parametrize("ranks", [1, 2, 3, 8])
    def test_ranks_together_compute_the_layer(self, ranks: int) -> None:
        check_expert_parallel(some_tokens(5), ranks)

    def test_ranks_together_compute_the_layer_with_the_kernel(self) -> None:
        tokens = 30
        assert all(not layer_of_rank(0, 2).takes_small_batch_path(rows) for rows in trunk().rows([*range(tokens)], 2))
        code = f"from tests.examples.test_server_example import *; check_expert_parallel(torch.arange({tokens}), 2)"
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, check=True)

    def test_ranks_parts_of_the_logits_add_up(self) -> None:
        step = Step(tuple(some_tokens(8).tolist()), (5, 3))
        alone = Rank(0, 1, "cpu", executes=True).step(step)
        parts = [Rank(rank, 2, "cpu", executes=True).step(step) for rank in range(2)]
        together = torch.tensor(parts[0].logits) + torch.tensor(parts[1].logits)
        torch.testing.assert_close(together, torch.tensor(alone.logits), rtol=0.01, atol=0.1)
        assert sum(part.rows for part in parts) == alone.rows == 16
        silent = Rank(0, 1, "cpu", executes=False).step(step)
        assert (torch.tensor(silent.logits) - torch.tensor(alone.logits)).abs().max() > 1

    def test_logits_do_not_depend_on_how_a_sequence_is_cut(self) -> None:
        contributions = torch.randn((12, LAYER.hidden), generator=torch.Generator().manual_seed(0))
        whole, other = trunk().logits(torch.cat([contributions, contributions[:3]]), (12, 3))
        first, second = trunk().logits(contributions, (8, 4))
        joined = torch.tensor(first) * 0.5**4 + torch.tensor(second)
        torch.testing.assert_close(torch.tensor(whole), joined)
        torch.testing.assert_close(torch.tensor(other), torch.tensor(trunk().logits(contributions[:3], (3,))[0]))


class TestWarmup:
    @pytest.mark.parametrize("ranks", range(1, 9))
    @pytest.mark.parametrize("budget", [24, 40, 300])
    def test_full_covers_every_number_of_rows_and_names_no_class_in_vain(self, ranks: int, budget: int) -> None:
        for rank in range(ranks):
            layer = layer_of_rank(rank, ranks)
            reachable: dict[Any, int] = {}
            for rows in range(1, budget * LAYER.top_k + 1):
                reachable.setdefault(warmup.launch_class(rows, layer), rows)
            reachable.pop(None)
            assert warmup.smallest_rows(layer, budget) == reachable
            full = warmup.full_rows(layer, budget)
            assert {warmup.launch_class(rows, layer) for rows in full} - {None} == reachable.keys()
            basic = warmup.basic_rows(layer, budget)
            added = [warmup.launch_class(rows, layer) for rows in full[len(basic) :]]
            assert full[: len(basic)] == basic
            assert len(set(added)) == len(added)
            assert not {warmup.launch_class(rows, layer) for rows in basic} & set(added)

    def test_full_adds_four_batches_to_the_default_server(self) -> None:
        assert warmup.full_rows(layer_of_rank(1, 2), 2048)[7:] == [25, 36, 41, 52]

    @pytest.mark.parametrize("name", REQUESTS)
    def test_prompts_reach_their_classes(self, name: str) -> None:
        length, classes = REQUESTS[name]
        prompt = prompts.find_prompt(length, classes)
        assert len(prompt) == length
        assert prompts.classes_of(trunk(), prompt, 2) == list(classes)
        assert prompt == prompts.find_prompt(length, classes)

    def test_prompt_that_cannot_be_is_not_looked_for_forever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(prompts, "DRAWS", 10)
        with pytest.raises(LookupError, match="none of 10 prompts of 5 tokens"):
            prompts.find_prompt(5, [warmup.LaunchClass(64, False, True), None])


class TestProtocol:
    @pytest.mark.parametrize(
        ("body", "status", "message"),
        [
            (b"{", 400, "the body is not JSON"),
            (b"[]", 400, "the body is not a JSON object"),
            (b"{}", 400, "you must provide a model"),
            (b'{"model": "gpt-4", "prompt": "x"}', 404, "the model 'gpt-4' does not exist"),
            (b'{"model": "M"}', 400, "prompt must be one text"),
            (b'{"model": "M", "prompt": ["x"]}', 400, "prompt must be one text"),
            (b'{"model": "M", "prompt": [true]}', 400, "prompt must be one text"),
            (b'{"model": "M", "prompt": ""}', 400, "prompt must not be empty"),
            (b'{"model": "M", "prompt": []}', 400, "prompt must not be empty"),
            (b'{"model": "M", "prompt": [256]}', 400, "token id 256 in prompt is not between 0 and 255"),
            (b'{"model": "M", "prompt": [-1]}', 400, "token id -1"),
            (b'{"model": "M", "prompt": "x", "n": 2}', 400, "only n=1"),
            (b'{"model": "M", "prompt": "x", "max_tokens": 0}', 400, "max_tokens must be an integer of at least 1"),
            (b'{"model": "M", "prompt": "x", "max_tokens": true}', 400, "not True"),
            (b'{"model": "M", "prompt": "x", "max_tokens": 100}', 400, "maximum context length is 100 tokens, but 101"),
            (b'{"model": "M", "prompt": "x", "stream": "yes"}', 400, "stream must be true or false"),
            (b'{"model": "M", "prompt": "x", "stream_options": {}}', 400, "only allowed when stream is true"),
            (b'{"model": "M", "prompt": "x", "stream": true, "stream_options": 1}', 400, "must be an object"),
        ],
    )
    def test_bad_requests_are_refused(self, body: bytes, status: int, message: str) -> None:
        with pytest.raises(protocol.RequestError, match=re.escape(message)) as refused:
            protocol.parse(body.replace(b'"M"', f'"{protocol.MODEL}"'.encode()), 100)
        assert refused.value.status == status

    def test_text_and_token_ids_are_the_same_prompt(self) -> None:
        text, ids = (f'{{"model": "{protocol.MODEL}", "prompt": {prompt}}}' for prompt in ('"a é"', "[97,32,195,169]"))
        assert protocol.parse(text.encode(), 100) == protocol.parse(ids.encode(), 100)
        assert protocol.parse(ids.encode(), 100) == protocol.Completion((97, 32, 195, 169), 16, False, False)


def expected_text(prompt: list[int], count: int) -> str:
    """Generate as the server does offline, where no expert contributes, but without batches, chunks and ranks."""
    tokens = [*prompt]
    for _ in range(count):
        (logits,) = trunk().logits(trunk().embeddings[torch.tensor(tokens)], (len(tokens),))
        tokens.append(max(vocabulary.PRINTABLE, key=logits.__getitem__))
    return vocabulary.decode(tokens[len(prompt) :])


class Server:
    """The server as a process of its own, on the offline target, with its log in a file."""

    def __init__(self, log: Path, *arguments: str, cwd: Path = ROOT, **environment: str) -> None:
        self.log_file = log
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("JITGUARD", "EXAMPLE"))}
        told = {"PYTHONPATH": str(ROOT), "TRITON_DEFAULT_FP_FUSION": "1", "EXAMPLE_OFFLINE": "h100", **environment}
        command = [sys.executable, "-m", "examples.server", "--log-steps", *(arguments or ("--port", "0"))]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=cwd, env={**kept, **told}, stdout=out, stderr=out, start_new_session=True
            )
        self.statuses: list[int] = []
        self.url = ""
        self.log_when_ready = ""

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        until(lambda: re.search(pattern, self.log) or self.process.poll() is not None, self)
        found = re.search(pattern, self.log)
        assert found, f"the server ended with {self.process.returncode}:\n{self.log}"
        return found

    def start(self) -> Server:
        self.url = self.wait_for(r"running on (http://\S+)")[1]
        until(lambda: self.health() == 200 or self.process.poll() is not None, self)
        self.log_when_ready = self.log
        assert self.statuses[-1] == 200, self.log
        return self

    def health(self) -> int:
        with contextlib.suppress(httpx.TransportError):
            self.statuses.append(httpx.get(f"{self.url}/health").status_code)
        return self.statuses[-1] if self.statuses else 0

    def ask(self, prompt: str | list[int], **more: Any) -> httpx.Response:
        body = {"model": protocol.MODEL, "prompt": prompt, "max_tokens": 4, **more}
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=PATIENCE)

    def text(self, prompt: str | list[int], **more: Any) -> str:
        answer = self.ask(prompt, **more)
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["choices"][0]["text"]
        return text

    def steps(self) -> list[tuple[int, int, list[int], list[int]]]:
        """Return what was logged of each step: requests, tokens, and by rank rows and kernels."""

        def by_rank(text: str) -> list[int]:
            return [int(part) for part in text.split("+")]

        found = STEP.findall(self.log)
        return [(int(r), int(t), by_rank(rows), by_rank(kernels)) for _, r, t, rows, kernels in found]

    def members(self) -> list[int]:
        """Return the processes of the server's session that live, zombies not among them."""
        stats = [read(path / "stat") for path in Path("/proc").glob("[0-9]*")]
        fields = [(int(stat.split()[0]), stat.rpartition(")")[2].split()) for stat in stats if stat]
        return [pid for pid, (state, _, _, session, *_) in fields if int(session) == self.process.pid and state != "Z"]

    def kill(self) -> None:
        for pid in self.members():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended
        return ""


def until(condition: Callable[[], Any], server: Server) -> Any:
    end = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < end, f"not within {PATIENCE:g} s; the server's log:\n{server.log}"
        time.sleep(0.05)
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("example-server")


@pytest.fixture(scope="module")
def launch(folder: Path) -> Iterator[Callable[..., Server]]:
    """Start servers, which share a disk cache; all are gone when the module is over."""
    servers: list[Server] = []

    def start(*arguments: str, **more: Any) -> Server:
        log = folder / f"{len(servers)}.log"
        servers.append(Server(log, *arguments, TRITON_CACHE_DIR=str(folder / "triton"), **more))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="module")
def served(launch: Callable[..., Server], folder: Path) -> Server:
    """One server for the tests of the protocol, run from a copy of the folder, with a small budget."""
    copy = folder / "copy"
    shutil.copytree(ROOT / "examples", copy / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    return launch("--port", "0", "--token-budget", "64", "--warmup", "basic", cwd=copy).start()


class TestServer:
    def test_health_is_503_until_the_ranks_are_warm(self, served: Server) -> None:
        assert set(served.statuses[:-1]) == {503}
        assert served.statuses[-1] == 200
        assert len(re.findall(r"rank \d of 2 has 4 kernels after the basic warmup", served.log_when_ready)) == 2

    def test_completion(self, served: Server) -> None:
        answer = served.ask("Hello").json()
        assert answer["object"] == "text_completion"
        assert answer["model"] == protocol.MODEL
        assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
        (choice,) = answer["choices"]
        assert len(choice["text"]) == 4
        assert (choice["index"], choice["finish_reason"]) == (0, "length")
        assert served.text(list(b"Hello")) == choice["text"]
        assert choice["text"] == expected_text(list(b"Hello"), 4)

    @pytest.mark.parametrize(
        ("method", "path", "body", "status", "kind"),
        [
            ("POST", "/v1/completions", b"{", 400, "invalid_request_error"),
            ("POST", "/v1/completions", b'{"model": "gpt-4", "prompt": "x"}', 404, "invalid_request_error"),
            ("GET", "/v1/completions", b"", 405, "invalid_request_error"),
            ("GET", "/nowhere", b"", 404, "invalid_request_error"),
        ],
    )
    def test_errors_are_openais(
        self, served: Server, method: str, path: str, body: bytes, status: int, kind: str
    ) -> None:
        answer = httpx.request(method, f"{served.url}{path}", content=body)
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == kind
        assert answer.json()["error"]["message"]

    def test_unmodified_openai_client(self, served: Server) -> None:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == [protocol.MODEL]
            whole = client.completions.create(model=protocol.MODEL, prompt="Hello", max_tokens=6)
            assert whole.usage is not None
            assert whole.usage.completion_tokens == 6
            parts = list(
                client.completions.create(
                    model=protocol.MODEL,
                    prompt="Hello",
                    max_tokens=6,
                    stream=True,
                    stream_options={"include_usage": True},
                )
            )
            assert [len(part.choices) for part in parts] == [1] * 6 + [0]
            assert "".join(part.choices[0].text for part in parts[:-1]) == whole.choices[0].text
            assert [part.choices[0].finish_reason for part in parts[:-1]] == [None] * 5 + ["length"]
            assert parts[-1].usage == whole.usage
            with pytest.raises(openai.BadRequestError, match="max_tokens must be an integer of at least 1"):
                client.completions.create(model=protocol.MODEL, prompt="Hello", max_tokens=0)

    def test_long_prompt_is_read_within_the_budget(self, served: Server) -> None:
        before = len(served.steps())
        prompt = some_tokens(150).tolist()
        text = served.text(prompt, max_tokens=2)
        assert [(step[0], step[1]) for step in served.steps()[before:]] == [(1, 64), (1, 64), (1, 22), (1, 1)]
        assert [sum(step[2]) for step in served.steps()[before:]] == [128, 128, 44, 2]
        assert text == expected_text(prompt, 2)

    def test_requests_join_and_leave_the_steps_of_others(self, served: Server) -> None:
        alone = served.text("Hello", max_tokens=5)
        before = len(served.steps())
        body = {"model": protocol.MODEL, "prompt": "A long story", "max_tokens": 8000, "stream": True}
        with httpx.stream("POST", f"{served.url}/v1/completions", json=body, timeout=PATIENCE) as story:
            lines = story.iter_lines()
            assert next(lines).startswith("data: {")
            assert served.text("Hello", max_tokens=5) == alone
            assert next(line for line in lines if line).startswith("data: {")
        shared = [step[0] for step in served.steps()[before:]]
        assert shared.count(2) == 5
        assert shared[0] == 1
        until(lambda: self.is_alone(served), served)  # the story is cancelled
        assert len(served.steps()) - before < 8000

    @staticmethod
    def is_alone(served: Server) -> bool:
        """Send a request, and tell whether nobody shared its steps."""
        before = len(served.steps())
        served.text("x", max_tokens=3)
        return [step[0] for step in served.steps()[before:]] == [1, 1, 1]


@pytest.mark.parametrize("kind", ["basic", "full"])
def test_kernels_by_rank_and_end(launch: Callable[..., Server], kind: str) -> None:
    server = launch("--port", "0", "--warmup", kind).start()
    seen = {}
    for name, (length, classes) in REQUESTS.items():
        before = len(server.steps())
        prompt = prompts.find_prompt(length, classes)
        server.text(vocabulary.decode(prompt))
        steps = server.steps()[before:]
        assert [step[1] for step in steps] == [length, 1, 1, 1]
        assert steps[0][2] == trunk().rows(prompt, 2)  # the routing in another process is the same
        seen[name] = steps[-1][3]
    assert seen == (
        {
            "short": [4, 4],
            "25-tokens": [4, 4],
            "25-tokens-that-rank-1-has-not-seen": [4, 6],
            "50-tokens-that-rank-1-has-not-seen": [4, 8],
            "60-tokens-that-no-rank-has-seen": [6, 10],
        }
        if kind == "basic"
        else {name: [12, 12] for name in REQUESTS}
    )
    if kind == "basic":
        check_polite_end(server)
    else:
        check_killed(server)


def check_killed(server: Server) -> None:
    server.process.kill()
    until(lambda: server.members() == [], server)


def check_polite_end(server: Server) -> None:
    assert len(server.members()) >= 4  # server, engine, two ranks; and multiprocessing's resource tracker
    os.kill(server.process.pid, signal.SIGTERM)
    until(lambda: server.process.poll() is not None, server)
    assert server.process.returncode == -signal.SIGTERM
    until(lambda: server.members() == [], server)
    assert "Traceback" not in server.log


def test_ctrl_c_while_starting_leaves_no_process(launch: Callable[..., Server]) -> None:
    server = launch()
    server.wait_for("running on")
    os.killpg(server.process.pid, signal.SIGINT)
    until(lambda: server.process.poll() is not None, server)
    until(lambda: server.members() == [], server)
    assert server.process.returncode == 0
    # A rank ends wherever it is. A kernel that Triton 3.9 has half made complains when deleted, and Python ignores it.
    assert server.log.count("Traceback") <= server.log.count("Exception ignored in: "), server.log


@pytest.mark.parametrize(
    ("mark", "reason"),
    [
        pytest.param("RANK=1", "rank 1 is gone", id="rank"),
        pytest.param("no rank", "the engine process is gone", id="engine", marks=pytest.mark.soak),
    ],
)
def test_lost_process_ends_the_server_and_its_requests(launch: Callable[..., Server], mark: str, reason: str) -> None:
    server = launch("--port", "0", "--warmup", "basic").start()
    body = {"model": protocol.MODEL, "prompt": "A long story", "max_tokens": 8000, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=PATIENCE) as story:
        lines = story.iter_lines()
        assert next(lines).startswith("data: {")
        os.kill(next(pid for pid in server.members() if has(pid, mark)), signal.SIGKILL)
        assert any(reason in line for line in lines)
    until(lambda: server.process.poll() is not None, server)
    assert server.process.returncode == 1
    assert f"server: {reason}" in server.log
    until(lambda: server.members() == [], server)


def has(pid: int, mark: str) -> bool:
    """Tell whether a process is the rank with this variable, or else the engine: multiprocessing's without a rank."""
    environment = read(Path(f"/proc/{pid}/environ")).split("\0")
    if mark.startswith("RANK"):
        return mark in environment
    spawned = "spawn_main" in read(Path(f"/proc/{pid}/cmdline"))
    return spawned and not any(variable.startswith("RANK=") for variable in environment)


def test_no_gpu_is_said(launch: Callable[..., Server]) -> None:
    server = launch("--port", "0", EXAMPLE_OFFLINE="", CUDA_VISIBLE_DEVICES="")
    until(lambda: server.process.poll() is not None, server)
    assert server.process.returncode == 1
    assert re.search(r"server: rank \d failed: no GPU here\. .* set EXAMPLE_OFFLINE=h100", server.log, re.DOTALL)
    assert "Traceback" not in server.log


def test_port_in_use_leaves_no_process(launch: Callable[..., Server], served: Server) -> None:
    server = launch("--port", served.url.rpartition(":")[2])
    until(lambda: server.process.poll() is not None, server)
    assert server.process.returncode != 0
    assert "address already in use" in server.log
    until(lambda: server.members() == [], server)
