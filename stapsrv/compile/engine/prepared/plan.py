"""A plan: the commands by which the kernel's build makes a module, for one Makefile of stap's. Pure.

The build leaves each command that it ran in a file ``.NAME.cmd``. A plan has these commands, and the words
and texts for which they are right: make's arguments, the environment, the Makefile, the kernel's features. In
all of them the directory, the module's name, the number of auxiliary sources and the order of the objects
are left open. A build fits if every word is what the plan says with these filled in; nothing is guessed from
what does not.

Source: scripts/Kbuild.include and scripts/Makefile.build of the kernel, buildrun.cxx of SystemTap; seen with
Linux 6.1 and SystemTap 4.8.
"""

# The program that follows plans starts for every compile: this module imports little, and nothing of this
# package.

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

VERSION = 3

# What is left open; none of it can stand in a Makefile or a command.
DIRECTORY, MODULE, _OBJECTS, NUMBER = "\0directory\0", "\0module\0", "\0objects\0", "\0number\0"

# The directory and the name go into commands of a shell.
_SAFE_DIRECTORY = re.compile(r"(/[A-Za-z0-9_.+-]+)+")
_SAFE_MODULE = re.compile(r"[A-Za-z0-9_]+")
_COMMAND = re.compile(r"^(?:saved)?cmd_(\S+) := (.*)$", re.MULTILINE)
_SOURCE, _SOURCE_OBJECT, _SYMBOLS_OBJECT = "_src.c", "_src.o", "stap_symbols.o"
_AUXILIARY = re.compile(r"_aux_([0-9]+)\.c")
_ARCH = re.compile(r" -I\S*/arch/(\w+)/include ")
_NUMBERED = re.compile(rf"{MODULE}_aux_([0-9]+)")
_FURTHER = re.compile(rf"{MODULE}_aux_[0-9]")
_FEATURES = re.compile(r"stapconf_[0-9a-f]{32}_[0-9]+\.h")
# Beside the sources, all that stap has in the directory when it calls make. All modules are built with the
# first two; the third is read by the sources alone.
_EXPORTS, COMMON, _SYMBOLS = "stapconf_export.h", "stap_common.h", "stap_symbols.c"

# What stap may hand on that decides nothing about a module: the language of messages (a build with messages
# is left to make), directories of the request, and what the shell or the service manager notes.
_IGNORED_VARIABLES = re.compile(
    r"LANG|LANGUAGE|LC_\w+|TMPDIR|SYSTEMTAP_DIR|PATH|PWD|OLDPWD|SHLVL|_|HOSTNAME|TERM|MAIL|JOURNAL_STREAM"
    r"|INVOCATION_ID|MANAGERPID|RUNTIME_DIRECTORY|STATE_DIRECTORY|SYSTEMD_EXEC_PID|XDG_SESSION_ID"
    r"|XDG_RUNTIME_DIR|SSH_\w+"
)

# Each command by what it makes, in the order in which they can run; those of the first row side by side.
OBJECTS = ("source", "symbols", "auxiliary")
STEPS = ("list", "object", "order", "symvers", "common", "description", "module")
_TARGETS = {
    "source": f"{MODULE}_src.o",
    "symbols": "stap_symbols.o",
    "auxiliary": f"{MODULE}_aux_{NUMBER}.o",
    "list": f"{MODULE}.mod",
    "object": f"{MODULE}.o",
    "order": "modules.order",
    "symvers": "Module.symvers",
    "common": ".module-common.o",
    "description": f"{MODULE}.mod.o",
    "module": f"{MODULE}.ko",
}
_OPTIONAL = {"auxiliary", "common"}


# Every reason for which a build is left to make. Of the first ones another build can give the missing plan.
LACKING = ("no plan", "damaged", "arguments", "environment", "features", "Makefile")
REASONS = (
    *LACKING,
    *("another kind of build", "name", "other files", "features unknown"),
    *("failure", "messages", "exported symbols", "error"),
    *("make's own rules", "text", "another module"),
    *("another compiler command", "another start", "the module's name in a start", "no header"),
)


class Unfit(Exception):
    """Why a build is left to make, in a few words."""


