"""stap's grammar: by hand, by hypothesis, and against the real stap.

Two things are asked of the real one. A small library, loaded in place of getopt_long, shows how stap's own
tables read an argument list: that is exact and takes a whole batch in one process. And stap itself, run
without a kernel to compile for (some 5 ms a run), shows which privilege it settled on.
"""

from __future__ import annotations

import enum
import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stapsrv.compile.engine.installed_options import InstalledOptions
from stapsrv.compile.engine.stap import find_stap
from stapsrv.compile.protocol.options import (
    _SHORT_OPTIONS,
    STAP_4_8,
    OptionTable,
    OptionValue,
    ParsedOptions,
    Privilege,
    parse_options,
    privilege_arguments,
    requested_privilege,
    without_option,
)

LISTS = int(os.environ.get("STAPSRV_TEST_STAP_LISTS", "300"))
"""How many argument lists the real stap is asked about (80 a second), and a hundredth of how many its tables
are. Thousands need ``--timeout=0``."""

reproducible = settings(derandomize=True, database=None, deadline=None, max_examples=300)


def parsed(*arguments: bytes) -> tuple[list[tuple[str, bytes | None]], list[bytes]]:
    result = parse_options(arguments)
    assert result.fault is None
    return list(result.options), list(result.operands)


@pytest.mark.parametrize(
    ("arguments", "options", "operands"),
    [
        ((), [], []),
        ((b"x.stp", b"-v", b"a"), [("v", None)], [b"x.stp", b"a"]),
        ((b"-vgp4", b"-p", b"4"), [("v", None), ("g", None), ("p", b"4"), ("p", b"4")], []),
        ((b"-vp", b"-g"), [("v", None), ("p", b"-g")], []),
        ((b"-e", b"--", b"-g"), [("e", b"--"), ("g", None)], []),
        ((b"-I", b"", b"-"), [("I", b"")], [b"-"]),
        ((b"-G", b"x=\xff\n"), [("G", b"x=\xff\n")], []),
        ((b"-v", b"--", b"-g", b"--", b"--bogus"), [("v", None)], [b"-g", b"--", b"--bogus"]),
        ((b"a", b"--", b"b"), [], [b"a", b"b"]),
        ((b"", b"-v"), [("v", None)], [b""]),
        ((b"--vp", b"001", b"--vp=002"), [("vp", b"001"), ("vp", b"002")], []),
        ((b"--tmpdir", b"--ldd"), [("tmpdir", b"--ldd")], []),
        ((b"--tmpdir=",), [("tmpdir", b"")], []),
        ((b"--tmpdir=a=b",), [("tmpdir", b"a=b")], []),
        ((b"--color", b"always"), [("color", None)], [b"always"]),
        ((b"--color=always", b"--colour="), [("color", b"always"), ("color", b"")], []),
        ((b"--colo", b"--col=x"), [("color", None), ("color", b"x")], []),
        ((b"--remote", b"x"), [("remote", b"x")], []),
        ((b"--remote-", b"x"), [("remote-prefix", None)], [b"x"]),
        ((b"--benchmark-sdt",), [("benchmark-sdt", None)], []),
        ((b"--dump-f", b"--unpriv"), [("dump-functions", None), ("unprivileged", None)], []),
    ],
)
def test_arguments_are_read_as_getopt_long_does(arguments, options, operands):
    assert parsed(*arguments) == (options, operands)


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (b"-r6 -p4 -r6 x.stp", b"-p4 x.stp"),
        (b"-r5 -gr6 -r 6 -p4", b"-r5 -gr6 -r 6 -p4"),
        (b"-e -r6 -I -r6 --tmpdir -r6", b"-e -r6 -I -r6 --tmpdir -r6"),
        (b"-g x.stp -- -r6", b"-g x.stp -- -r6"),
        (b"-r6 -e", b"-r6 -e"),
    ],
    ids=["options", "other spellings", "values of others", "operands", "a fault"],
)
def test_option_is_left_out_where_it_is_one(arguments, kept):
    assert without_option(arguments.split(), b"-r6") == tuple(kept.split())


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ((b"--bogus",), "--bogus is unknown"),
        ((b"--bo\ngus=x",), "--bo\\ngus is unknown"),
        ((b"--\xff",), "--\\xff is unknown"),
        ((b"--Privilege=stapusr",), "--Privilege is unknown"),
        ((b"--privileges=stapusr",), "--privileges is unknown"),
        ((b"--p=stapusr",), "--p could mean poison-cache, privilege, prologue-searching"),
        ((b"--benchmark-sdt-",), "--benchmark-sdt- could mean benchmark-sdt-loops, benchmark-sdt-threads"),
        ((b"--ldd=x",), "--ldd takes no value"),
        ((b"--unprivileged=",), "--unprivileged takes no value"),
        ((b"--privilege",), "--privilege needs a value"),
        ((b"-Z",), "-Z is unknown"),
        ((b"-:",), "-: is unknown"),
        ((b"-v-",), "-- is unknown"),
        ((b"-\xe9",), "-\\xe9 is unknown"),
        ((b"-vI",), "-I needs a value"),
        ((b"-v\0",), "an argument holds a NUL"),
    ],
)
def test_fault_gives_no_privilege(arguments, fault):
    result = parse_options((b"-g", *arguments)) if b"\0" not in arguments[0] else parse_options(arguments)
    assert result.fault == fault
    assert result.operands == ()
    assert requested_privilege(arguments) is None
    assert requested_privilege((b"--privilege=stapusr", *arguments)) is None


