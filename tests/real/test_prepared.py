"""New modules by plans in place of make, by the real stap: the modules of make, its messages, no old ones."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from kit.client import Answer, exchange, request
from kit.real import Server, Stap
from kit.warm import PLAN_S, copy_runtime
from real.test_repeated_scripts import WATCHING

from stapsrv.compile.cache.disk import RESULTS_DIRECTORY

pytestmark = pytest.mark.timeout(2000)

BUILD = r"Request from .*: answered rc=\d+, compiled, .*; build: (.*), refusal: "
BEGUN = "Processing .* request"
PLAN = "Found out the plan of kernel release"
FOUND = "Found out the .* of kernel release"
# Of each kind of probe, variable and output that needs no debugging information.
SCRIPTS = {
    "least": "probe begin { exit() }",
    "probes": """
        global count, on = 1
        probe tick = timer.ms(100) { name = execname() }
        probe begin(-1) { println(1) }
        probe begin(2), end { printf("%s %d\\n", pp(), gettimeofday_s()) }
        probe never { println(2) }
        probe timer.s(1) { if (pid() == 1) next; count++ }
        probe timer.ms(200), timer.jiffies(3) { exit() }
        probe timer.ms(100).randomize(20) { println(randint(6)) }
        probe timer.s(2) if (on) { try { error("x") } catch { on = 0 } }
        probe tick { println(name, uid(), gid(), ppid(), pexecname()) }""",
    "procfs": """
        global count
        probe procfs("count").read { $value = sprint(count) }
        probe procfs("set").write { if ($value == "stop") exit() }
        probe timer.s(1) { count++ }""",
    "arrays": """
        global plain, sized[7], wrapping%[9], sorted, sums
        probe timer.s(1) { plain[pid()]++ foreach (p in plain- limit 3) println(p, plain[p]) }
        probe timer.ms(5) { sized[cpu()] = 1 wrapping[tid(), cpu()] = 2 sums[cpu()] <<< 1 }
        probe timer.ms(7) { delete plain[1] if (1 in plain) error("there") delete plain }
        probe end { foreach ([x+, y] in sorted limit 5) println(x, y) sorted[1, 2] = 3 }
        probe end(1) { println(@avg(sums[0])) }""",
    "statistics": """
        global few, many
        probe timer.ms(9) { few <<< cpu() many <<< 3 }
        probe end { print(@hist_log(few)) print(@hist_linear(many, 0, 9, 2)) }
        probe end(1) { println(@count(few), @max(many)) }""",
    "language": """
        @define twice(x) %( (2 * @x) %)
        function factorial(n) { return n ? n * factorial(n - 1) : 1 }
        probe begin {
            for (i = 0; i < 9; i++) { if (i % 2) continue; if (i > 6) break }
            while (i --> 0) println(i, factorial(i), @twice(i))
            println((7 >> 1) ^ 3 | 8 & ~1, 7 / 2 % 2, 1 ? 2 : 3, !0 && 1 || 0)
            %( arch == "x86_64" %? println(1) %: println(2) %)
            try { println(1 / 0) } catch (message) { println(message) }
        }""",
    "strings": """
        probe begin {
            s = sprintf("%x", 77)
            println(substr(s, 0, 1) . tokenize("a b", " "), strtol("0x1f", 16), isinstr("abc", "b"))
            if ("abc" =~ "a(b+)c") println(matched(1))
            printf("%1b%2b%c%%|%-8s|%08x\\t\\n", 65, 66, 67, "left", 4711)
        }""",
}

EMBEDDED = "function mark() %{ /* pure */ static volatile int marked = 7; %}"

numbers = itertools.count(5000)


def new_script() -> str:
    """Return a script that nobody has compiled before."""
    return f"probe begin {{ println({next(numbers)}) exit() }}"


def compiled(stap: Stap, server: Server, *arguments: str) -> tuple[bytes, str]:
    """Return the module of a script, and how it was built."""
    before = server.log.count(BUILD)
    ran = stap.via(server.port, "-p4", *arguments)
    assert ran.status == 0, ran.stderr
    build = server.log.wait(BUILD, count=before + 1)[1]
    return (stap.place / ran.module).read_bytes(), build


def raw_compiled(
    stap: Stap, server: Server, *arguments: str, meanwhile: Callable[[], None] | None = None
) -> tuple[bytes, str]:
    """Return the same for a client that names no kernel on stap's command line, where it would go before the
    server's tree; ``meanwhile`` is called when the request has begun."""
    before, begun = server.log.count(BUILD), server.log.count(BEGUN)

    def act(call: Callable[[], None]) -> None:
        server.log.wait(BEGUN, count=begun + 1)
        call()

    async def ask() -> Answer:
        async with anyio.create_task_group() as tasks:
            if meanwhile is not None:
                tasks.start_soon(anyio.to_thread.run_sync, act, meanwhile)
            return await exchange(server.port, request("-p4", *arguments, release=stap.installation.release))
        raise AssertionError

    answer = anyio.run(ask)
    assert answer.rc == 0, answer.stderr
    build = server.log.wait(BUILD, count=before + 1)[1]
    (made,) = (data for name, data in answer.files.items() if name.endswith(".ko"))
    return made, build


