"""A program of its own: stands in for the ``env … make …`` that stap calls, and leaves a plan of its build.

    BIN STORE ARGUMENT...    run make; if it builds a module, write to STORE by which commands, and the starts

The exit status and the output are make's. A plan is left only if its commands give the same module, byte for
byte. Starts that do not are left out.
"""

# It runs for scripts of the server's own.

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence

from .plan import COMMON, Build, Plan, Unfit, make_plan, rule_paths
from .stand_in import (
    PLAN,
    PREPARED,
    files,
    module_directory,
    output_file,
    read,
    read_bytes,
    read_call,
    read_starts,
    report,
    run_plan,
    spawn,
    wait,
    write,
)
from .start import (
    COMPILED,
    HEADER,
    OPTIONS,
    ROLES,
    Start,
    asked,
    begin_start,
    divide,
    global_registers,
    numbers,
    source_path,
    unconditional,
    uses_name,
)

_SHELL = re.compile(r"[;&|<>$`(){}*?~#\\]")


def main(argv: Sequence[str]) -> None:
    """Record, and exit."""
    store, arguments = read_call(argv)
    os._exit(record(store, arguments, os.environ))


def record(store: str, arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run make and return its exit status; leave a plan in ``store`` if that gives the same module."""
    try:
        directory = module_directory(arguments)
        before = files(directory)
    except (Unfit, OSError):
        os.execvpe("env", ["env", *arguments], environ)  # noqa: S606, S607 - what was called for
    with output_file() as output:
        status = _print(output, wait(spawn(["env", *arguments], environ, output)))
        printed = os.fstat(output).st_size
    if status != 0 or printed:
        return report(environ, "plain: messages" if printed else "plain: failure", status)
    try:
        _record(store, arguments, environ, before)
    except Unfit as exc:
        return report(environ, f"plain: {exc}", status)
    except Exception:  # noqa: BLE001 - the module is built
        return report(environ, "plain: error", status)
    return report(environ, PREPARED, status)


def _print(output: int, status: int) -> int:
    sys.stderr.buffer.write(os.pread(output, 1 << 24, 0))
    sys.stderr.flush()
    return status


def _record(store: str, arguments: Sequence[str], environ: Mapping[str, str], before: Sequence[str]) -> None:
    directory = module_directory(arguments)
    made = sorted(set(files(directory)) - set(before))
    # The features are found out by make where they were not known.
    headers = [name for name in made if name.startswith("stapconf_") and name.endswith(".h")]
    makefile = read(f"{directory}/Makefile")
    build = Build(arguments, environ, [*before, *headers], directory, makefile)
    records = [read(f"{directory}/{name}") for name in made if name.endswith(".cmd")]
    build_tree = os.path.realpath(arguments[list(arguments).index("-C") + 1])
    plan = make_plan(build, records, lambda name: read(f"{directory}/{name}"), build_tree)
    starts = f"{store}/starts"
    os.mkdir(starts)
    for role in ROLES:
        with contextlib.suppress(OSError, Unfit):
            _make_start(f"{starts}/{role}", role, plan, build, environ)
    kept = f"{directory}/made"
    os.mkdir(kept)
    for name in set(made) - set(headers):
        os.rename(f"{directory}/{name}", f"{kept}/{name}")
    try:
        try:
            _check(plan, build, environ, starts, kept)
        except Unfit:
            shutil.rmtree(starts)
            os.mkdir(starts)
            _check(plan, build, environ, starts, kept)
    finally:
        for name in os.listdir(kept):
            os.rename(f"{kept}/{name}", f"{directory}/{name}")
        os.rmdir(kept)
    with open(f"{store}/{PLAN}", "wb") as file:
        file.write(plan.encode())


def _check(plan: Plan, build: Build, environ: Mapping[str, str], starts: str, kept: str) -> None:
    """Build by the plan; raises Unfit if it gives another module than make."""
    run_plan(plan, build, environ, read_starts(starts))
    module = f"{build.module}.ko"
    if read_bytes(f"{build.directory}/{module}") != read_bytes(f"{kept}/{module}"):
        raise Unfit("another module")


def _make_start(path: str, role: str, plan: Plan, build: Build, environ: Mapping[str, str]) -> None:
    """Make the precompiled header of a source's beginning in the directory ``path``; raises Unfit."""
    # All numbers are there when the compiler is asked: it would not say of one that is missing that it is.
    common = read(f"{build.directory}/{COMMON}")
    start = _begin(path, role, plan, build, common=unconditional(common), free=[])
    printed = _run(start.question_command(path), plan, build, environ)
    names = numbers(common) if role == "source" else []
    free = [name for name in names if name not in asked(names, printed)]
    start = _begin(path, role, plan, build, common=common, free=free)
    if uses_name(printed):
        raise Unfit("the module's name in a start")
    start.registers = global_registers(printed)
    if _run(start.header_command(path), plan, build, environ):
        raise Unfit("messages")
    start.dependencies = [
        name for name in rule_paths(read(f"{path}/start.d")) if not name.startswith(f"{path}/")
    ]
    os.unlink(f"{path}/start.d")
    with open(f"{path}/{OPTIONS}", "wb") as file:
        file.write(start.encode())
    if not os.path.exists(f"{path}/{COMPILED}"):
        raise Unfit("no header")


def _begin(path: str, role: str, plan: Plan, build: Build, *, common: str, free: list[str]) -> Start:
    """Write the header of a start to the empty directory ``path``."""
    command, _, after = plan.commands[role].partition(" ; ")
    if _SHELL.search(command):
        raise Unfit("another compiler command")
    divided = divide(role, read(source_path(role, build)), common, free)
    if divided is None:
        raise Unfit("another start")
    start, included = begin_start(role, shlex.split(command), after, divided[0], free)
    shutil.rmtree(path, ignore_errors=True)
    os.mkdir(path)
    write(f"{path}/{HEADER}", _header(start, included, plan, build))
    return start


def _header(start: Start, included: Sequence[str], plan: Plan, build: Build) -> str:
    lines = []
    for word in included:
        # Of commands that run in the module's directory it is relative.
        name = os.path.join(build.fill(plan.directory), build.fill(word).removeprefix("./"))
        if name.startswith(f"{build.directory}/"):
            # The kernel's features, which are in the plan.
            lines.append(read(name))
        else:
            lines.append(f'#include "{name}"\n')
    return "".join(lines) + start.text


def _run(command: Sequence[str], plan: Plan, build: Build, environ: Mapping[str, str]) -> str:
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir(build.fill(plan.directory))
        with output_file() as output:
            status = wait(spawn(list(command), environ, output))
            printed = os.pread(output, os.fstat(output).st_size, 0)
    finally:
        os.fchdir(here)
        os.close(here)
    if status != 0:
        raise Unfit("failure")
    return printed.decode("utf-8", "surrogateescape")
