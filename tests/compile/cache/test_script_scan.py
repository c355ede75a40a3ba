"""Scripts and tapsets that make stap read host files are found, and those that only look so are not."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from stapsrv.compile.cache import script_scan
from stapsrv.compile.cache.fingerprint import WatchedPath
from stapsrv.compile.cache.script_scan import (
    host_access_reason,
    names_reading_host_files,
    scan_tapsets,
)

NAMES = frozenset({"python", "errno", "staprun"})


@pytest.mark.parametrize(
    "script",
    [
        "probe begin { exit() }",
        'probe syscall.open*.return ? { x *= 2; printf("process(%d) %s", x * (3 + 4), @1) } # process("a")',
        'probe kernel.function("vfs_*")?, syscall.*.return { a[$#, i?b:c] <<< i * 2 } // process("a")',
        'probe kernel.function("x") { y = @cast($p, "task_struct", "kernel<linux/sched.h>")->pid }',
        'probe kernel.function("x") { y = @cast(f(a[1], "/etc"), "task_struct")->pid; print("/etc") }',
        'probe module("nfs*").function("*") { a = @var("jiffies@time.c", "kernel") }',
        "probe process.begin { x = (a)*(b); y = a ? *b : c }",
        "/* process( */ probe vfs.read, *fs.write {}",
        'probe begin { print("\\"process(\\"") }',
        '%( kernel_v >= "2.6" %? probe begin {} %: probe end {} %)',
        "probe sunrpc.svc.process, sunrpc.svc.process.return { process_names[pid()] = execname() }",
        'probe begin { x = @cast(p, "t", "kernel<linux/ip.h><uapi/linux/ip.h>:nfs*")->f }',
        "probe vfs.read { print(@choose_defined($file, 0)) } @define twice(x) %( @x * 2 %)",
        'probe module("nfs" "d").function("*") { module = "nfs" }',
    ],
)
def test_script_of_the_kernel_alone_has_no_reason(script):
    assert host_access_reason(script.encode(), NAMES) is None


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ('probe process("/bin/ls").begin {}', "program"),
        ('probe kernel.function("x")?, process ("/bin/ls").function("y")? {}', "program"),
        ("probe process(@1).begin {}", "program"),
        ('probe perf.type(0).config(1).process("x") {}', "program"),
        ('probe proc*("/bin/ls").begin {}', "program"),
        ('probe *("/bin/ls").begin {}', "program"),
        ("probe pyth?n.function.entry {}", "program"),
        ("probe begin, *run.insert_module {}", "program"),
        ("probe python.function.entry {}", "program"),
        ("probe python3.module {}", "program"),
        ('probe java("x").class("y") {}', "program"),
        ("probe begin { print(@errno) }", "program"),
        ('probe module("/tmp/x.ko").function("*") {}', "program"),
        ("probe module(@1).function(@2) {}", "program"),
        ('probe begin { x = @cast(p, "t", "/bin/ls")->f }', "header"),
        ('probe begin { x = @cast(p, "t", "<sys/types.h>")->f }', "header"),
        ('probe begin { x = @cast(p, "t", "kernel<a.h>:" "</etc/x.h>")->f }', "header"),
        ('probe begin { x = @cast(p, "t", @1)->f }', "header"),
        ('probe begin { x = @cast(p, "t", "\\x2fbin")->f }', "header"),
        ('probe begin { x = @var("environ", "/bin/ls") }', "header"),
        ('probe begin { x = @cast(p, "t"', "header"),
        ('probe begin { x = @cast(p, "t", "kernel</etc/x.h>")->f }', "header"),
        ('probe begin { x = @cast(p, "t", "kernel<linux/../../x.h>")->f }', "header"),
        ('probe begin { x = @cast(p, "t", "kernel<../x.h>")->f }', "header"),
        ('probe begin { x = @cast(p, "t", "kernel< /etc/x.h>")->f }', "header"),
        ('probe begin { x = @cast(p, "t", "kernel<a.h></etc/x.h>")->f }', "header"),
        ('probe module("" "/tmp/x.ko").function("*")? {}', "program"),
        ("probe module().function(@2) {}", "program"),
        ('@define p %( process %) probe @p("/bin/ls").function("f")? {}', "program"),
        ('@define p %( python3 %) probe @p.module("x") {}', "program"),
        ('@define m %( module %) probe @m("/tmp/x.ko").function("f")? {}', "program"),
        ('@define of(x, y) %( @x(@y) %) probe @of(process, "a").function("f")? {}', "program"),
        ('probe @of(process, "a").function("f")? {}', "program"),
        ('probe @of(module, "a").function("f")? {}', "program"),
        ('@define two %( "t", "/bin/ls" %) probe begin { x = @cast(p, @two)->f }', "header"),
        ('@define two %( "t", @1 %) probe begin { x = @cast(p, @two)->f }', "header"),
        ('probe begin { x = @cast(p, @two("/bin/ls"))->f }', "header"),
        ('probe begin { x = @cast(p, @two("nfs:/bin/ls"))->f }', "header"),
        ('probe begin { x = @cast(p, @two("\\x2fbin"))->f }', "header"),
        ("probe begin { x = @cast(p, @two(@1))->f }", "header"),
        ("function f() %{ STAP_RETURN(1); %}", "code"),
        ('%{\n#include "/etc/hostname"\n%}', "code"),
        ("%{ unfinished", "code"),
        ('probe begin { x = @const("PATH_MAX") }', "code"),
        ('probe begin { print("\n") } probe process("x").begin {}', "unread"),
        ("probe begin {} /* without an end", "unread"),
    ],
)
def test_script_that_reads_host_files_has_a_reason(script, reason):
    assert host_access_reason(script.encode(), NAMES) == reason


@pytest.mark.parametrize(
    "unit",
    [
        *(b"@cast(", b'@cast(a, "b", ', b"@m(", b"@m(a) ", b"module ", b'module("a") ', b"*a", b"a*,"),
        *(b'"\\', b"%{", b"/* ", b"( ", b") "),
    ],
)
def test_any_text_is_scanned_in_linear_time(unit):
    """A request may bring any files beside its script; the thread that scans them holds Python's lock."""
    began = time.thread_time()
    host_access_reason(unit * 20_000, NAMES)
    assert time.thread_time() - began < 10