def wait_prepared(server: Server, ask: Callable[[], tuple[bytes, str]]) -> None:
    """Ask for new scripts until they are built by plans."""
    while True:
        known = server.log.count(FOUND)
        if ask()[1] == "prepared":
            return
        # The features of the kernel or a plan: there may be one without the other.
        server.log.wait(FOUND, count=known + 1, timeout_s=PLAN_S)


def wait_planned(stap: Stap, server: Server) -> None:
    """Return when new scripts are built by plans."""
    wait_prepared(server, lambda: compiled(stap, server, "-e", new_script()))


def copy_tree(original: Path, tree: Path) -> None:
    """Copy a build tree as far as its generated headers; the rest are links."""
    for place, spared in ((Path(), "include"), (Path("include"), "generated")):
        (tree / place).mkdir()
        for entry in (original / place).iterdir():
            if entry.name != spared:
                (tree / place / entry.name).symlink_to(entry.resolve())
    shutil.copytree(original / "include" / "generated", tree / "include" / "generated")
    # It names the tree. From Linux 7 on, the build would take the copy for another's output.
    (tree / "Makefile").unlink()
    text = (original / "Makefile").read_text()
    (tree / "Makefile").write_text(text.replace(str(original.resolve()), str(tree)))


def offset(server: Server, release: str, number: int) -> int:
    """Return where a script, a new one for each number, finds the member of a struct of the tree's."""
    cast = f'@cast({number}, "thing", "kernel<generated/thing.h>")->value'
    script = f"probe begin {{ println({cast}) exit() }}"
    answer = anyio.run(exchange, server.port, request("-p3", "-e", script, release=release))
    assert answer.rc == 0, answer.stderr
    (found,) = set(re.findall(r"\b(44[0-9]{2})LL", answer.stdout))
    return int(found)


@pytest.fixture
def planned(serve: Callable[..., Server], stap: Stap) -> Server:
    server = serve("--prepared=yes", caching=True)
    wait_planned(stap, server)
    return server


@pytest.mark.long
def test_modules_are_those_of_make(planned, serve, stap):
    # Without the results of the other.
    plain = serve("--prepared=no", "--result-cache=no")
    for number, (name, script) in enumerate(SCRIPTS.items()):
        arguments = ("-m", f"module_{number}", "-e", script)
        module, build = compiled(stap, planned, *arguments)
        assert build == "prepared", name
        assert (module, "plain: off") == compiled(stap, plain, *arguments), name


@pytest.mark.long
def test_modules_are_those_of_make_until_a_header_or_the_runtime_changes(serve, stap, tmp_path):
    """With tracepoints, from a tree and a runtime of the test's own, for a server with -B.

    A change while a module is built may come into it or not; into what is asked afterwards it comes, of which
    stap's own cache would take no notice. The client is one that names no kernel on stap's command line: that
    would go before the server's tree.
    """
    release = stap.installation.release
    # stap compiles a query for each header of tracepoints that it finds, which takes minutes for all of them.
    tree, runtime, tapset = tmp_path / "tree", tmp_path / "runtime", tmp_path / "tapset"
    copy_tree(Path("/lib/modules", release, "build"), tree)
    copy_runtime(stap, runtime)
    tapset.mkdir()
    info = "%{\nMODULE_INFO(mark, __stringify(MARK));\n%}"
    (tapset / "mark.stp").write_text(f"{info}\nfunction mark() %{{ /* pure */ %}}")
    headers = Path("include", "trace", "events")
    (tree / headers).mkdir(parents=True)
    shutil.copy(Path("/lib/modules", release, "source") / headers / "sched.h", tree / headers)
    struct = tree / "include" / "generated" / "thing.h"
    struct.write_text("struct thing { char before[4410]; char value; };")
    own = ("-r", tree, f"-R{runtime}", "-B", "CFLAGS_MODULE=-DMARK=7", "-I", tapset)
    server = serve("--prepared=yes", "--warmup=yes", *own, release=False, caching=True)
    server.log.wait(PLAN, timeout_s=PLAN_S)
    # With SystemTap 5.1 and Linux 6.12 the probe matches nothing.
    script = 'probe kernel.trace("sched_switch")?, timer.s({}) {{ mark() println(pid()) exit() }}'.format
    wait_prepared(server, lambda: raw_compiled(stap, server, "-e", script(next(numbers))))
    traced = ("-m", "traced", "-e", script(2))
    module, build = raw_compiled(stap, server, *traced)
    assert build == "prepared"
    assert b"mark=7\0" in module
    anyio.run(exchange, server.port, request("-p4", *traced, release=release))
    server.log.wait("answered rc=0, hit, ")
    shutil.rmtree(stap.directory / RESULTS_DIRECTORY)
    plain = serve("--prepared=no", *own, release=False, caching=True)
    plain.log.wait(WATCHING)
    assert (module, "plain: off") == raw_compiled(stap, plain, *traced)
    assert offset(server, release, 1) == 4410

    def change() -> None:
        struct.write_text("struct thing { char before[4420]; char value; };")
        header = tree / "include" / "generated" / "utsrelease.h"
        header.write_text(header.read_text().replace(release, f"{release}-changed"))
        with (runtime / "runtime.h").open("a") as text:
            text.write('\nMODULE_INFO(changed, "runtime");\n')

    during = new_script()
    raw_compiled(stap, server, "-e", during, meanwhile=change)
    changed, build = raw_compiled(stap, server, "-e", during)
    # Nothing that was found out before counts now.
    assert build == "plain: features unknown"
    wait_prepared(server, lambda: raw_compiled(stap, server, "-e", new_script()))
    again, build = raw_compiled(stap, server, "-e", new_script())
    assert build == "prepared"
    assert offset(server, release, 2) == 4420
    renewed, _ = raw_compiled(stap, server, *traced)
    for made in (changed, again, renewed):
        assert f"vermagic={release}-changed ".encode() in made
        assert b"changed=runtime" in made


