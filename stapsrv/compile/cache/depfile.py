"""What the compiler read for a module, as the kernel's build wrote it down.

Beside each object file ``NAME.o`` the build leaves ``.NAME.o.cmd``: the command, and under ``deps_…`` every
file that the compiler opened, found by the compiler itself. stap leaves all that in its temporary
directory, unless it took the module from its own cache and there was nothing to build.

Source: scripts/basic/fixdep.c of the kernel; seen with Linux 6.1.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import attrs

_LIST = re.compile(rb"^(?:deps|source)_\S+ := ?((?:[^\n]*\\\n)*[^\n]*)", re.MULTILINE)
_WILDCARD = re.compile(rb"\$\(wildcard [^)]*\)")


@attrs.frozen
class Build:
    """What a module was built from.

    Attributes:
        paths: absolute, as the compiler opened them (``..`` may follow a symbolic link), without those in
            stap's own directory.
    """

    paths: frozenset[str]


def parse_dependencies(text: bytes) -> tuple[str, ...]:
    """Return the files that a ``.cmd`` file names, as it names them: relative ones to the build tree."""
    found = []
    for match in _LIST.finditer(text):
        listed = _WILDCARD.sub(b"", match[1].replace(b"\\\n", b" "))
        found += [os.fsdecode(path) for path in listed.split()]
    return tuple(found)


def has_build(directory: Path) -> bool:
    """Whether a whole build is left in stap's temporary directory: it did not take the module from its cache.

    Raises:
        OSError: it cannot be looked at.
    """
    modules = [path for path in directory.glob("*.ko") if path.is_file()]
    return bool(modules) and all((directory / f".{path.stem}_src.o.cmd").is_file() for path in modules)


def read_build(directory: Path, build_tree: Path) -> Build:
    """Read what is left of a build in stap's temporary directory.

    Args:
        directory: stap's.
        build_tree: where the build ran.

    Raises:
        OSError: a file cannot be read.
    """
    own, tree = f"{directory}/", str(build_tree)
    paths = set()
    for record in directory.rglob(".*.o.cmd"):
        for named in parse_dependencies(record.read_bytes()):
            path = os.path.join(tree, named.removeprefix("./"))  # noqa: PTH118 - thousands of them
            if not path.startswith(own):
                paths.add(path)
    # What compiles a user's header does not write down what it read.
    paths.update(str(path) for path in directory.rglob("typequery*.so"))
    return Build(frozenset(paths))
