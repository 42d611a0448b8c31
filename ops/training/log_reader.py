"""A log of a training, as Caffe prints it (and our train.log) -> its tables.

Lines begin with glog's prefix in either form of the date, I0717 or I20240717; what the terminal or mpirun put before
is passed over. A log that holds several sessions, one resumed from a snapshot of the other, is read as one training:
what a later session did again counts, and the time between two sessions does not.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd

PREFIX = re.compile(r"[IWEF](\d{4})?(\d\d)(\d\d) (\d\d):(\d\d):(\d\d(?:\.\d+)?) +\d+ [^\s\]]+:\d+\] ?(?:\[\d+\] )?(.*)")
NUMBER = r"([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?(?!\.?#)|\.\d+|nan|inf|1\.#\w+))"  # the last as Windows prints nan and inf
SHOWN = re.compile(rf"Iteration (\d+)\b[^=]*\bloss = {NUMBER}", re.IGNORECASE)
LEARNS = re.compile(rf"Iteration (\d+)\b[^=]*\blr = {NUMBER}", re.IGNORECASE)
TESTING = re.compile(r"Iteration (\d+), Testing net \(#(\d+)\)")
OUTPUT = re.compile(rf"\s*(Train|Test) net output #\d+: (.+?) = {NUMBER}( \(\*)?", re.IGNORECASE)
SCORE = re.compile(rf"\s*Test score #(\d+): {NUMBER}", re.IGNORECASE)  # so Caffe wrote in its first year
SOLVING = re.compile(r"Solving\b|Starting Optimization")
LEAP = re.compile(r"[IWEF]0229 \d\d:")
NEEDED = ("Iteration", " net output #", "Test score #", "Solving", "Starting Optimization")
EXPECTED = "Iteration 100, loss = 0.5"
FIRST = datetime.date(2000, 1, 1)  # any, near enough for microseconds to count
PLACES = ("iteration", "seconds")


class Tables(NamedTuple):
    """train: iteration, seconds, loss, lr, and the train net's outputs; tests: iteration, seconds, net, output, value;
    losses: the outputs of tests that count as losses. Of a vector output, element k is output[k].
    """

    train: pd.DataFrame
    tests: pd.DataFrame
    losses: frozenset[str]


def read(path: Path) -> Tables:
    """ValueError where the file holds no line of a training."""
    data = path.read_bytes()
    coding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"  # PowerShell's > writes the former
    text = data.decode(coding, errors="replace")
    log = Log(Clock(2024 if LEAP.search(text) else 2022))
    for line in text.splitlines():
        if any(word in line for word in NEEDED):
            log.take(line)
    if not log.rows and not log.tests:
        raise ValueError(f"{path}: not a log of a training: no line in it as '{EXPECTED}'")
    return Tables(log.train_table(), log.test_table(), frozenset(log.losses))


def number(text: str) -> float:
    """A number as C++ prints it on any system."""
    if "#" in text:
        return math.copysign(math.inf, -1 if text[0] == "-" else 1) if "inf" in text.lower() else math.nan
    return float(text)


@dataclass
class Clock:
    """Seconds from the stamps of lines. A new year begins where the months begin anew; while a clock that was put back
    catches up, time stands still.
    """

    year: int  # the first, where the stamps have none
    month: int = 0
    last: float = 0.0
    skew: float = 0.0

    def seconds(self, year: str | None, month: int, day: int, hour: int, minute: int, second: float) -> float:
        if year is None and month < self.month:
            self.year += 1
        try:
            days = (datetime.date(int(year or self.year), month, day) - FIRST).days
        except ValueError:  # no such day: a damaged line
            return self.last
        self.month = month
        now = days * 86400 + hour * 3600 + minute * 60 + second + self.skew
        if now < self.last:
            self.skew += self.last - now
            now = self.last
        self.last = now
        return now


@dataclass
class Row:
    """An iteration that was shown, or a test."""

    seconds: float
    values: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class Log:
    """What has been read so far."""

    clock: Clock
    rows: dict[int, Row] = field(default_factory=dict)
    tests: dict[tuple[int, int], Row] = field(default_factory=dict)
    losses: set[str] = field(default_factory=set)
    latest: int = -1
    now: float = math.nan
    start: float = math.nan  # of this session
    before: float = 0.0  # seconds of training in those before
    fresh: bool = True
    testing: Row | None = None

    def take(self, line: str) -> None:
        """One line."""
        if match := PREFIX.search(line):
            year, month, day, hour, minute, second, line = match.groups()
            self.now = self.clock.seconds(year, int(month), int(day), int(hour), int(minute), float(second))
        else:
            line = line.strip()
        if match := OUTPUT.match(line):
            self.output(match[1].lower(), match[2], number(match[3]), counts=match[4] is not None)
        elif match := SCORE.match(line):
            self.output("test", f"score {match[1]}", number(match[2]), counts=False)
        elif match := TESTING.match(line):
            iteration, net = int(match[1]), int(match[2])
            self.testing = self.tests[iteration, net] = Row(self.at(iteration))
        elif match := SHOWN.match(line):
            row = self.row(int(match[1]))
            row.values["loss"], row.outputs = number(match[2]), {}
        elif match := LEARNS.match(line):
            self.row(int(match[1])).values["lr"] = number(match[2])
        elif SOLVING.match(line):
            self.fresh, self.start = True, self.now

    def row(self, iteration: int) -> Row:
        seconds = self.at(iteration)
        return self.rows.setdefault(iteration, Row(seconds))

    def output(self, kind: str, name: str, value: float, *, counts: bool) -> None:
        """An element of an output; `counts`: as a loss."""
        row = self.testing if kind == "test" else self.rows.get(self.latest)
        if row is not None:
            row.outputs.setdefault(name, []).append(value)
        if kind == "test" and counts:
            self.losses.add(name)

    def at(self, iteration: int) -> float:
        """Seconds of training until now; where the iterations begin anew, those that are done again are forgotten."""
        if self.fresh or iteration < self.latest:
            if not self.fresh or math.isnan(self.start):
                self.start = self.now
            if iteration <= self.latest:
                self.rows = {i: row for i, row in self.rows.items() if i < iteration}
                self.tests = {at: row for at, row in self.tests.items() if at[0] < iteration}
            self.before = max((row.seconds for row in (*self.rows.values(), *self.tests.values())), default=0.0)
            self.fresh = False
        self.latest = iteration
        return self.before + self.now - self.start

    # -- tables ----------------------------------------------------------------------------------------------------

    def train_table(self) -> pd.DataFrame:
        """A row an iteration that was shown."""
        listed = []
        for iteration, row in sorted(self.rows.items()):
            own = {"iteration": float(iteration), "seconds": row.seconds, **row.values}
            listed.append({**{name: value for name, value in flat(row.outputs).items() if name not in own}, **own})
        return pd.DataFrame(listed) if listed else pd.DataFrame(columns=list(PLACES), dtype=float)

    def test_table(self) -> pd.DataFrame:
        """A row an output of a test."""
        listed = [
            (float(iteration), row.seconds, float(net), name, value)
            for (iteration, net), row in sorted(self.tests.items())
            for name, value in flat(row.outputs).items()
        ]
        return pd.DataFrame(listed, columns=[*PLACES, "net", "output", "value"])


def flat(outputs: Mapping[str, list[float]]) -> dict[str, float]:
    """Elements of vectors under names of their own: prob[0], prob[1]."""
    found: dict[str, float] = {}
    for name, values in outputs.items():
        found |= {name: values[0]} if len(values) == 1 else {f"{name}[{k}]": value for k, value in enumerate(values)}
    return found