def test_messages_of_the_compiler_are_those_of_make(serve, stap, tmp_path):
    # In a tapset C needs no -g, with which stap finds out the kernel's features once more.
    (tmp_path / "tapset").mkdir()
    (tmp_path / "tapset" / "f.stp").write_text("function f() %{\n no_such_thing();\n%}")
    own = ("-I", tmp_path / "tapset")
    planned = serve("--prepared=yes", *own, caching=True)
    wait_planned(stap, planned)
    plain = serve("--prepared=no", "--result-cache=no", *own)
    script = "probe begin { f() exit() }"
    told = [stap.via(server.port, "-p4", "-m", "faulty", "-e", script) for server in (planned, plain)]
    assert [ran.status for ran in told] == [1, 1]
    ours, theirs = (re.findall(r"^.*\berror: .*$", ran.stderr, re.MULTILINE) for ran in told)
    assert ours == theirs
    assert any("no_such_thing" in line for line in ours)


@pytest.mark.parametrize("sandbox", ["landlock", "off"])
def test_other_sandboxes_build_by_plans(serve, stap, sandbox):
    wait_planned(stap, serve("--prepared=yes", f"--sandbox={sandbox}", caching=True))


@pytest.fixture
def plans_of_others(stap: Stap, tmp_path: Path) -> Iterator[None]:
    """Have the plans at the end that there were before, for other tests."""
    stores = list((stap.directory / "server-toolchains").glob("*/prepared/plans"))
    copies = [shutil.copytree(store, tmp_path / f"plans{number}") for number, store in enumerate(stores)]
    yield
    for store, copy in zip(stores, copies, strict=True):
        shutil.rmtree(store)
        shutil.copytree(copy, store)


def test_damaged_plan_is_not_used(plans_of_others, planned, stap):
    for path in (stap.directory / "server-toolchains").glob("*/prepared/plans/*/*/start.h.gch"):
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-1])
    _, build = compiled(stap, planned, "-e", new_script())
    assert build == "prepared: another start"
    for path in (stap.directory / "server-toolchains").glob("*/prepared/plans/*/plan.json"):
        path.chmod(0o600)
        path.write_text("{}")
    _, build = compiled(stap, planned, "-e", new_script())
    assert build == "plain: no plan"


@pytest.mark.long
def test_options_of_clients_files_and_servers_count(serve, stap, tmp_path):
    """Each is changed between two compiles, and each module is that of make by then."""
    tapset = tmp_path / "tapset"
    tapset.mkdir()
    (tapset / "own.stp").write_text('function own() { return "what it was before the change" }')
    server = serve("--prepared=yes", "-I", tapset, caching=True)
    wait_planned(stap, server)
    plain = serve("--prepared=no", "--result-cache=no", "-I", tapset)
    script = "probe begin { println(own()) exit() }"

    def is_that_of_make(*arguments: str) -> tuple[bytes, str]:
        module, build = compiled(stap, server, *arguments)
        assert (module, "plain: off") == compiled(stap, plain, *arguments)
        return module, build

    first, build = is_that_of_make("-m", "one", "-e", script)
    assert build == "prepared"
    assert is_that_of_make("-m", "one", "-DMAXSTRINGLEN=200", "-e", script)[0] != first
    (tapset / "own.stp").write_text('function own() { return "what it is after the change" }')
    second, build = is_that_of_make("-m", "one", "-e", script)
    assert build == "prepared"
    assert second != first
    (stap.directory / "rc").write_text("-DMAXSTRINGLEN=200\n")
    try:
        assert is_that_of_make("-m", "one", "-e", script)[0] not in {first, second}
    finally:
        (stap.directory / "rc").unlink()

    def guru() -> tuple[str, ...]:
        return ("-g", "-m", "two", "-e", f"{EMBEDDED} {new_script().replace('println', 'mark() println')}")

    wait_prepared(server, lambda: compiled(stap, server, *guru()))
    _, build = is_that_of_make(*guru())
    assert build == "prepared"
