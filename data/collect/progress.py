"""Counts by teacher and how they are shown: redrawn in a terminal, plain lines elsewhere."""

import asyncio
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import IO

from data.collect.money import Ledger
from data.collect.store import Answer
from data.records import STATUSES


@dataclass
class Counts:
    """One teacher's numbers. `found` answers were in the store when the run began, `statuses` counts all answers."""

    name: str
    total: int = 0
    found: int = 0
    in_flight: int = 0
    failed: int = 0
    retries: int = 0
    statuses: Counter = field(default_factory=Counter)
    echoes: Counter = field(default_factory=Counter)
    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    untold: int = 0
    stopped: str | None = None

    @property
    def done(self) -> int:
        return sum(self.statuses.values())

    def add(self, answer: Answer, *, found: bool = False) -> None:
        self.found += found
        self.statuses[answer.status] += 1
        self.echoes[answer.echoed] += 1
        self.tokens_in += answer.tokens_in
        self.tokens_out += answer.tokens_out
        self.cost += answer.cost
        self.untold += not answer.usage_told

    def seconds_left(self, elapsed: float) -> float | None:
        new, left = self.done - self.found, self.total - self.done
        if not left or self.stopped:
            return 0.0
        return elapsed / new * left if new else None

    def line(self, elapsed: float) -> str:
        """`name: 12/30 done, 4 in flight, 0 failed, 1 refused, ... tokens, cost, time left`."""
        parts = [f"{self.done}/{self.total} done", f"{self.in_flight} in flight", f"{self.failed} failed"]
        parts += [f"{self.statuses['refused']} refused"]
        parts += [f"{self.statuses[s]} {s}" for s in STATUSES if s not in ("ok", "refused") and self.statuses[s]]
        parts += [f"{self.retries} retries"] if self.retries else []
        parts += [f"{self.tokens_in + self.tokens_out:,} tokens", f"cost {self.cost:.4f}"]
        if self.stopped:
            parts.append("stopped")
        elif self.done < self.total:
            left = self.seconds_left(elapsed)
            parts.append("time left unknown" if left is None else f"about {duration(left)} left")
        return f"{self.name}: " + ", ".join(parts)


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole / 3600:.1f} h"


class Display:
    """Shows the counts of a run until told to stop."""

    def __init__(self, counts: list[Counts], ledger: Ledger, out: IO[str] | None = None):
        self.counts, self.ledger = counts, ledger
        self.out = out or sys.stderr
        self.live = self.out.isatty()
        self.start = time.monotonic()
        self._drawn = 0

    def lines(self) -> list[str]:
        elapsed = time.monotonic() - self.start
        money = f"spent {self.ledger.spent:.4f}"
        if self.ledger.budget is not None:
            money += f" of {self.ledger.budget:g}, at most {self.ledger.reserved:.4f} under way"
        left = [one.seconds_left(elapsed) for one in self.counts]
        ahead = "time left unknown" if None in left else f"about {duration(max(left, default=0))} left"
        return [one.line(elapsed) for one in self.counts] + [f"collect: {duration(elapsed)}, {money}, {ahead}"]

    def draw(self) -> None:
        lines = self.lines()
        if self.live:
            self.clear()
            self._drawn = len(lines)
            # Cut to the width: a wrapped line would break the counting of lines to go up.
            lines = [line[: _width()] for line in lines]
        print(*lines, sep="\n", file=self.out, flush=True)

    def clear(self) -> None:
        if self._drawn:
            print(f"\x1b[{self._drawn}F\x1b[J", end="", file=self.out, flush=True)
        self._drawn = 0

    def say(self, line: str) -> None:
        """Print one line above the display."""
        self.clear()
        print(line, file=self.out, flush=True)

    async def keep_drawing(self) -> None:
        while True:
            await asyncio.sleep(0.5 if self.live else 30)
            self.draw()


def _width() -> int:
    return max(20, shutil.get_terminal_size().columns - 1)
