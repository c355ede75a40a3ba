"""New modules by plans in place of make, by the real stap: the modules of make, its messages, no old ones."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from kit.client import Answer, exchange, request
from kit.real import Server, Stap
from real.test_repeated_scripts import copy_tree

# The server's own compiles give way to everything else on the machine.
PLAN_S = 1200.0
pytestmark = pytest.mark.timeout(2000)

BUILD = r"Request from .*: answered rc=\d+, compiled, .*; build: (.*), refusal: "
BEGUN = "Processing .* request"
PLAN = "Found out the plan of kernel release"
FOUND = "Found out the .* of kernel release"
# Of each kind of probe, variable and output that needs no debugging information.
SCRIPTS = {
    "begin": "probe begin { exit() }",
    "end": 'probe begin, end { printf("%s %d\\n", pp(), gettimeofday_s()) }',
    "timers": "probe timer.s(1) { println(1) } probe timer.ms(200), timer.jiffies(3) { exit() }",
    "arrays": "global a probe timer.s(1) { a[pid()]++ foreach (p in a- limit 3) println(p, a[p]) }",
    "statistics": "global s probe timer.ms(9) { s <<< cpu() } probe end { print(@hist_log(s)) }",
    "functions": "function f(n) { return n ? n * f(n - 1) : 1 } probe begin { println(f(5)) exit() }",
    "strings": 'probe begin { s = sprintf("%x", 77) println(substr(s, 0, 1) . tokenize("a b", " ")) }',
    "patterns": 'probe begin { if ("abc" =~ "a(b+)c") println(matched(1)) exit() }',
    "conditions": 'global on = 1 probe timer.s(1) if (on) { try { error("x") } catch { on = 0 } }',
    "files": 'global n probe procfs("count").read { $value = sprint(n) } probe timer.s(1) { n++ }',
    "written files": 'probe procfs("set").write { if ($value == "stop") exit() }',
    "order": "probe begin(-1) { println(1) } probe begin(2) { println(2) exit() }",
    "never": "probe never { println(1) } probe begin { exit() }",
    "aliases": "probe tick = timer.ms(100) { n = 1 } probe tick { println(n) exit() }",
    "macros": "@define twice(x) %( (2 * @x) %) probe begin { println(@twice(21)) exit() }",
    "conditional code": 'probe begin { %( arch == "x86_64" %? println(1) %: println(2) %) exit() }',
    "sizes": "global a[7], b%[9] probe timer.ms(5) { a[cpu()] = 1 b[tid(), cpu()] = 2 }",
    "deletion": 'global a probe timer.s(1) { a[1] = 2 delete a[1] if (1 in a) error("there") delete a }',
    "sorting": "global a probe end { foreach ([x+, y] in a limit 5) println(x, y) a[1, 2] = 3 }",
    "averages": "global s probe timer.ms(7) { s[cpu()] <<< 1 } probe end { println(@avg(s[0])) }",
    "histogram": "global s probe timer.ms(9) { s <<< 3 } probe end { print(@hist_linear(s, 0, 9, 2)) }",
    "loops": "probe begin { for (i = 0; i < 9; i++) { if (i % 2) continue; if (i > 6) break } exit() }",
    "while": "probe begin { i = 9 while (i --> 0) println(i) exit() }",
    "operators": "probe begin { println((7 >> 1) ^ 3 | 8 & ~1, 7 / 2 % 2, 1 ? 2 : 3, !0 && 1 || 0) exit() }",
    "text": 'probe begin { println(strtol("0x1f", 16), isinstr("abc", "b")) exit() }',
    "bytes": 'probe begin { printf("%1b%2b%c%%|%-8s|%08x\\t\\n", 65, 66, 67, "left", 4711) exit() }',
    "next": "probe timer.s(1) { if (pid() == 1) next; println(execname()) }",
    "random timers": "probe timer.ms(100).randomize(20) { println(randint(6)) exit() }",
    "catching": "probe begin { try { println(1 / 0) } catch (message) { println(message) } exit() }",
    "task": "probe begin { println(uid(), gid(), ppid(), pexecname()) exit() }",
}

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


def wait_planned(stap: Stap, server: Server) -> None:
    """Return when new scripts are built by plans."""
    _, build = compiled(stap, server, "-e", new_script())
    if build != "prepared":
        server.log.wait(PLAN, timeout_s=PLAN_S)
        assert compiled(stap, server, "-e", new_script())[1] == "prepared"


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
def test_modules_with_tracepoints_are_those_of_make(serve, stap, tmp_path):
    release = stap.installation.release
    # stap compiles a query for each header of tracepoints that it finds, which takes minutes for all of them.
    tree = tmp_path / "tree"
    copy_tree(Path("/lib/modules", release, "build"), tree)
    headers = Path("include", "trace", "events")
    (tree / headers).mkdir(parents=True)
    shutil.copy(Path("/lib/modules", release, "source") / headers / "sched.h", tree / headers)
    # With SystemTap 5.1 and Linux 6.12 the probe matches nothing.
    script = 'probe kernel.trace("sched_switch")?, timer.s({}) {{ println(pid()) exit() }}'.format
    server = serve("--prepared=yes", "-r", tree, release=False, caching=True)
    while True:
        known = server.log.count(PLAN)
        _, build = raw_compiled(stap, server, "-e", script(next(numbers)))
        if build == "prepared":
            break
        # Plans may also be made of a script without tracepoints, which looks the same from without.
        server.log.wait(PLAN, count=known + 1, timeout_s=PLAN_S)
    traced = ("-m", "traced", "-e", script(2))
    module, build = raw_compiled(stap, server, *traced)
    assert build == "prepared"
    plain = serve("--prepared=no", "--result-cache=no", "-r", tree, release=False)
    assert (module, "plain: off") == raw_compiled(stap, plain, *traced)


def test_messages_of_the_compiler_are_those_of_make(planned, serve, stap):
    script = "function f() %{\n no_such_thing();\n%} probe begin { f() exit() }"
    plain = serve("--prepared=no", "--result-cache=no")
    told = [stap.via(server.port, "-g", "-p4", "-m", "faulty", "-e", script) for server in (planned, plain)]
    assert [ran.status for ran in told] == [1, 1]
    ours, theirs = (re.findall(r"^.*\berror: .*$", ran.stderr, re.MULTILINE) for ran in told)
    assert ours == theirs
    assert any("no_such_thing" in line for line in ours)


@pytest.mark.parametrize("sandbox", ["landlock", "off"])
def test_other_sandboxes_build_by_plans(serve, stap, sandbox):
    wait_planned(stap, serve("--prepared=yes", f"--sandbox={sandbox}", caching=True))


def test_damaged_plan_is_not_used(planned, stap):
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
    mark = "function mark() %{ /* pure */\n#ifdef MARK\n  static volatile int marked = MARK;\n#endif\n%}"
    tapset = tmp_path / "tapset"
    tapset.mkdir()
    (tapset / "own.stp").write_text('function own() { return "what it was before the change" }')
    own = ("--prepared=yes", "-I", tapset)
    server = serve(*own, caching=True)
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
    (stap.directory / "rc").write_text("-DMAXSTRINGLEN=300\n")
    try:
        assert is_that_of_make("-m", "one", "-e", script)[0] not in {first, second}
    finally:
        (stap.directory / "rc").unlink()
    marked = ("-B", "CFLAGS_MODULE=-DMARK=7")
    server, plain = serve(*own, *marked, caching=True), serve("--prepared=no", "--result-cache=no", *marked)
    while True:
        known = server.log.count(FOUND)
        guru = ("-g", "-m", "two", "-e", f"{mark} {new_script().replace('println', 'mark() println')}")
        module, build = compiled(stap, server, *guru)
        if build == "prepared":
            break
        # A plan may be there before what the kernel's features are.
        server.log.wait(FOUND, count=known + 1, timeout_s=PLAN_S)
    assert known
    assert (module, "plain: off") == compiled(stap, plain, *guru)


@pytest.mark.long
def test_change_of_a_header_or_the_runtime_puts_plans_out_of_use(serve, stap, tmp_path):
    """Also a change while a module is built, which may become either; what is asked afterwards may not."""
    release = stap.installation.release
    tree, runtime = tmp_path / "tree", tmp_path / "runtime"
    copy_tree(Path("/lib/modules", release, "build"), tree)
    shutil.copytree(stap.installation.runtime, runtime)
    server = serve("--prepared=yes", "-r", tree, f"-R{runtime}", release=False, caching=True)

    def change() -> None:
        header = tree / "include" / "generated" / "utsrelease.h"
        header.write_text(header.read_text().replace(release, f"{release}-changed"))
        with (runtime / "runtime.h").open("a") as text:
            text.write('\nMODULE_INFO(changed, "runtime");\n')

    def module(script: str, *, meanwhile: Callable[[], None] | None = None) -> tuple[bytes, str]:
        return raw_compiled(stap, server, "-e", script, meanwhile=meanwhile)

    module(new_script())
    server.log.wait(PLAN, timeout_s=PLAN_S)
    assert module(new_script())[1] == "prepared"
    during = new_script()
    module(during, meanwhile=change)
    changed, build = module(during)
    # Nothing that was found out before counts now.
    assert build == "plain: features unknown"
    server.log.wait(PLAN, count=2, timeout_s=PLAN_S)
    again, build = module(new_script())
    assert build == "prepared"
    for made in (changed, again):
        assert f"vermagic={release}-changed ".encode() in made
        assert b"changed=runtime" in made
