"""YAML with line numbers: what a text says, and on which line each key stands."""

from __future__ import annotations

from typing import Any

import yaml

Path = tuple[str, ...]  # ("data", "workers")


def parse(text: str, name: str) -> tuple[dict[str, Any], dict[Path, int]]:
    """The mapping that `text` holds, and the line of every key. An empty text is an empty mapping.

    Raises ValueError, one line with `name` and the line, for text that is not YAML, a key that stands twice, a key that
    is not a word, and a document that is not a mapping.
    """
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        lines: dict[Path, int] = {}
        if root is not None:
            if not isinstance(root, yaml.MappingNode):
                raise ValueError(f"{name}:{_line(root)}: expected keys and values, found {_kind(root)}")
            _walk(root, (), lines, name, set())
        tree = loader.construct_document(root) if root is not None else {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"{name}:{mark.line + 1 if mark else 1}: not valid YAML: {_reason(error)}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"{name}:{line}: not valid YAML: character #x{ord(text[error.position]):02x}") from None
    except RecursionError:
        raise ValueError(f"{name}:1: not valid YAML: nested too deeply") from None
    finally:
        if loader:
            loader.dispose()
    return tree, lines


def value(text: str) -> Any:
    """One value as YAML has it: 4, true, 8GB, [1, 2]. Raises ValueError, one line without a place."""
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"not valid YAML: {_reason(error)}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from None


def _walk(node: yaml.Node, path: Path, lines: dict[Path, int], name: str, seen: set[int]) -> None:
    """Note the lines of the keys below `node`; each node once, however often an alias names it."""
    if not isinstance(node, yaml.MappingNode) or id(node) in seen:
        return
    seen.add(id(node))
    for key, below in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if key.tag != "tag:yaml.org,2002:str":
            found = key.value if isinstance(key, yaml.ScalarNode) else _kind(key)
            raise ValueError(f"{name}:{_line(key)}: keys are words, found {found}")
        place = (*path, key.value)
        if place in lines:
            raise ValueError(f"{name}:{_line(key)}: '{'.'.join(place)}' stands twice, first on line {lines[place]}")
        lines[place] = _line(key)
        _walk(below, place, lines, name, seen)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return f"'{node.value}'"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def _reason(error: yaml.MarkedYAMLError) -> str:
    problem = str(error.problem or error.context or "cannot be read")
    if "'\\t'" in problem:
        return "a tab; indent with spaces"
    return " ".join(problem.split())
