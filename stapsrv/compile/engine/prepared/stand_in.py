"""A program of its own: stands in for the ``env … make …`` that stap calls, and builds the module by a plan.

    BIN STORE ARGUMENT...    build by the plan in STORE that fits; exit status 0 only if the module is built

The arguments are those of env, which stap finds in BIN, the first directory on its path. Where no plan fits,
or the plan's commands fail or print anything, everything is left as it was found, and the caller runs make,
whose module and messages count. What happened is appended to the file ``$SYSTEMTAP_DIR/builds``, a line for
each call: ``prepared``, ``prepared: another start``, or ``plain: REASON``.
"""

# It starts for every compile, so it imports little, and of this package only what stands beside it.

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

from .plan import COMMON, LACKING, Build, Plan, Unfit, dependency_record, rule_paths
from .start import OPTIONS, Start, source_path

PLAN, REPORT = "plan.json", "builds"
PREPARED, ANOTHER_START = "prepared", "prepared: another start"
_NOT_BUILT = 1


def main(argv: Sequence[str]) -> None:
    """Build by a plan, and exit."""
    store, arguments = read_call(argv)
    os._exit(follow(store, arguments, os.environ))


def read_call(argv: Sequence[str]) -> tuple[str, list[str]]:
    """Return STORE and env's arguments, and make the path what it would be without this program."""
    own, store, *words = argv
    os.environ["PATH"] = os.environ.get("PATH", os.defpath).removeprefix(f"{own}:")
    return store, [word.replace(f":{own}:", ":") if word.startswith("PATH=") else word for word in words]