class Build:
    """One call of make, as far as a plan is concerned; raises Unfit if no plan can fit."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        names: Sequence[str],
        directory: str,
        makefile: str,
    ) -> None:
        """``names`` are of the files in ``directory``, ``makefile`` is the text of the one in it."""
        self.directory = directory
        self.arguments = list(arguments)
        self.environment = {
            name: value for name, value in environment.items() if not _IGNORED_VARIABLES.fullmatch(name)
        }
        sources = [name for name in names if name.endswith(_SOURCE)]
        if len(sources) != 1 or not _SAFE_DIRECTORY.fullmatch(directory):
            raise Unfit("another kind of build")
        self.module = sources[0].removesuffix(_SOURCE)
        if not _SAFE_MODULE.fullmatch(self.module):
            raise Unfit("name")
        numbers = []
        self.headers = []
        for name in names:
            number = _AUXILIARY.fullmatch(name.removeprefix(self.module))
            if name.startswith(self.module) and number is not None:
                numbers.append(int(number[1]))
            elif _FEATURES.fullmatch(name) or name == _EXPORTS:
                self.headers.append(name)
            elif name not in {sources[0], "Makefile", COMMON, _SYMBOLS}:
                raise Unfit("other files")
        if sorted(numbers) != list(range(len(numbers))):
            raise Unfit("other files")
        self.auxiliaries = len(numbers)
        self.headers.sort()
        if sorted(name == _EXPORTS for name in self.headers) != [False, True]:
            raise Unfit("features unknown")
        self._objects = _objects(self.module, self.auxiliaries, makefile)

    def fill(self, text: str, number: int = 0) -> str:
        """Fill in what a plan's text leaves open; ``number`` is that of one auxiliary source."""
        text = text.replace(_OBJECTS, self._objects).replace(NUMBER, str(number))
        return text.replace(DIRECTORY, self.directory).replace(MODULE, self.module)

    def path(self, role: str, number: int = 0) -> str:
        """Return the path of what a command makes."""
        return f"{self.directory}/{self.fill(_TARGETS[role], number)}"

    def leave_open(self, text: str, number: int = 0) -> str:
        """Return a text of this build as a plan has it; what names one auxiliary source names each."""
        if "\0" in text:
            raise Unfit("text")
        text = text.replace(self._objects, _OBJECTS)
        text = text.replace(self.directory, DIRECTORY).replace(self.module, MODULE)

        def leave(found: re.Match[str]) -> str:
            return f"{MODULE}_aux_{NUMBER}" if found[1] == str(number) else found[0]

        return _NUMBERED.sub(leave, text)


class Plan:
    """The commands of one kind of build, and what it has to be like; the fields are those of the JSON."""

    def __init__(
        self,
        *,
        arguments: list[str],
        environment: dict[str, str],
        makefile: list[str],
        headers: dict[str, str],
        directory: str,
        exports: dict[str, str],
        commands: dict[str, str],
    ) -> None:
        self.arguments = arguments
        self.environment = environment
        self.makefile = makefile
        self.headers = headers
        # Where the commands run.
        self.directory = directory
        # What make sets in their environment and they look at.
        self.exports = exports
        self.commands = commands

    def encode(self) -> bytes:
        """Return the plan as JSON, always the same for the same plan."""
        return json.dumps({"version": VERSION, **vars(self)}, sort_keys=True, indent=0).encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Plan:
        """Return the plan of some JSON; raises Unfit if it is none."""
        try:
            fields = json.loads(data)
            if fields.pop("version") != VERSION:
                raise Unfit("damaged")
            plan = cls(**fields)
            lists = (plan.arguments, plan.makefile)
            mappings = (plan.environment, plan.headers, plan.exports, plan.commands)
            texts = [plan.directory, *(text for texts in lists for text in texts)]
            texts += [text for mapping in mappings for pair in mapping.items() for text in pair]
            is_whole = all(isinstance(text, str) for text in texts) and _has_all(plan.commands)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as exc:
            raise Unfit("damaged") from exc
        if not is_whole:
            raise Unfit("damaged")
        return plan

    def misfit(self, build: Build, read: Callable[[str], str]) -> str | None:
        """Return, in a word, what of a build is not as planned; None if all is.

        ``read`` returns the text of a file in the build's directory.
        """
        if [build.fill(argument) for argument in self.arguments] != build.arguments:
            return "arguments"
        if self.environment != build.environment:
            return "environment"
        if sorted(self.headers) != build.headers or any(
            read(name) != text for name, text in self.headers.items()
        ):
            return "features"
        return None if self._makefile(build) == read("Makefile") else "Makefile"

    def object_commands(self, build: Build) -> list[tuple[str, str]]:
        """Return the commands that make the objects, each with the path of its object."""
        single = [(build.path(role), build.fill(self.commands[role])) for role in OBJECTS[:2]]
        command = self.commands.get("auxiliary", "")
        return single + [
            (build.path("auxiliary", number), build.fill(command, number))
            for number in range(build.auxiliaries)
        ]

    def step_commands(self, build: Build) -> list[tuple[str, str]]:
        """Return the commands that make the module of the objects, one after the other."""
        found = [(role, self.commands[role]) for role in STEPS if role in self.commands]
        return [(build.path(role), build.fill(command)) for role, command in found]

    def _makefile(self, build: Build) -> str:
        lines = []
        for line in self.makefile:
            count = build.auxiliaries if NUMBER in line else 1
            lines += [build.fill(line, number) for number in range(count)]
        return "\n".join(lines)


