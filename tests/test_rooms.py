"""Arrows between the rooms point one way, from what joins to what is joined (docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import stapsrv

ROOT = Path(stapsrv.__file__).parent
LAYERS = (
    {"errors", "rejection", "text"},
    {"system"},
    {"process"},
    {"config"},
    {"identity", "mdns", "sandbox"},
    {"compile"},
    {"supervisor"},
    {"observe"},
    {"control"},
    {"daemon_options", "doctor"},
    {"app"},
    {"daemon"},
)
"""From the bottom; a room imports from those below it, and from itself."""


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
    room = name.partition(".")[0]
    layers = [number for number, rooms in enumerate(LAYERS) if room in rooms]
    assert layers, f"{room} is new, and has no layer above"
    return layers[0]


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "__init__.py"
}


def test_each_arrow_points_down():
    back = [
        f"{module} -> {name}"
        for module, path in MODULES.items()
        for name in imports(path)
        if name != "__version__"
        and name.partition(".")[0] != module.partition(".")[0]
        and layer_of(name) >= layer_of(module)
    ]
    assert back == []


def test_the_command_line_knows_no_supervisor():
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