def follow(store: str, arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Build by a plan; return 0 if the module is built."""
    try:
        directory = module_directory(arguments)
        build = Build(arguments, environ, files(directory), directory, read(f"{directory}/Makefile"))
        plan, path = _find_plan(store, build)
        has_start = run_plan(plan, build, environ, read_starts(path))
    except Unfit as exc:
        return report(environ, f"plain: {exc}", _NOT_BUILT)
    except Exception:  # noqa: BLE001 - make can do whatever this cannot
        return report(environ, "plain: error", _NOT_BUILT)
    return report(environ, PREPARED if has_start else ANOTHER_START, 0)


def run_plan(
    plan: Plan, build: Build, environ: Mapping[str, str], starts: Sequence[tuple[str, Start]]
) -> bool:
    """Run the commands of a plan, with those of the ``starts`` that fit; return whether the source has one.

    Raises Unfit, with nothing left of them, where a command fails or prints.
    """
    before = set(files(build.directory))
    rest = f"{build.directory}/prepared"
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.mkdir(rest)
        os.chdir(build.fill(plan.directory))
        return _Run(plan, build, _environment(plan, build.arguments, environ), starts, rest).run()
    except BaseException:
        for name in set(files(build.directory)) - before:
            os.unlink(f"{build.directory}/{name}")
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(rest):
                os.unlink(f"{rest}/{name}")
            os.rmdir(rest)
        os.fchdir(here)
        os.close(here)


class _Run:
    """One build by a plan."""

    def __init__(
        self,
        plan: Plan,
        build: Build,
        environ: Mapping[str, str],
        starts: Sequence[tuple[str, Start]],
        rest: str,
    ) -> None:
        self._plan, self._build, self._environ, self._starts = plan, build, environ, starts
        # The directory of what remains of sources behind their starts.
        self._rest = rest
        # By object: the source, and what was read for its start and is in no list of the compiler's.
        self._begun: dict[str, tuple[str, list[str]]] = {}

    def run(self) -> bool:
        build = self._build
        objects = dict(self._plan.object_commands(build))
        with output_file() as output:
            for role in ("source", "symbols"):
                self._begin(role, objects)
            for number in range(build.auxiliaries):
                self._begin("auxiliary", objects, number)
            _run_side_by_side(list(objects.values()), _jobs(build.arguments), self._environ, output)
            # modpost reads them.
            self._write_records(objects)
            steps = dict(self._plan.step_commands(build))
            description = build.path("description")
            first = list(steps)[: list(steps).index(description)]
            self._run_steps([steps[path] for path in first], output)
            # What make does for the symbols that a module exports is in no command.
            if os.stat(build.path("symvers")).st_size:
                raise Unfit("exported symbols")
            self._begin("description", steps)
            self._run_steps([steps[path] for path in list(steps)[len(first) :]], output)
            if os.fstat(output).st_size:
                raise Unfit("messages")
        self._write_records(steps)
        return build.path("source") in self._begun

    def _begin(self, role: str, commands: dict[str, str], number: int = 0) -> None:
        """Take the start of a source, if there is one that fits, in place of the plan's own command."""
        source = source_path(role, self._build, number)
        if all(start.role != role for _, start in self._starts):
            return
        text, common = read(source), read(f"{self._build.directory}/{COMMON}")
        for path, start in self._starts:
            if start.role != role or (rest := start.rest(self._build, text, common, number)) is None:
                continue
            left = f"{self._rest}/{source.rpartition('/')[2]}"
            write(left, rest)
            target = self._build.path(role, number)
            commands[target] = start.command(self._build, path, left, number)
            self._begun[target] = source, start.dependencies
            return

    def _run_steps(self, commands: Sequence[str], output: int) -> None:
        if wait(spawn(["sh", "-ec", "\n".join(commands)], self._environ, output)) != 0:
            raise Unfit("failure")

    def _write_records(self, targets: Iterable[str]) -> None:
        """Leave the lists of files that the compiler read for objects where make does."""
        for target in targets:
            directory, _, name = target.rpartition("/")
            with contextlib.suppress(FileNotFoundError):
                rule = read(f"{directory}/.{name}.d")
                write(f"{directory}/.{name}.cmd", self._record(target, rule))
                os.unlink(f"{directory}/.{name}.d")

    def _record(self, target: str, rule: str) -> str:
        source, dependencies = self._begun.get(target, (None, []))
        if source is not None:
            # The start's own files stand for what was read for them.
            own = tuple(f"{path}/" for path in (self._rest, *(path for path, _ in self._starts)))
            paths = [path for path in rule_paths(rule) if not path.startswith(own)]
            rule = ": " + " ".join(dict.fromkeys([source, *dependencies, *paths]))
        return dependency_record(target, rule)


def _run_side_by_side(commands: Sequence[str], jobs: int, environ: Mapping[str, str], output: int) -> None:
    waiting, running, failed = list(commands), set[int](), False
    try:
        while running or (waiting and not failed):
            while waiting and not failed and len(running) < jobs:
                running.add(spawn(["sh", "-ec", waiting.pop(0)], environ, output))
            ended, status = os.wait()
            running.discard(ended)
            failed = failed or status != 0
    finally:
        # Where another one cannot be started: make will write to the same files.
        for pid in running:
            wait(pid)
    if failed:
        raise Unfit("failure")


def read_starts(plan: str) -> list[tuple[str, Start]]:
    """Return the starts in the directory of a plan, each with its own directory."""
    found = []
    for name in sorted(os.listdir(plan)):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path = f"{plan}/{name}"
            found.append((path, Start.decode(read_bytes(f"{path}/{OPTIONS}"))))
    return found


def _find_plan(store: str, build: Build) -> tuple[Plan, str]:
    worst = "no plan"
    for name in sorted(os.listdir(store)):
        try:
            plan = Plan.decode(read_bytes(f"{store}/{name}/{PLAN}"))
            misfit = plan.misfit(build, lambda file: read(f"{build.directory}/{file}"))
        except Unfit as exc:
            misfit = str(exc)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if misfit is None:
            return plan, f"{store}/{name}"
        # Of several plans that do not fit, the one that fits best tells why.
        worst = max(worst, misfit, key=LACKING.index)
    raise Unfit(worst)


def _environment(plan: Plan, arguments: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of make's commands, as env's arguments change it."""
    changed = dict(environ)
    for word in arguments:
        name, is_set, value = word.partition("=")
        if word.startswith("-u"):
            changed.pop(word[2:], None)
        elif is_set:
            changed[name] = value
        else:
            break
    return changed | plan.exports


def _jobs(arguments: Sequence[str]) -> int:
    stated = [word[2:] for word in arguments if word.startswith("-j") and word[2:].isdigit()]
    return int(stated[-1]) if stated else 1


def module_directory(arguments: Sequence[str]) -> str:
    """Return the directory of the module that make is called for; raises Unfit if it is for another thing."""
    directories = [word[2:] for word in arguments if word.startswith("M=")]
    if len(directories) != 1 or "modules" not in arguments or "-C" not in arguments:
        raise Unfit("another kind of build")
    return directories[0]


def files(directory: str) -> list[str]:
    """Return the names of the files in a directory."""
    # Directories are of stap's other questions to the compiler, which make does not look into.
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if not entry.is_dir(follow_symlinks=False)]


@contextlib.contextmanager
def output_file() -> Iterator[int]:
    """Hold a file for the output of commands."""
    fd = os.memfd_create("output")
    try:
        yield fd
    finally:
        os.close(fd)


def spawn(command: list[str], environ: Mapping[str, str], output: int) -> int:
    """Start a command, found on the path, with its output to a file; return its process id."""
    actions = [(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
    return os.posix_spawnp(command[0], command, environ, file_actions=actions)


def wait(pid: int) -> int:
    """Wait for a process and return its exit status."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # 128 + N when signal N ended it, as in a shell.
    return code if code >= 0 else 128 - code


def read(path: str) -> str:
    """Return the text of a file, whatever bytes it has."""
    return read_bytes(path).decode("utf-8", "surrogateescape")


def read_bytes(path: str) -> bytes:
    """Return the content of a file."""
    with open(path, "rb") as file:
        return file.read()


def write(path: str, text: str) -> None:
    """Write a text, as :func:`read` gives it."""
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)


def report(environ: Mapping[str, str], line: str, status: int) -> int:
    """Append a line to the report, and return ``status``."""
    with (
        contextlib.suppress(KeyError, OSError),
        open(f"{environ['SYSTEMTAP_DIR']}/{REPORT}", "a", encoding="utf-8") as file,
    ):
        file.write(f"{line}\n")
    return status