def test_empty_name_is_ambiguous():
    fault = parse_options([b"--=x"]).fault
    assert fault is not None
    assert fault.startswith("-- could mean all-modules, benchmark-sdt")


def test_options_before_a_fault_are_kept():
    assert parse_options([b"-g", b"x", b"-Z", b"-v"]) == ParsedOptions(
        (("g", None),), (b"x",), "-Z is unknown"
    )


STAPUSR, STAPSYS, STAPDEV = Privilege.STAPUSR, Privilege.STAPSYS, Privilege.STAPDEV


@pytest.mark.parametrize(
    ("arguments", "privilege"),
    [
        ((), STAPDEV),
        ((b"-g", b"x.stp"), STAPDEV),
        ((b"--privilege=stapdev",), STAPDEV),
        ((b"--privilege=stapsys",), STAPSYS),
        ((b"--privilege", b"stapusr"), STAPUSR),
        ((b"--privile=stapusr", b"--unprivileged"), STAPUSR),
        ((b"--unpri", b"x.stp"), STAPUSR),
        ((b"x.stp", b"--privilege=stapusr"), STAPUSR),
        # No options: operands and values.
        ((b"x.stp", b"--", b"--privilege=stapusr"), STAPDEV),
        ((b"-e", b"--privilege=stapusr"), STAPDEV),
        ((b"-ve--privilege=stapusr",), STAPDEV),
        ((b"--tmpdir", b"--unprivileged"), STAPDEV),
        ((b"-privilege=stapusr",), STAPDEV),
        # What stap refuses.
        ((b"--privilege=stapusr", b"--privilege=stapsys"), None),
        ((b"--unprivileged", b"--privilege=stapdev"), None),
        ((b"--privilege=stapusr", b"--privilege=bogus"), None),
        ((b"--privilege=",), None),
        ((b"--privilege=STAPUSR",), None),
        ((b"--privilege= stapusr",), None),
        ((b"--privilege=stapusr\n",), None),
        ((b"--privilege=0",), None),
        ((b"--unprivileged=stapusr",), None),
    ],
)
def test_requested_privilege_is_the_only_one_stated(arguments, privilege):
    assert requested_privilege(arguments) is privilege