def test_any_bytes_can_be_scanned():
    assert host_access_reason(bytes(range(256)) * 3, NAMES) is not None
    assert host_access_reason(b"", NAMES) is None


TAPSETS = [
    b'probe python.function.entry = process("/usr/lib*/libpython*").mark("function__entry") { x = 1 }\n'
    b'probe vm.write = kernel.function("x") { y = 2 }',
    b"/* process( */ function plain() { return 1 }",
    b'function direct() { return @var("errno", "/lib64/libc.so.6") }\nglobal unrelated',
    b"function indirect() { return direct() }\nfunction other() { return plain() }",
    b'@define by_macro %( @var("errno", "/lib64/libc.so.6") %)\n'
    b"function through_macro() { return @by_macro }",
    b"probe alias.on.top = vm.write, python.function.entry { }\nprobe clean = vm.write { }",
]


def test_names_are_followed_through_the_tapsets():
    assert names_reading_host_files(TAPSETS) == {
        "python",
        "direct",
        "indirect",
        "by_macro",
        "through_macro",
        "alias",
    }


def test_operator_of_later_versions_that_is_given_a_path_counts():
    def color(*module: str) -> bytes:
        arguments = ", ".join(['"color"', "n", *module])
        return f"function color:string (n:long) {{ return @enumname({arguments}) }}".encode()

    assert names_reading_host_files([color('"/usr/bin/paint"')]) == {"color"}
    assert names_reading_host_files([color(), color('"kernel"')]) == frozenset()


def test_order_of_tapset_files_does_not_count():
    assert names_reading_host_files(TAPSETS) == names_reading_host_files(TAPSETS[::-1])


def test_long_chain_of_definitions_is_followed_in_linear_time():
    """Each one stands in a file of its own, and leads to the next."""
    count = 4000
    chain = [b"function f%d() { return f%d() }" % (number, number + 1) for number in range(count)]
    began = time.thread_time()
    names = names_reading_host_files([*chain, b'probe f%d = process("/x") {}' % count])
    assert len(names) == count + 1
    assert time.thread_time() - began < 10


@pytest.mark.parametrize(
    "script", ["".join(f"b{number}*a{number}(, " for number in range(101)), "a*" * 101 + "(1)"]
)
def test_more_wildcards_than_scripts_have_count_as_a_program(script):
    """Each one costs the making of an expression."""
    assert host_access_reason(script.encode(), NAMES) == "program"


PROBES_PROGRAM = 'probe %s.begin = process("/bin/ls").begin {}'


@pytest.fixture
def path(tmp_path: Path) -> WatchedPath:
    (tmp_path / "tapset").mkdir()
    (tmp_path / "tapset" / "a.stp").write_text(PROBES_PROGRAM % "user")
    return WatchedPath(str(tmp_path / "tapset"))


def test_links_are_followed_and_circles_end(tmp_path, path):
    (tmp_path / "far" / "deep").mkdir(parents=True)
    (tmp_path / "far" / "deep" / "b.stp").write_text(PROBES_PROGRAM % "linked")
    (tmp_path / "far" / "c.stpm").write_text('@define macro %( @var("errno", "/lib/libc.so") %)')
    (tmp_path / "far" / "d.txt").write_text(PROBES_PROGRAM % "text")
    (tmp_path / "tapset" / "linux").symlink_to("../far")
    (tmp_path / "far" / "up").symlink_to("..")
    assert scan_tapsets([path, WatchedPath(str(tmp_path / "missing"))]) == {"user", "linked", "macro"}


@pytest.mark.parametrize("function", ["os.scandir", "io.open"])
def test_tapsets_that_cannot_be_read_now_are_an_error(monkeypatch, path, function):
    """What they read of the host would go unseen."""

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(function, fail)
    with pytest.raises(OSError, match="Too many open files"):
        scan_tapsets([path])


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_tapsets_that_stap_cannot_read_either_are_passed_over(tmp_path, path):
    (tmp_path / "tapset" / "dangling.stp").symlink_to("nowhere")
    (tmp_path / "tapset" / "circle.stp").symlink_to("circle.stp")
    (tmp_path / "tapset" / "sealed.stp").touch(mode=0)
    (tmp_path / "tapset" / "sealed").mkdir(mode=0)
    assert scan_tapsets([path]) == {"user"}


def test_tapsets_that_are_too_large_are_an_error(monkeypatch, path):
    monkeypatch.setattr(script_scan, "_MOST_TAPSET_BYTES", 10)
    with pytest.raises(OSError, match="tapsets of more than 10 bytes"):
        scan_tapsets([path])
