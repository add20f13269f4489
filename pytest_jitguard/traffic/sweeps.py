"""Lists of requests and lengths that are useful at once. Everything is decided by the arguments."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from pytest_jitguard.traffic.requests import Request, RequestError


def sweep(lengths: Iterable[int], **fields: Any) -> list[Request]:
    """Return one request for each prompt length, in order; `fields` are those of every Request."""
    return [Request(length, **fields) for length in lengths]


def powers_of_two_edges(maximum: int) -> list[int]:
    """Return the powers of two and their neighbours, as far as they lie in 1..maximum: 1, 2, 3, 4, 5, 7, 8, 9, 15."""
    powers = [1 << exponent for exponent in range(maximum.bit_length() + 1)]
    return sorted({n for power in powers for n in (power - 1, power, power + 1) if 1 <= n <= maximum})


def mixed(
    seed: int, count: int, lengths: Sequence[int], max_tokens: int | Sequence[int] = 4, **fields: Any
) -> list[Request]:
    """Return `count` requests with lengths drawn at random, and maxima of new tokens if there are several of them."""
    choices = (max_tokens,) if isinstance(max_tokens, int) else max_tokens
    for name, given in (("lengths", lengths), ("max_tokens", choices)):
        if not len(given):
            raise RequestError(f"{name} is empty: give at least one number to draw from, or range(1, 513)")
    chance = random.Random(f"mixed/{seed}")
    return [Request(chance.choice(lengths), chance.choice(choices), **fields) for _ in range(count)]


def poisson(seed: int, count: int, rate: float) -> list[float]:
    """Return when `count` requests arrive that come independently of each other, `rate` a second on average."""
    if not rate > 0:
        raise RequestError(f"rate must be requests a second, more than 0, not {rate!r}")
    chance = random.Random(f"poisson/{seed}")
    offsets, now = [], 0.0
    for _ in range(count):
        offsets.append(round(now, 6))
        now += chance.expovariate(rate)
    return offsets


def arriving(requests: Sequence[Request], offsets: Sequence[float]) -> list[Request]:
    """Return the requests with the times at which they are sent."""
    if len(requests) != len(offsets):
        raise RequestError(f"{len(requests)} requests need as many offsets, not {len(offsets)}")
    return [replace(request, at=at) for request, at in zip(requests, offsets, strict=True)]
