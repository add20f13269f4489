"""Ratios of interleaved runs: noise that lasts longer than a round hits both sides, and cancels in the quotient.

Neither pyperf nor pytest-benchmark interleaves the runs of two variants, so this does, in a few lines. Every comparison
is printed beside an A/A run, which shows what the machine's noise alone would give.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass

RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """A ratio of times with its 95 % interval (bootstrap over rounds, of the median of the paired quotients)."""

    name: str
    value: float
    low: float
    high: float
    rounds: int

    def missed(self, bound: float) -> bool:
        """A bound is missed only if the whole interval lies above it."""
        return self.low > bound

    @property
    def brief(self) -> str:
        """The ratio and its interval, for a table."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def __str__(self) -> str:
        return f"{self.name:44s} {self.value:6.3f}  [{self.low:.3f}, {self.high:.3f}]  ({self.rounds} rounds)"


def ratio(name: str, numerator: list[float], denominator: list[float]) -> Ratio:
    """Return the ratio of two interleaved series of seconds."""
    quotients = [a / b for a, b in zip(numerator, denominator, strict=True)]
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(quotients, k=len(quotients))) for _ in range(RESAMPLES))
    low, high = medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]
    return Ratio(name, statistics.median(quotients), low, high, len(quotients))


def interleave(variants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run each variant once a round, in an order that changes; a variant returns its own seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    order = list(variants)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            seconds[name].append(variants[name]())
    return seconds


def show(title: str, ratios: list[Ratio], bound: float | None = None) -> bool:
    """Print ratios; return whether the first one keeps its bound."""
    print(f"\n{title}")
    for one in ratios:
        print(f"  {one}")
    if bound is None:
        return True
    kept = not ratios[0].missed(bound)
    distance = f"{(ratios[0].value - bound) * 100:+.1f} % from it"
    print(f"  bound {bound}: {'kept' if kept else 'MISSED'} (median {distance})")
    return kept