def test_privilege_arguments_state_the_same_privilege():
    assert privilege_arguments(STAPUSR) == (b"--privilege=stapusr",)
    assert privilege_arguments(STAPSYS) == (b"--privilege=stapsys",)
    assert privilege_arguments(STAPDEV) == ()
    assert privilege_arguments(None) == ()
    for privilege in Privilege:
        assert requested_privilege(privilege_arguments(privilege)) is (
            STAPDEV if privilege is STAPDEV else privilege
        )


PIECES = [b"-", b"--", b"v", b"I", b"e", b"=", b"x", b"privilege", b"unprivileged", b"stapusr", b"\xff", b""]
PIECES += [b"stapsys", b"tmpdir", b"colo", b"pri"]
pieced = st.lists(st.sampled_from(PIECES), max_size=5).map(b"".join)


@reproducible
@given(st.lists(st.one_of(pieced, st.binary(max_size=6)), max_size=6))
def test_every_argument_is_accounted_for(arguments):
    result = parse_options(arguments)
    requested = requested_privilege(arguments)
    if result.fault is not None:
        assert result.fault.isprintable()
        assert requested is None
        return
    # Operands are arguments, in their order; nothing is lost or made up.
    rest = iter(arguments)
    assert all(operand in rest for operand in result.operands)
    assert len(result.options) + len(result.operands) <= sum(max(len(argument), 1) for argument in arguments)
    # Read again behind the marker, the options mean the same; behind "--" they mean nothing.
    assert requested_privilege([b"--client-options", *arguments]) is requested
    assert parse_options([b"--", *arguments]).operands == tuple(arguments)
    if requested is STAPUSR:
        assert requested_privilege([*privilege_arguments(STAPSYS), *arguments]) is None


LATER = {
    "build-as": OptionValue.REQUIRED,
    "debug": OptionValue.NONE,
    "language-server": OptionValue.NONE,
    "novel": OptionValue.NONE,
    "semantic-keep-going": OptionValue.NONE,
    "unasked": None,
}


@pytest.mark.parametrize(
    ("arguments", "privilege"),
    [
        ((b"--semantic-keep-going", b"--privilege=stapusr"), STAPUSR),
        ((b"--debug", b"--sema", b"--unpriv"), STAPUSR),
        ((b"--semantic-keep-going",), STAPDEV),
        ((b"--build-as", b"--unprivileged", b"x.stp"), STAPDEV),
        # What it does is not known.
        ((b"--novel", b"--privilege=stapusr"), None),
        ((b"--novel",), None),
        ((b"--unasked", b"--privilege=stapusr"), None),
        # Only an abbreviation in one version, not in the other.
        ((b"--s=x", b"--privilege=stapusr"), None),
        ((b"--un", b"x.stp"), None),
    ],
)
def test_table_of_the_stap_decides(arguments, privilege):
    assert requested_privilege(arguments, OptionTable({**STAP_4_8.long, **LATER})) is privilege


def test_abbreviations_depend_on_the_table():
    assert requested_privilege((b"--un", b"x.stp")) is STAPUSR
    assert parse_options((b"--semantic-keep-going",)).fault == "--semantic-keep-going is unknown"


LONG = (
    b"skip-badvars vp unprivileged client-options help disable-cache poison-cache clean-cache compatible ldd"
    b" all-modules sign-module remote remote-prefix check-version version tmpdir download-debuginfo"
    b" dump-probe-types dump-probe-aliases dump-functions privilege suppress-handler-errors modinfo sysroot"
    b" sysenv suppress-time-limits runtime dyninst bpf color colour prologue-searching save-uprobes"
    b" target-namespaces monitor interactive example no-global-var-display bogus"
).split()
# Of no interest to the second test: they act before or beside the privilege.
LONG_ELSEWHERE = (
    b"use-server list-servers trust-servers use-server-on-error use-http-server rlimit-as rlimit-cpu"
    b" rlimit-nproc rlimit-stack rlimit-fsize benchmark-sdt benchmark-sdt-loops benchmark-sdt-threads"
).split()
LEVELS = (b"stapusr", b"stapsys", b"stapdev")
VALUES = (*LEVELS, b"", b"1", b"x=y", b"always", b"--privilege=stapusr", b"-g", b"a\nb", b"\xff")