def make_plan(build: Build, records: Sequence[str], read: Callable[[str], str], build_tree: str) -> Plan:
    """Return the plan that a build by make shows, which left ``records`` (the texts of its ``.cmd`` files).

    ``read`` returns the text of a file in the build's directory. Raises Unfit where the build was by rules
    that are not known.
    """
    roles = {build.path(role): (role, 0) for role in _TARGETS}
    roles |= {build.path("auxiliary", number): ("auxiliary", number) for number in range(build.auxiliaries)}
    commands: dict[str, str] = {}
    for target, command in (pair for record in records for pair in parse_commands(record)):
        # From Linux 6.13 on the commands run in the module's directory, and name what they make without it.
        path = (
            f"{build.directory}/{target.removeprefix('./')}"
            if "/" not in target.removeprefix("./")
            else target
        )
        if path != target:
            build_tree = build.directory
        if path not in roles:
            raise Unfit("make's own rules")
        role, number = roles[path]
        text = build.leave_open(command, number)
        if commands.setdefault(role, text) != text:
            raise Unfit("make's own rules")
    if not _has_all(commands) or ("auxiliary" in commands) != (build.auxiliaries > 0):
        raise Unfit("make's own rules")
    lines = build.leave_open(read("Makefile")).split("\n")
    plan = Plan(
        arguments=[build.leave_open(argument) for argument in build.arguments],
        environment=build.environment,
        # What names the first auxiliary source stands for the lines of all.
        makefile=[line for line in lines if not _FURTHER.search(line)],
        headers={name: read(name) for name in build.headers},
        directory=build.leave_open(build_tree),
        # objtool asks for it from Linux 6.12 on.
        exports={"SRCARCH": arch[1]} if (arch := _ARCH.search(commands["source"])) else {},
        commands=commands,
    )
    misfit = plan.misfit(build, read)
    if misfit is not None:
        raise Unfit(misfit)
    return plan


def parse_commands(record: str) -> list[tuple[str, str]]:
    """Return each target in the text of a ``.cmd`` file with its shell command."""
    found = _COMMAND.findall(record)
    return [(target, text.replace("$(pound)", "#").replace("$$", "$").strip()) for target, text in found]


def dependency_record(target: str, rule: str) -> str:
    """Return the text of a ``.cmd`` file for the rule that the compiler wrote of the files that it read."""
    paths = rule_paths(rule)
    source, others = paths[:1], paths[1:]
    lines = "".join(f"  {path} \\\n" for path in others)
    return (
        f"source_{target} := {' '.join(source)}\n\ndeps_{target} := \\\n{lines}\n{target}: $(deps_{target})\n"
    )


def rule_paths(rule: str) -> list[str]:
    """Return the files in a rule that the compiler wrote: the source first."""
    return rule.partition(":")[2].replace("\\\n", " ").split()


def _objects(module: str, auxiliaries: int, makefile: str) -> str:
    """Return the objects of a module in the order of its Makefile; raises Unfit if others belong to it."""
    begin = f"{module}-y := "
    line = next((line for line in makefile.split("\n") if line.startswith(begin)), begin)
    objects = line.removeprefix(begin).split()
    # Those of tracepoints come before the source.
    numbered = [name for name in objects if name not in {f"{module}{_SOURCE_OBJECT}", _SYMBOLS_OBJECT}]
    expected = [f"{module}_aux_{number}.o" for number in range(auxiliaries)]
    if numbered != expected or len(objects) != auxiliaries + 2 or objects[-1] != _SYMBOLS_OBJECT:
        raise Unfit("another kind of build")
    return " ".join(objects)


def _has_all(commands: Mapping[str, str]) -> bool:
    return _TARGETS.keys() - _OPTIONAL <= commands.keys() <= _TARGETS.keys()
