"""The house rule, read from the source: who may import whom, what loads when, and what a tracked file may hold."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ops", "cluster", "pipelines")
FORBIDDEN = {"ops": {"ray", "pipelines", "cluster"}, "cluster": {"ops", "pipelines"}}
COMPOSERS = {"pipelines.prepare", "pipelines.demo"}  # the two jobs that run other jobs
GENERATED = {"ops/proto/caffe_pb2.py", "ops/proto/caffe_pb2.pyi"}
WITH_CODE = {"ops/layers/__init__.py", "ops/zoo/__init__.py"}  # the catalogues of layers and of nets
LINES_A_FILE, LINES_A_FUNCTION = 400, 60
MACHINE_PATH = re.compile(r"(?<![\w.~}])/(?:work|root|home/\w+)(?![\w-])")
BROAD = {"Exception", "BaseException"}


def sources(package: str) -> list[Path]:
    """Every Python file of a package that a person wrote."""
    return [file for file in sorted((ROOT / package).rglob("*.py")) if str(file.relative_to(ROOT)) not in GENERATED]


def dotted(file: Path) -> str:
    """pipelines/stages/read.py -> pipelines.stages.read"""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(node: ast.AST) -> Iterator[str]:
    """Full names of what is imported anywhere below `node`, inside functions too."""
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            yield from (alias.name for alias in part.names)
        elif isinstance(part, ast.ImportFrom):
            assert part.level == 0, f"line {part.lineno}: imports are written with their full name"
            yield part.module or ""
            yield from (f"{part.module}.{alias.name}" for alias in part.names)


def imported(file: Path) -> set[str]:
    return set(imports(ast.parse(file.read_text())))


def tracked() -> list[Path]:
    """Files under version control; all that are not ignored where there is no git (a source archive)."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listing.stdout.split("\0") if listing.returncode == 0 else []
    files = [ROOT / name for name in names if name] or [file for package in PACKAGES for file in sources(package)]
    return [file for file in files if file.is_file()]


def in_a_new_python(code: str) -> str:
    """What `code` prints in an interpreter that has imported nothing."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("house", FORBIDDEN)
def test_imports_stay_in_their_layer(house):
    for file in sources(house):
        crossed = {name for name in imported(file) if name.split(".")[0] in FORBIDDEN[house]}
        assert not crossed, f"{file.relative_to(ROOT)} imports {sorted(crossed)}"


def test_only_prepare_and_demo_import_jobs():
    jobs = {module for module, _, _ in COMMANDS.values()}
    for file in sources("pipelines"):  # stages included
        borrowed = {name for name in imported(file) if name in jobs and name != dotted(file)}
        assert not borrowed or dotted(file) in COMPOSERS, f"{file.relative_to(ROOT)} imports {sorted(borrowed)}"


def test_ray_is_started_in_one_place_only():
    for package in PACKAGES:
        for file in sources(package):
            if "ray.init(" in file.read_text():
                assert file == ROOT / "cluster/connect.py", f"{file.relative_to(ROOT)} starts Ray by itself"


def test_ops_loads_no_ray():
    modules = [dotted(file) for file in sources("ops") if file.name != "generate.py"]
    code = f"import importlib, sys; [importlib.import_module(m) for m in {modules}]; print('ray' in sys.modules)"
    assert in_a_new_python(code) == "False\n"


HEAVY = "{'ray', 'torch', 'cv2', 'numpy', 'pandas', 'pyarrow', 'h5py', 'tyro', 'rich'} & set(sys.modules)"


def test_help_loads_nothing_heavy():
    code = f"import sys; from pipelines.__main__ import main; main(['--help']); print(sorted({HEAVY}))"
    assert in_a_new_python(code).splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help_loads_no_ray_and_no_torch(command):
    module, _, _ = COMMANDS[command]
    code = f"import sys, {module}; print(sorted({{'ray', 'torch', 'cv2', 'pandas'}} & set(sys.modules)))"
    assert in_a_new_python(code) == "[]\n"


def test_a_commands_line_of_help_is_short():
    for command, (_, _, line) in COMMANDS.items():
        assert len(f"  {command}  {line}") <= 88, command


@pytest.mark.parametrize("package", PACKAGES)
def test_init_files_hold_only_a_docstring(package):
    for file in (file for file in sources(package) if file.name == "__init__.py"):
        if str(file.relative_to(ROOT)) not in WITH_CODE:
            body = ast.parse(file.read_text()).body
            assert ast.get_docstring(ast.parse(file.read_text())), f"{file.relative_to(ROOT)} says nothing"
            assert len(body) == 1, f"{file.relative_to(ROOT)} holds code"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_says_what_it_is(package):
    for file in sources(package):
        assert ast.get_docstring(ast.parse(file.read_text())), f"{file.relative_to(ROOT)} has no docstring"


@pytest.mark.parametrize("package", PACKAGES)
def test_files_and_functions_stay_readable(package):
    for file in sources(package):
        text = file.read_text()
        assert text.count("\n") <= LINES_A_FILE, f"{file.relative_to(ROOT)}: two rooms in one?"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= LINES_A_FUNCTION, f"{file.relative_to(ROOT)}:{node.lineno}: {node.name}, {lines} lines"


def test_no_exception_is_swallowed_whole():
    for file in (file for package in PACKAGES for file in sources(package)):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) in BROAD):
                raises = any(isinstance(part, ast.Raise) for part in ast.walk(node))
                assert raises, f"{file.relative_to(ROOT)}:{node.lineno} catches everything and goes on"


def test_no_file_names_a_path_of_one_machine():
    for file in tracked():
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue  # a picture, a database
        for number, line in enumerate(text.splitlines(), 1):
            assert not MACHINE_PATH.search(line), f"{file.relative_to(ROOT)}:{number}: {line.strip()}"


def test_the_architecture_page_names_what_there_is():
    page = (ROOT / "docs/architecture.md").read_text()
    tree = page.partition("## Tree")[2].partition("## Follow")[0]
    files = {file.name for package in PACKAGES for file in sources(package)}
    assert set(re.findall(r"\b\w+\.py\b", tree)) <= files, "the tree names files that are not there"
    rooms = [
        *(ROOT / "pipelines").glob("*.py"),
        *(ROOT / "pipelines/stages").glob("*.py"),
        *(ROOT / "ops").glob("*.py"),
    ]
    missing = [str(file.relative_to(ROOT)) for file in rooms if file.name not in tree and file.name != "__init__.py"]
    assert not missing, f"docs/architecture.md does not say what these are for: {missing}"