def some_argument(chance: random.Random, long_options: Sequence[bytes]) -> Iterator[bytes]:
    """Make an argument, or an option and its value apart."""
    match chance.randrange(10):
        case 0 | 1 | 2:
            level = chance.choice(LEVELS) if chance.random() < 0.9 else chance.choice(VALUES)
            name = b"privilege"[: chance.choice((9, 9, 9, 9, 5, 3, 2))]
            yield from ([b"--" + name, level] if chance.random() < 0.3 else [b"--" + name + b"=" + level])
        case 3:
            yield b"--unprivileged"[: chance.choice((14, 14, 9, 4, 3))]
        case 4 | 5:
            name = chance.choice(long_options)
            if chance.random() < 0.4:
                name = name[: chance.randrange(len(name) + 1)]
            yield b"--" + name + (b"=" + chance.choice(VALUES) if chance.random() < 0.4 else b"")
        case 6 | 7:
            letters = b"vtpIeErDsuwdLFSBGTgkq" if chance.random() < 0.8 else b"hVvtp:I:W;Z-=j\xe9"
            yield b"-" + bytes(chance.choice(letters) for _ in range(chance.choice((1, 1, 2, 3))))
        case 8:
            yield chance.choice(VALUES)
        case _:
            yield chance.choice((b"--", b"-", b"x.stp", b"x.stp", b""))


def some_lists(seed: int, count: int, long_options: Sequence[bytes]) -> list[list[bytes]]:
    chance = random.Random(seed)
    return [
        [argument for _ in range(chance.randrange(7)) for argument in some_argument(chance, long_options)]
        for _ in range(count)
    ]


SHOW_GETOPT = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int getopt_function(int, char *const *, const char *, const struct option *, int *);

static void show(const char *text)
{
    if (text == NULL) { fputs(" -", stdout); return; }
    fputs(" =", stdout);
    for (; *text; text++) printf("%02x", (unsigned char)*text);
}

/* Reads lists from standard input: a count on a line, then as many strings that end in NUL. */
int getopt_long(int argc, char *const *argv, const char *shorts, const struct option *longs, int *index)
{
    getopt_function *real = (getopt_function *)dlsym(RTLD_NEXT, "getopt_long");
    int count, c;
    opterr = 0;
    printf("short %s\n", shorts);
    for (const struct option *o = longs; o->name; o++) printf("table %s %d\n", o->name, o->has_arg);
    while (scanf("%d", &count) == 1) {
        char **list = calloc(count + 2, sizeof *list);
        size_t room = 0;
        getchar();
        list[0] = "stap";
        for (int i = 1; i <= count; i++)
            if (getdelim(&list[i], (room = 0, &room), 0, stdin) < 0) exit(3);
        optind = 0;
        while ((c = real(count + 1, list, shorts, longs, NULL)) != -1 && c != '?') {
            const struct option *o = longs;
            while (c > 255 && o->val != c) o++;
            if (c > 255) printf("option %s", o->name); else printf("option %c", c);
            show(optarg);
            putchar('\n');
        }
        if (c == '?') puts("fault");
        for (; c == -1 && optind <= count; optind++) { printf("operand"); show(list[optind]); putchar('\n'); }
        puts("end");
    }
    fflush(stdout);
    _Exit(0);
}
"""

needs_stap = pytest.mark.skipif(not shutil.which("stap"), reason="needs SystemTap's stap")
needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="needs a C compiler")


@pytest.fixture
def stap_environment(tmp_path):
    """An environment in which the real stap finds neither its user's rc file nor a cache."""
    kept = {name: value for name, value in os.environ.items() if name != "POSIXLY_CORRECT"}
    return {**kept, "SYSTEMTAP_DIR": str(tmp_path / "systemtap"), "LC_ALL": "C"}


