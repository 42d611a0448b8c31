"""Prototxt with the reasons behind its lines."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from google.protobuf.message import Message

from ops.proto import text

WIDTH = 118  # characters of a line of the heading
ALIGN = 48  # column of a reason, where the line is not longer


def annotated(message: Message, notes: Mapping[tuple[int, str], str], heading: str) -> str:
    """The text of a net: `heading` above, behind a field of layer i its note: (i, "param[0].lr_mult") -> why."""
    lines = [f"# {line}" for line in textwrap.wrap(heading, WIDTH)]
    stack: list[tuple[str, dict[str, int]]] = []
    seen: dict[str, int] = {}
    layer = -1
    for line in text.dump(message).splitlines():
        word = line.strip()
        if word == "}":
            stack.pop()
        elif word.endswith("{"):
            name, counts = word[:-2], stack[-1][1] if stack else seen
            counts[name] = counts.get(name, -1) + 1
            if not stack and name == "layer":
                layer += 1
                lines.append("")
            stack.append((f"{name}[{counts[name]}]" if name == "param" else name, {}))
        else:
            name, counts = word.partition(":")[0], stack[-1][1] if stack else seen
            counts[name] = counts.get(name, -1) + 1
            place = name if counts[name] == 0 else f"{name}[{counts[name]}]"
            why = notes.get((layer, ".".join([*(part for part, _ in stack[1:]), place])))
            line = f"{line:<{ALIGN}}  # {why}" if why else line
        lines.append(line)
    return "\n".join(lines) + "\n"
