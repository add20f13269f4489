"""What known servers tell about themselves: when their own warmup is over, and how many requests they work on.

vLLM's API server runs on uvicorn, which says that it has started before any request is answered; so readiness is
never earlier, and the mark only helps to explain a readiness that does not come. SGLang answers by HTTP first, sends
requests to itself as warmup, and then says that it is ready to roll; its `/health` may answer 200 before that. The
wordings and metrics are those of the projects' sources. SGLang's part was tested on lines as those sources format
them; it was not run against a live SGLang.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from pytest_jitguard.servers.asking import NoAnswer, text_of

_METRICS_LIMIT = 5.0
_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{.*\})?\s+(\S+)(?:\s+-?\d+)?\s*")


@dataclass(frozen=True)
class Adapter:
    """What is known of one server: the `mark` in its log, whether to wait for it, and the gauges to add up."""

    name: str
    mark: str = ""
    awaited: bool = False
    silenced_by: str = ""
    gauges: tuple[str, ...] = ()


ADAPTERS = {
    "none": Adapter("none"),
    "vllm": Adapter(
        "vLLM",
        mark="Application startup complete.",
        silenced_by="--uvicorn-log-level",
        gauges=("vllm:num_requests_running", "vllm:num_requests_waiting"),
    ),
    "sglang": Adapter(
        "SGLang",
        mark="The server is fired up and ready to roll!",
        awaited=True,
        silenced_by="--log-level",
        gauges=("sglang:num_running_reqs", "sglang:num_queue_reqs"),
    ),
}
"""By the kinds of `ServerCommand.adapter`. With several tokenizer workers SGLang's mark comes once for each."""


def running_requests(kind: str, url: str) -> int | None:
    """Return how many requests the server at `url` says it has in flight, None where it cannot be told.

    It cannot for kind `none`, if metrics are switched off (SGLang needs `--enable-metrics`), or if nobody answers. All
    series of a gauge are added up, so several ranks may count one request several times; 0 is what matters. vLLM sets
    its gauges at each step of its engine. SGLang sets them when it logs a batch and otherwise every 30 s, so that they
    are late in both directions: a 0 is no proof that a request of the last seconds is through.
    """
    gauges = ADAPTERS[kind].gauges
    if not gauges:
        return None
    try:
        return in_flight(text_of(f"{url.rstrip('/')}/metrics", _METRICS_LIMIT), gauges)
    except NoAnswer:
        return None


def in_flight(text: str, gauges: tuple[str, ...]) -> int | None:
    """Add up gauges in a Prometheus text; None if one of them is not there or is no number."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line)
        if match and match[1] in gauges:
            found[match[1]] = found.get(match[1], 0.0) + _number(match[2])
    total = sum(found.values())
    return math.ceil(total) if len(found) == len(gauges) and math.isfinite(total) else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
