"""Layers that live outside the project: in files, folders and installed packages (entry points `cortado.layers`).

load_code(["my_layers.py"])             # all that it registers with @layer("MyLayer") can be used in nets
pack(["my_layers.py"]).load()           # the same, in another process: a `Code` travels, files and all
settings(spec, factor=2.0)["factor"]    # what a layer's text says in python_param { param_str: "{'factor': 3}" }

docs/add-a-layer.md shows how such a layer is written.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import ops.layers  # noqa: F401  fills the catalogue, so that taken names are known
from ops import user_frames
from ops.layers.python import keywords_of
from ops.layers.registry import LAYERS, Layer
from ops.names import hint, quoted
from ops.proto.caffe_pb2 import LayerParameter

GROUP = "cortado.layers"  # of entry points
SKIPPED = ("_", "test_", "setup.py", "conftest.py")  # how files of a folder begin that hold no layers
LARGEST = 32 * 1024 * 1024  # bytes of a folder that is sent to other processes

log = logging.getLogger("cortado")


@dataclass(frozen=True)
class Loaded:
    """What came from one path: where it lies here, its content, the layer types, the modules."""

    place: str
    digest: str
    names: tuple[str, ...]
    modules: tuple[str, ...]


LOADED: dict[str, Loaded] = {}  # by absolute path, on the machine where the path was named
INSTALLED: dict[str, tuple[str, ...]] = {}  # entry point -> the layer types that it brought


# -- loading ---------------------------------------------------------------------------------------------------------


def load_code(paths: Iterable[str | Path] = ()) -> list[str]:
    """Make the layers in files and folders, and those of installed packages, known to nets; the names of the former.

    FILE.py is a module by itself. Of a folder every .py in it is one (but _*, test_*, setup.py, conftest.py), and they
    can import each other; with an __init__.py it is a package. What is loaded already is not loaded again, unless it
    has changed: then it replaces what was. ValueError, one line: it cannot be imported, it takes another layer's name.
    """
    load_installed()
    names: list[str] = []
    for path in paths:
        names += load(Path(path))
    return names


def load(path: Path, origin: str | None = None) -> tuple[str, ...]:
    """One file or folder; `origin` is where it was named if that is somewhere else."""
    key, found = origin or str(path.absolute()), files_of(path)
    digest = digest_of(found)
    before = LOADED.get(key)
    if before and before.digest == digest:
        return before.names
    if before:
        forget(key)
    importlib.invalidate_caches()
    with registering(str(path)) as new:
        modules = import_folder(path, found) if path.is_dir() else [import_file(path, found[path.name])]
    LOADED[key] = Loaded(str(path.absolute()), digest, tuple(new), tuple(modules))
    if not new:
        log.warning('%s: registers no layer type: put @layer("NAME") above the class', path)
    return tuple(new)


def forget(key: str) -> None:
    """Take back what a path brought, modules of the folder that others imported with it."""
    for name in LOADED[key].names:
        LAYERS.pop(name, None)
    inside = LOADED[key].place + os.sep
    for name, module in list(sys.modules.items()):
        if name in LOADED[key].modules or (getattr(module, "__file__", None) or "").startswith(inside):
            del sys.modules[name]
    del LOADED[key]


def load_installed() -> None:
    """Load the entry points `cortado.layers` of installed packages, once: modules that register, or Layer classes."""
    for entry in metadata.entry_points(group=GROUP):
        name = f"{entry.name} = {entry.value}"
        if name in INSTALLED:
            continue
        what = f"entry point {name} ({GROUP}, package {entry.dist.name if entry.dist else '?'})"
        if spec := importlib.util.find_spec(entry.module.partition(".")[0]):
            user_frames.add((spec.submodule_search_locations or [spec.origin or ""])[0])
        with registering(what) as new:
            try:
                kind = entry.load()
            except (ImportError, AttributeError) as error:
                raise ValueError(f"{what}: {user_frames.one_line(error)}") from error
            if isinstance(kind, type) and issubclass(kind, Layer) and kind not in LAYERS.values():
                LAYERS[entry.name] = kind
        INSTALLED[name] = tuple(new)


@contextlib.contextmanager
def registering(what: str) -> Iterator[list[str]]:
    """Import inside; afterwards the list holds the layer types that came, each guarded. All or nothing."""
    before, new = dict(LAYERS), list[str]()
    try:
        with user_frames.told(what):
            yield new
        for name, kind in LAYERS.items():
            if kind is not before.get(name):
                check(name, kind, before.get(name), what)
                new.append(name)
    except BaseException:
        LAYERS.clear()
        LAYERS.update(before)
        raise
    for name in new:
        user_frames.guard(LAYERS[name])


def check(name: str, kind: type, taken: type | None, what: str) -> None:
    """ValueError for a layer type that cannot be entered."""
    if taken is not None:
        where = next((path for path, one in LOADED.items() if name in one.names), taken.__module__)
        raise ValueError(f"{what}: layer type {quoted(name)} is there already ({where}); choose another name")
    if not (isinstance(kind, type) and issubclass(kind, Layer)):
        found = getattr(kind, "__name__", repr(kind))
        raise ValueError(f"{what}: {found} is no Layer; write class {found}(Layer), from ops.layers.registry")


# -- files and modules -----------------------------------------------------------------------------------------------


def files_of(path: Path) -> dict[str, bytes]:
    """What there is at a path, by the name inside it: the file itself; of a folder all but hidden files and caches."""
    if not path.exists():
        raise FileNotFoundError(2, "No such file or folder", str(path))
    if path.is_file():
        if path.suffix != ".py":
            raise ValueError(f"{path}: expected a .py file with layers, or a folder of such files")
        return {path.name: path.read_bytes()}
    found: dict[str, bytes] = {}
    size = 0
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in inside.parts):
            size += file.stat().st_size
            if size > LARGEST:
                raise ValueError(f"{path}: more than {LARGEST:,} bytes; give a folder that holds only the layers' code")
            found[inside.as_posix()] = file.read_bytes()
    if not any(map(is_module, found)):
        raise ValueError(f"{path}: a folder without .py files; give the one that holds the layers")
    return found


def is_module(name: str) -> bool:
    """Whether a file of a folder is loaded by itself."""
    return "/" not in name and name.endswith(".py") and not name.startswith(SKIPPED)


def digest_of(found: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(found.items()):
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def import_file(path: Path, source: bytes) -> str:
    """Run a file as a module; the name that it has."""
    name = free_name(path.stem, path)
    user_frames.add(str(path.absolute()))
    run_module(name, path, source)
    return name


def import_folder(path: Path, found: dict[str, bytes]) -> list[str]:
    """Import every module of a folder; their names."""
    user_frames.add(str(path.absolute()))
    package = None
    names: list[str] = []
    if "__init__.py" in found:
        package = free_name(path.absolute().name, path / "__init__.py")
        run_module(package, path / "__init__.py", found["__init__.py"], [str(path.absolute())])
        names.append(package)
    elif str(path.absolute()) not in sys.path:
        sys.path.append(str(path.absolute()))
    for file in filter(is_module, found):
        if package is not None:
            names.append(f"{package}.{Path(file).stem}")
            importlib.import_module(names[-1])
            continue
        name = free_name(Path(file).stem, path / file)
        if name not in sys.modules:  # else another one of the folder has imported it
            run_module(name, path / file, found[file])
        names.append(name)
    return names


def free_name(stem: str, path: Path) -> str:
    """The module name for a file: its own, unless that means another module; then one that nobody else has."""
    at = str(path.absolute())
    if stem in sys.modules:
        free = getattr(sys.modules[stem], "__file__", None) == at
    else:
        found = importlib.util.find_spec(stem) if stem.isidentifier() else None
        free = stem.isidentifier() and (found is None or found.origin == at)
    return stem if free else f"cortado_code_{hashlib.sha256(at.encode()).hexdigest()[:8]}_{stem}"


def run_module(name: str, path: Path, source: bytes, folders: list[str] | None = None) -> types.ModuleType:
    """A module from its source; `folders` make it a package. Not through a cached compilation, which may be old."""
    spec = importlib.util.spec_from_file_location(name, path.absolute(), submodule_search_locations=folders)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        exec(compile(source, str(path.absolute()), "exec"), module.__dict__)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


# -- to other processes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Root:
    """A file or a folder with its content; `origin` is its absolute path where it was named."""

    origin: str
    folder: bool
    files: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class Code:
    """Layers from outside on their way to other processes; can be pickled. Every process calls `load` once."""

    roots: tuple[Root, ...] = ()

    def load(self) -> list[str]:
        """As `load_code`, from the same path where it has the same content here, else from a copy of the files."""
        load_installed()
        names: list[str] = []
        for root in self.roots:
            digest = digest_of(dict(root.files))
            known = LOADED.get(root.origin)
            names += known.names if known and known.digest == digest else load(self.place(root, digest), root.origin)
        return names

    def place(self, root: Root, digest: str) -> Path:
        """Where this process finds the files of a root."""
        origin = Path(root.origin)
        with contextlib.suppress(OSError, ValueError):
            if digest_of(files_of(origin)) == digest:
                return origin
        folder = Path(tempfile.mkdtemp(prefix="cortado-code-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        top = folder / origin.name if root.folder else folder
        for name, content in root.files:
            file = top / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return top if root.folder else folder / origin.name


def pack(paths: Iterable[str | Path]) -> Code:
    """The files of --code, to be sent along; the errors of `load_code` for paths that hold none."""
    roots = []
    for path in map(Path, paths):
        found = files_of(path)
        roots.append(Root(str(path.absolute()), path.is_dir(), tuple(found.items())))
    return Code(tuple(roots))


# -- what a layer is told --------------------------------------------------------------------------------------------


def settings(spec: LayerParameter, **defaults: Any) -> dict[str, Any]:
    """A layer's own settings: the dict in python_param { param_str: "{'factor': 3}" } on top of `defaults`.

    ValueError for a name that has no default, or a value of another type than its default; a default None takes any.
    """
    said = spec.python_param.param_str.strip()
    given = keywords_of(said) if said else {}
    if given is None:
        raise ValueError(f"param_str {quoted(said)} is no dict such as \"{{'factor': 3}}\"")
    for name, value in given.items():
        if name not in defaults:
            raise ValueError(f"param_str: no setting named {quoted(name)}{hint(name, defaults)}")
        default = defaults[name]
        if isinstance(default, float) and type(value) is int:
            given[name] = float(value)
        elif default is not None and type(value) is not type(default):
            raise ValueError(f"param_str: {name} is {value!r}, expected {type(default).__name__} as {default!r}")
    return {**defaults, **given}