def installed_table(names: Sequence[str] = ()) -> OptionTable:
    """The table of the stap that is installed, as servers find it out; of these names also their values."""

    async def ask() -> OptionTable:
        options = await InstalledOptions.read(await find_stap(os.environ), os.environ)
        return await options.table_for([b"--" + name.encode() for name in names] or [b"--"])

    listed = anyio.run(ask)
    return listed if names else installed_table([*listed.long])


@pytest.mark.real
@needs_stap
@needs_gcc
class TestRealTables:
    def _ask(self, tmp_path, environment, lists) -> tuple[OptionTable, str, list[ParsedOptions]]:
        """Return the long options that stap knows, the short ones, and how it reads each list."""
        source, library = tmp_path / "show.c", tmp_path / "show.so"
        source.write_text(SHOW_GETOPT)
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        told = b"".join(
            b"%d\n" % len(arguments) + b"".join(argument + b"\0" for argument in arguments)
            for arguments in lists
        )
        shown = subprocess.run(
            ["stap"],
            input=told,
            env={**environment, "LD_PRELOAD": str(library)},
            check=True,
            capture_output=True,
        )
        lines = iter(shown.stdout.decode().splitlines())
        table: dict[str, OptionValue] = {}
        short = ""
        answers = []
        options: list[tuple[str, bytes | None]] = []
        operands: list[bytes] = []
        fault = None
        for line in lines:
            match line.split(" "):
                case ["short", short]:
                    pass
                case ["table", name, takes]:
                    table[name] = list(OptionValue)[int(takes)]
                case ["option", name, value]:
                    options.append((name, None if value == "-" else bytes.fromhex(value[1:])))
                case ["operand", value]:
                    operands.append(bytes.fromhex(value[1:]))
                case ["fault"]:
                    fault = "fault"
                case ["end"]:
                    answers.append(ParsedOptions(tuple(options), tuple(operands), fault))
                    options, operands, fault = [], [], None
        assert len(answers) == len(lists)
        return OptionTable(table), short, answers

    def test_stap_s_own_table_is_found_out(self, tmp_path, stap_environment):
        table, short, _answers = self._ask(tmp_path, stap_environment, [])
        # The value of this spelling is that of the other.
        assert installed_table().long == {**table.long, "colour": None}
        assert short == _SHORT_OPTIONS
        assert {name: table.long[name] for name in STAP_4_8.long} == STAP_4_8.long

    def test_stap_reads_arguments_as_we_do(self, tmp_path, stap_environment):
        lists = some_lists(5, LISTS * 100, LONG + LONG_ELSEWHERE)
        table, _short, answers = self._ask(tmp_path, stap_environment, lists)
        assert {name.decode() for name in LONG + LONG_ELSEWHERE} - {"bogus"} == {*table.long} - LATER.keys()
        seen: Counter[object] = Counter()
        for arguments, theirs in zip(lists, answers, strict=True):
            ours = parse_options(arguments, table)
            seen[ours.fault is None] += 1
            seen[requested_privilege(arguments, table)] += 1
            assert (ours.fault is None) == (theirs.fault is None), arguments
            assert ours.options == theirs.options, arguments
            if ours.fault is None:
                assert ours.operands == theirs.operands, arguments
        # The lists are worth their time: all answers occur, and often.
        assert min(seen[answer] for answer in (True, False, None, *Privilege)) > len(lists) // 100

    def test_stap_reads_every_prefix_of_every_long_option_as_we_do(self, tmp_path, stap_environment):
        table = installed_table()
        names = {name[:length].encode() for name in [*table.long, "bogus"] for length in range(len(name) + 1)}
        lists = [[b"--" + name + tail] for name in sorted(names) for tail in (b"", b"=", b"=x")]
        lists += [[bytes([45, letter]), b"x"] for letter in range(1, 256)]
        _table, _short, answers = self._ask(tmp_path, stap_environment, lists)
        for arguments, theirs in zip(lists, answers, strict=True):
            ours = parse_options(arguments, table)
            assert (ours.fault is None) == (theirs.fault is None), arguments
            assert ours.options == theirs.options, arguments


