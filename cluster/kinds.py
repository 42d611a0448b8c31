"""Kinds of value that ray_config.yaml holds: each reads one, or says what it expected."""

from __future__ import annotations

import math
import re
from typing import Any

from pydantic import BeforeValidator

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def whole(least: int, most: int | None = None, *, auto: bool = False) -> BeforeValidator:
    """A whole number within bounds."""
    span = f"from {least} to {most}" if most is not None else f"from {least}"
    expected = f"a whole number {span}{', or auto' * auto}"

    def read(found: Any) -> Any:
        number = isinstance(found, int) and not isinstance(found, bool)
        need((auto and found == "auto") or (number and least <= found <= (most or math.inf)), expected, found)
        return found

    return BeforeValidator(read)


def number_or_range(*, auto: bool = False) -> BeforeValidator:
    """A whole number of at least 1, or {min: A, max: B}."""
    expected = "a whole number from 1, {min: A, max: B} with 1 <= A <= B, or auto"
    expected = expected if auto else "a whole number from 1, or {min: A, max: B} with 1 <= A <= B"

    def read(found: Any) -> Any:
        spans = isinstance(found, dict) and set(found) == {"min", "max"}
        ends: list[Any] = [found["min"], found["max"]] if spans else [found]
        whole_ones = all(isinstance(end, int) and not isinstance(end, bool) and end >= 1 for end in ends)
        need((auto and found == "auto") or (whole_ones and ends[0] <= ends[-1]), expected, found)
        return found

    return BeforeValidator(read)


def size(least: int = 1) -> BeforeValidator:
    """Bytes, as a number or with a unit; or auto."""

    def read(found: Any) -> Any:
        count = found
        if isinstance(found, str) and (match := re.fullmatch(r"([\d.]+)\s*([kmgt]i?)?b?", found.strip().lower())):
            count = round(float(match[1]) * UNITS[match[2] or ""]) if re.fullmatch(r"\d+(\.\d+)?", match[1]) else found
        number = isinstance(count, int) and not isinstance(count, bool) and count >= least
        least_of = f" of at least {least // 10**6}MB" if least > 1 else ""
        need(found == "auto" or number, f"a size{least_of} as 512MB or 8GB, or auto", found)
        return count

    return BeforeValidator(read)


def choice(*words: str) -> BeforeValidator:
    """One of a few words."""

    def read(found: Any) -> Any:
        need(isinstance(found, str) and found in words, " or ".join(words), found)
        return found

    return BeforeValidator(read)


def switch(*, auto: bool = False) -> BeforeValidator:
    def read(found: Any) -> Any:
        need(isinstance(found, bool) or (auto and found == "auto"), f"true or false{', or auto' * auto}", found)
        return found

    return BeforeValidator(read)


def seconds(found: Any) -> Any:
    number = isinstance(found, int | float) and not isinstance(found, bool)
    need(number and 0 <= found < math.inf, "a number of seconds from 0", found)
    return found


def word(found: Any) -> Any:
    need(isinstance(found, str) and found.strip() != "", "a word", found)
    return found.strip()


def cluster_address(found: Any) -> Any:
    """local, auto or host:port, or nothing; Ray Client addresses are refused with the way out."""
    if found is None:
        return None
    text = word(found)
    if text.startswith("ray://"):
        raise ValueError(f"'{text}' is a Ray Client address; run on the cluster (ray job submit) and give host:6379")
    port = re.fullmatch(r"[^\s/]+:(\d{1,5})", text)
    need(text in ("local", "auto") or (port and 0 < int(port[1]) < 65536), "local, auto or host:port", found)
    return text


def texts(found: Any) -> Any:
    """A mapping of words to text; whole numbers become text, as the environment has them."""
    need(isinstance(found, dict), "a mapping of names to text", found)
    plain = {name: str(one) if type(one) is int else one for name, one in found.items()}
    for name, one in plain.items():
        need(isinstance(one, str), f"text for {name} (quote it)", one)
    return plain


def need(holds: object, expected: str, found: Any) -> None:
    if not holds:
        raise ValueError(f"expected {expected}, found {shown(found)}")


def shown(found: Any) -> str:
    if isinstance(found, str):
        return f"'{found}'"
    if isinstance(found, bool):
        return str(found).lower()
    return "a mapping" if isinstance(found, dict) else "a list" if isinstance(found, list) else str(found)
