"""docs/architecture.md holds: imports point one way, the page shows today's tree, and the tests mirror it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import stapsrv

ROOT = Path(__file__).parent.parent
PACKAGE = Path(stapsrv.__file__).parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
BESIDE = {"faults", "fuzz", "kit", "packaging", "real"}
"""Directories of tests that mirror no package: by fault, by parser, by what a user does."""
LAYERS = (
    {"errors", "rejection", "text"},
    {"system"},
    {"process"},
    {"config"},
    {"identity", "mdns", "sandbox"},
    {"compile"},
    {"scripts"},
    {"supervisor"},
    {"observe"},
    {"control"},
    {"farm"},
    {"compile.engine.dask"},
    {"client"},
    {"bench"},
    {"daemon_options", "doctor"},
    {"app"},
    {"daemon"},
)
"""From the bottom; a package imports from those below it, and from itself."""
ALONE = [name for layer in LAYERS for name in layer if "." in name]
"""Modules with a layer of their own: nobody imports them, but by a name that settings have."""


def imports(module: Path) -> Iterator[str]:
    """Return what a module imports of this program, without the program's name, but for types."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    typing = {id(node) for guard in ast.walk(tree) if is_for_types(guard) for node in ast.walk(guard)}
    for node in ast.walk(tree):
        if id(node) in typing:
            continue
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("stapsrv.") for name in names if name.startswith("stapsrv."))


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def layer_of(name: str) -> int:
    package = next((alone for alone in ALONE if f"{name}.".startswith(f"{alone}.")), name.partition(".")[0])
    layers = [number for number, packages in enumerate(LAYERS) if package in packages]
    assert layers, f"{package} is new, and has no layer above"
    return layers[0]


MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}


def test_imports_point_down():
    back = [
        f"{module} -> {name}"
        for module, path in MODULES.items()
        for name in imports(path)
        if name != "__version__"
        and (name.partition(".")[0] != module.partition(".")[0] or any(map(name.startswith, ALONE)))
        and layer_of(name) >= layer_of(module)
    ]
    assert back == []


def test_command_line_does_not_import_the_supervisor():
    known = [
        f"{module} -> {name}"
        for module, path in MODULES.items()
        if module.startswith("control.") and not module.startswith("control.server.")
        for name in imports(path)
        if name.startswith(("supervisor.", "control.server."))
    ]
    assert known == []


def test_pure_modules_import_nothing_that_waits_or_starts_programs():
    pure = [name for name in MODULES if name == "text" or name.startswith("compile.protocol.")]
    names = ", ".join(f"stapsrv.{name}" for name in pure if not name.endswith("__init__"))
    waits = "{'anyio', 'asyncio', 'trio', 'ssl', 'socket', 'subprocess'}"
    code = f"import sys, {names}\nprint({waits} & sys.modules.keys() or 'none')"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "none\n"


def modules() -> set[Path]:
    return {
        path.relative_to(ROOT / "stapsrv")
        for path in (ROOT / "stapsrv").rglob("*.py")
        if path.name != "__init__.py"
    }


def test_page_shows_todays_tree():
    check = [sys.executable, ROOT / "docs" / "tree", "--check"]
    ran = subprocess.run(check, capture_output=True, text=True, check=False)
    assert ran.stderr == ""


def test_page_names_files_that_exist():
    named = set(re.findall(r"`(stapsrv/[\w/.]+|tests/[\w/.]+|docs/[\w/.]+)`", PAGE))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_page_on_trust_names_tests_that_exist():
    rules = [
        line.split("|")[3].strip()
        for line in (ROOT / "docs" / "trust.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|") and "---" not in line and not line.startswith("| who ")
    ]
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
    }
    assert len(rules) > 20
    assert [rule for rule in rules if rule.strip("`") not in defined] == []


def test_each_module_has_its_test_file():
    tests = {path.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")}
    mirrored = {module.with_name(f"test_{module.name}") for module in modules()}
    assert sorted(map(str, mirrored - tests)) == []


def test_each_test_file_has_its_module():
    own = {"test_architecture.py"}
    stray = [
        str(path.relative_to(ROOT / "tests"))
        for path in (ROOT / "tests").rglob("test_*.py")
        if path.relative_to(ROOT / "tests").parts[0] not in BESIDE | own
        and path.relative_to(ROOT / "tests").with_name(path.name.removeprefix("test_")) not in modules()
    ]
    assert stray == []


def test_module_sizes_are_readable():
    """A module is one idea: neither a scrap nor two ideas in one file."""
    sizes = {module: len((ROOT / "stapsrv" / module).read_text().splitlines()) for module in modules()}
    assert {str(module): size for module, size in sizes.items() if not 30 <= size <= 400} == {}
