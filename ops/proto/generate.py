"""Writes caffe_pb2.py and caffe_pb2.pyi from caffe.proto: `python -m ops.proto.generate [--check]`, or `make proto`.

The messages live in a descriptor pool of their own. A process has one default pool, which refuses a second file that
declares package `caffe`, and other packages (pycaffe, some converters) bring one; ours loads beside them in either
order. What is not possible: to hand our message objects to them, or theirs to us, except as bytes; and protobuf's
pure-Python implementation (for want of a compiled wheel, or asked for) still refuses ours when theirs came first.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the folder that holds the package `ops`
SOURCE = "ops/proto/caffe.proto"
GENERATED = ("ops/proto/caffe_pb2.py", "ops/proto/caffe_pb2.pyi")
CHANGES = (  # to each file, after the compiler
    ("_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()"),  # a pool of our own
    ("_Mapping]", "_Mapping[str, object]]"),  # mypy's strict mode wants the types of a dict
)


def generate(folder: Path) -> None:
    """Write the generated files under `folder`/ops/proto; RuntimeError where the compiler refuses the source."""
    from grpc_tools import protoc  # type: ignore[import-untyped, unused-ignore]

    options = [f"-I{ROOT}", f"--python_out={folder}", f"--pyi_out={folder}"]
    if protoc.main(["protoc", *options, str(ROOT / SOURCE)]):
        raise RuntimeError(f"{SOURCE}: the protobuf compiler refused it (its message stands above)")
    for name, (old, new) in zip(GENERATED, CHANGES, strict=True):
        text = (folder / name).read_text()
        if old not in text:
            raise RuntimeError(f"{name}: the compiler's output has no '{old}' to change into '{new}'")
        (folder / name).write_text(text.replace(old, new))


def fresh() -> dict[str, bytes]:
    """The generated files as caffe.proto gives them now."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        return {name: (Path(folder) / name).read_bytes() for name in GENERATED}


def stale(files: dict[str, bytes]) -> list[str]:
    """The names of `files` that stand otherwise, or not at all, in the package."""
    return [name for name, new in files.items() if not (ROOT / name).exists() or (ROOT / name).read_bytes() != new]


def main(arguments: list[str]) -> int:
    """Generate, or with --check only compare; 0 done or equal, 1 different, 2 usage."""
    if arguments not in ([], ["--check"]):
        print("usage: python -m ops.proto.generate [--check]", file=sys.stderr)
        return 2
    files = fresh()
    different = stale(files)
    for name in different:
        if arguments:
            print(f"{name}: not what {SOURCE} gives; run `make proto`", file=sys.stderr)
        else:
            (ROOT / name).write_bytes(files[name])
            print(f"wrote {name}")
    return 1 if arguments and different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
