"""Feeds damaged prototxts and weight files to `load`; run as a process of its own, so that a crash is one line.

python -m tests.ops.fuzz_nets COUNT FILE: before each case FILE names the one that is tried. Memory is limited to 4 GB.
"""

from __future__ import annotations

import random
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

from ops import net as nets
from ops import zoo
from tests.ops.fuzz_images import damaged

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
SLOWEST = 10.0  # seconds for one case, on a busy machine
MEMORY = 4 * 1024**3  # bytes beyond what the process has when it begins
ODD = ("0", "-1", "1", "2147483647", "4294967295", "99999999999", "1e30", "nan", '""', "true", "MAX", "{}", "7")


def garbled(original: str, chance: random.Random) -> str:
    """The text with numbers, names, lines or braces changed; or damaged as any bytes are."""
    if chance.random() < 0.2:
        return damaged(original.encode(), chance).decode("utf-8", "surrogateescape")
    text = original
    for _ in range(chance.choice((1, 1, 2, 4))):
        words = list(re.finditer(r"[\w.\-]+|[{}:]|\"[^\"]*\"", text))
        if not words:
            return text
        word, other = chance.choice(words), chance.choice(words)
        lines = text.split("\n")
        match chance.randrange(5):
            case 0:
                text = text[: word.start()] + chance.choice(ODD) + text[word.end() :]
            case 1:
                text = text[: word.start()] + other[0] + text[word.end() :]
            case 2:
                text = text[: word.start()] + text[word.end() :]
            case 3:
                lines.insert(chance.randrange(len(lines)), chance.choice(lines))
                text = "\n".join(lines)
            case 4:
                del lines[chance.randrange(len(lines))]
                text = "\n".join(lines)
    return text


def attempt(*arguments: object, **options: object) -> bool:
    """Whether it loads; nothing but one-line errors may come out."""
    try:
        nets.load(*arguments, **options)  # type: ignore[arg-type]
    except (ValueError, OSError, MemoryError) as error:
        if "\n" in str(error):
            raise AssertionError(f"more than one line: {error}") from error
        return False
    return True


def main(count: int, trace: Path) -> None:
    texts = sorted((GOLDEN / "layers").glob("*.prototxt")) + sorted((GOLDEN / "legacy").glob("v?.prototxt"))
    texts += [zoo.find("lenet"), zoo.find("cifar10_full"), zoo.find("googlenet"), zoo.find("siamese")]
    models = {f"v{i}": GOLDEN / f"legacy/v{i}.caffemodel" for i in (0, 1)}
    loads = 0
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        text, weights = Path(folder, "net.prototxt"), Path(folder, "net.caffemodel")
        for seed in range(count):
            chance, began = random.Random(seed), time.monotonic()
            if seed % 3:
                source = texts[seed % len(texts)]
                trace.write_text(f"{source.name}, seed {seed}")
                text.write_text(garbled(source.read_text(), chance), errors="surrogateescape")
                loads += attempt(text, chance.choice(("TRAIN", "TEST")))
            else:
                name, source = chance.choice(list(models.items()))
                trace.write_text(f"{source.name}, seed {seed}")
                weights.write_bytes(damaged(source.read_bytes(), chance))
                loads += attempt(GOLDEN / f"legacy/{name}.prototxt", weights=weights)
                attempt(weights)  # as a net of its own
            took = time.monotonic() - began
            assert took < SLOWEST, f"{source.name}, seed {seed}: {took:.1f} s"
    print(f"{loads} of {count} still load")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