class Verdict(enum.Enum):
    """How far the real stap came with an argument list."""

    ACCEPTED = "it looked for the kernel or for a script: the options are through"
    CONFLICT = "two privilege levels"
    REFUSED = "another objection"
    NOTHING = "success without a compile, such as --version"


@pytest.mark.real
@needs_stap
class TestRealStap:
    def _names(self, table: OptionTable) -> list[bytes]:
        later = {name.encode() for name in table.long} - {*LONG, *LONG_ELSEWHERE}
        return [*LONG, *sorted(later)]

    def _run(self, environment, front: Sequence[bytes], arguments: Sequence[bytes]) -> tuple[Verdict, bytes]:
        # A kernel that does not exist ends each run before it does any work.
        command = [b"stap", b"-r", b"0.0.0-none", *front, b"--client-options", *arguments]
        done = subprocess.run(
            command,
            env=environment,
            cwd=environment["HOME"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=60,
        )
        if b"Privilege level may be set only once" in done.stderr:
            return Verdict.CONFLICT, done.stderr
        if (
            b'Checking "/lib/modules/0.0.0-none' in done.stderr
            or b"A script must be specified" in done.stderr
        ):
            return Verdict.ACCEPTED, done.stderr
        return Verdict.REFUSED if done.returncode else Verdict.NOTHING, done.stderr

    def test_stap_never_settles_on_another_privilege(self, tmp_path, stap_environment):
        (tmp_path / "home").mkdir()
        environment = {**stap_environment, "HOME": str(tmp_path / "home")}
        seen: Counter[object] = Counter()
        table = installed_table()
        for arguments in some_lists(7, LISTS, self._names(table)):
            privilege = requested_privilege(arguments, table)
            verdict, stderr = self._run(environment, privilege_arguments(privilege), arguments)
            seen[verdict] += 1
            if verdict is not Verdict.ACCEPTED:
                continue
            assert privilege is not None, (arguments, stderr)
            seen[privilege] += 1
            stated = any(
                name in {"privilege", "unprivileged"} for name, _ in parse_options(arguments, table).options
            )
            for other in {Privilege.STAPUSR, Privilege.STAPSYS} - {privilege}:
                second, stderr = self._run(environment, privilege_arguments(other), arguments)
                assert (second is Verdict.CONFLICT) is stated, (arguments, stderr)
        assert all(
            seen[answer] >= LISTS // 50 for answer in (*Privilege, Verdict.ACCEPTED, Verdict.REFUSED)
        ), seen

    def test_no_arguments_are_signed_that_stap_runs_unrestricted(self, tmp_path, stap_environment):
        """With -g it says itself whether it is held to a privilege: it goes on only when it is not."""
        (tmp_path / "home").mkdir()
        environment = {**stap_environment, "HOME": str(tmp_path / "home")}
        restricted = 0
        table = installed_table()
        for arguments in some_lists(13, LISTS * 2, self._names(table)):
            privilege = requested_privilege(arguments, table)
            if privilege not in {Privilege.STAPUSR, Privilege.STAPSYS}:
                continue
            guru = [b"-ge", b"probe begin {}", *arguments]
            verdict, stderr = self._run(environment, privilege_arguments(privilege), guru)
            assert verdict is not Verdict.ACCEPTED, (arguments, stderr)
            restricted += b"You can't specify -g and --privilege=" in stderr
        assert restricted >= LISTS // 20

    def test_privilege_arguments_restrict_stap(self, tmp_path, stap_environment):
        environment = {**stap_environment, "HOME": str(tmp_path)}
        for privilege in (Privilege.STAPUSR, Privilege.STAPSYS):
            verdict, stderr = self._run(environment, privilege_arguments(privilege), [b"-g", b"x.stp"])
            assert verdict is Verdict.REFUSED
            assert b"You can't specify -g and --privilege=" in stderr
        assert self._run(environment, (), [b"-g", b"x.stp"])[0] is Verdict.ACCEPTED
