"""``stap-compile`` beside the real client: what both send, and what both get."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import pytest
from kit.compile_server import Identity, RecordingServer, response
from kit.real import Installation, Server, Stap, finish, serving, serving_original

from stapsrv.client.job import pack_command
from stapsrv.client.options import parse_stap_options

COMPILE = [sys.executable, "-m", "stapsrv.client.command"]
STDIN = b"probe never { }"
RELEASE = ("-r", "6.1.0-test")
E = ("-e", "probe begin { exit() }")
FILES = {
    "hello.stp": "probe begin { exit() }",
    "x y/a b.stp": "probe end { }",
    "tapset/answer.stp": "function answer() { return 42 }",
    "tapset/sub/deep.stp": "function deep() { return 1 }",
    "tapset/note.txt": "no script",
    "tapset/.hidden": "",
    "more/x.stp": "function x() { return 2 }",
    ".dot/d.stp": "function d() { return 3 }",
    "xdg/systemtap/tapset/far.stp": "function far() { return 4 }",
}
GERMAN = {"LANG": "de_DE.UTF-8@euro", "LC_ALL": "", "LC_TIME": "C", "LC_PAPER": "x", "LANGUAGE": "de"}

# Words after those that name the server, and changes to the environment.
COMMANDS: dict[str, tuple[Sequence[str], dict[str, str]]] = {
    "-e": ((*RELEASE, "-p1", *E), {}),
    "-e attached": ((*RELEASE, "-p1", "-eprobe begin { exit() }"), {}),
    "-e empty": ((*RELEASE, "-p1", "-e", ""), {}),
    "this host's release": (("-p1", *E), {}),
    "file": ((*RELEASE, "-p1", "hello.stp"), {}),
    "file by its whole path": ((*RELEASE, "-p1", "PLACE/hello.stp"), {}),
    "file with blanks": ((*RELEASE, "-p1", "x y/a b.stp"), {}),
    "executable file": ((*RELEASE, "-p1", "run.stp"), {}),
    "link to a file": ((*RELEASE, "-p1", "link.stp"), {}),
    "missing file": ((*RELEASE, "-p1", "nowhere/../x.stp"), {}),
    "missing file by its whole path": ((*RELEASE, "-p1", "/nowhere/x.stp"), {}),
    "directory as a script": ((*RELEASE, "-p1", "tapset"), {}),
    "file named as an option": ((*RELEASE, "-p1", "--", "-x", "-y"), {}),
    "empty name": ((*RELEASE, "-p1", ""), {}),
    "standard input": ((*RELEASE, "-p1", "-"), {}),
    "standard input with arguments": ((*RELEASE, "-p1", "-", "7", "-"), {}),
    "arguments with quotes and blanks": (
        (*RELEASE, "-p1", "hello.stp", "a  b", "c'd\"", "$x*", "a\nb", ""),
        {},
    ),
    "options after arguments": ((*RELEASE, *E, "a", "-p1", "b", "-w"), {}),
    "arguments like options": ((*RELEASE, "-p1", *E, "--", "-v", "--"), {}),
    "nothing after --": ((*RELEASE, "-p1", *E, "--"), {}),
    "-I": ((*RELEASE, "-p1", "-I", "tapset", *E), {}),
    "-I attached, by its whole path": ((*RELEASE, "-p1", "-IPLACE/tapset", *E), {}),
    "several -I": ((*RELEASE, "-p1", "-I", "tapset", *E, "-I", "more", "-I", ".dot"), {}),
    "-I of a file": ((*RELEASE, "-p1", "-I", "tapset/note.txt", *E), {}),
    "-I of a link": ((*RELEASE, "-p1", "-I", "linked", *E), {}),
    "-I with links, pipes and empty directories": ((*RELEASE, "-p1", "-I", "odd", *E), {}),
    "missing -I": ((*RELEASE, "-p1", "-I", "nowhere", *E), {}),
    "empty -I": ((*RELEASE, "-p1", "-I", "", *E), {}),
    "script from an -I": ((*RELEASE, "-p1", "-I", "tapset", "tapset/answer.stp"), {}),
    "-p2": ((*RELEASE, "-p", "2", *E), {}),
    "-p3": ((*RELEASE, "-p3", *E), {}),
    "-p4": ((*RELEASE, "-p4", *E), {}),
    "last of several -p": ((*RELEASE, "-p4", "-p1", *E), {}),
    "-v": ((*RELEASE, "-p1", "-v", *E), {}),
    "-vv": ((*RELEASE, "-p1", "-vv", *E), {}),
    "--vp": ((*RELEASE, "-p1", "--vp", "001", *E), {}),
    "-k": ((*RELEASE, "-p1", "-k", *E), {}),
    "-D and -B": ((*RELEASE, "-p1", "-DA", "-D", "B=-1", "-B", "C=1", *E), {}),
    "-m": ((*RELEASE, "-p1", "-m", "named", *E), {}),
    "-s, -S and -d": ((*RELEASE, "-p1", "-s", "4", "-S1,2", "-d", "kernel", *E), {}),
    "letters together": ((*RELEASE, "-gwubtp1", *E), {}),
    "-G": ((*RELEASE, "-p1", "-G", "x=1", *E), {}),
    "-E": ((*RELEASE, "-p1", "-E", "probe end { }", "hello.stp"), {}),
    "-c": ((*RELEASE, "-p1", "-c", "ls -l 'a b'", *E), {}),
    "-T, --modinfo and --bpf": ((*RELEASE, "-p1", "-T", "5", "--modinfo", "a=b", "--bpf", *E), {}),
    "--privilege": ((*RELEASE, "-p1", "--privilege", "stapsys", *E), {}),
    "--unprivileged, abbreviated": ((*RELEASE, "-p1", "--unpriv", *E), {}),
    "--compatible and others": ((*RELEASE, "-p1", "--compatible=4.0", "--check-version", "--skip", *E), {}),
    "--runtime": ((*RELEASE, "-p1", "--runtime=kernel", "--suppress-handler-errors", *E), {}),
    "client's own": ((*RELEASE, "-p1", "--disable-cache", "--color=never", "--rlimit-cpu=99", *E), {}),
    "-a": ((*RELEASE, "-p1", "-a", "aarch64", *E), {}),
    "last of several -r": ((*RELEASE, "-p1", "-r", "5.10.0-other", *E), {}),
    "empty -r": (("-r", "", "-p1", *E), {}),
    "-l": ((*RELEASE, "-l", "syscall.*"), {}),
    "-L with an argument": ((*RELEASE, "-L", 'process("/bin/true").*', "a"), {}),
    "--dump-functions": ((*RELEASE, "--dump-functions"), {}),
    "locale": ((*RELEASE, "-p1", *E), GERMAN),
    "locale that no server takes": (
        (*RELEASE, "-p1", *E),
        {"LANG": "a b", "LC_CTYPE": "/../x", "LC_MESSAGES": "ü"},
    ),
    "tapsets and runtime of the environment": (
        (*RELEASE, "-p1", *E),
        {"XDG_DATA_HOME": "PLACE/xdg", "XDG_DATA_DIRS": "PLACE/xdg", "SYSTEMTAP_TAPSET": "PLACE/tapset"},
    ),
}


@attrs.frozen
class Place:
    """Where both clients are called, and the server that hears both."""

    directory: Path
    server: RecordingServer
    stap: Stap

    def theirs(self, words: Sequence[str], environ: dict[str, str]) -> bytes:
        """Run the real client, and return the request's zip that it sends."""
        before = len(self.server.requests)
        subprocess.run(
            ["stap", f"--use-server=localhost:{self.server.port}", *self._named(words)],
            cwd=self.directory,
            env=self._environ(environ),
            input=STDIN,
            capture_output=True,
            timeout=60,
            check=False,
        )
        (request,) = self.server.requests[before:]
        return request

    def ours(self, words: Sequence[str], environ: dict[str, str]) -> bytes:
        """Return the zip of this project's client, which is called there."""
        given = [os.fsencode(word) for word in self._named(words)]
        # Its own option, which is the only one of these.
        command = parse_stap_options(given, own=lambda name, _value: name == "k")
        with contextlib.chdir(self.directory):
            return pack_command(command, stdin=STDIN, environ=self._environ(environ))

    def _environ(self, changes: dict[str, str]) -> dict[str, str]:
        return self.stap.environ() | dict(zip(changes, self._named(changes.values()), strict=True))

    def _named(self, words) -> list[str]:
        return [word.replace("PLACE", str(self.directory)) for word in words]


@pytest.fixture(scope="module")
def place(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("place")
    for name, text in FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
        (directory / name).chmod(0o600 if name.startswith("more") else 0o644)
    (directory / "run.stp").write_text("probe begin { exit() }")
    (directory / "run.stp").chmod(0o755)
    (directory / "link.stp").symlink_to("hello.stp")
    (directory / "linked").symlink_to("tapset/sub")
    (directory / "odd/empty").mkdir(parents=True)
    (directory / "odd/broken").symlink_to("nowhere")
    (directory / "odd/file.stp").symlink_to("../hello.stp")
    (directory / "odd/tapset").symlink_to("../tapset")
    os.mkfifo(directory / "odd/pipe")
    identity = Identity.make(directory.parent / "identity")
    place = tmp_path_factory.mktemp("stap")
    stap = Stap(installation=installation, directory=place / "systemtap", place=place)
    client = stap.directory / "ssl/client"
    client.mkdir(parents=True)
    for words in (["-N", "--empty-password"], ["-A", "-n", "stap-server", "-t", "P,P,P", "-i", identity.pem]):
        subprocess.run(["certutil", "-d", f"sql:{client}", *words], check=True, timeout=60)
    with RecordingServer.open(identity) as server:
        server.answer = response(x_ko=b"M")
        yield Place(directory, server, stap)


def entries(request: bytes) -> tuple[dict[str, tuple[int, bytes]], list[str]]:
    """Return all that a zip has but times: modes and contents by name; and the order of what is on top.

    Below that, the real client's order is that of the file system.
    """
    with zipfile.ZipFile(io.BytesIO(request)) as archive:
        infos = archive.infolist()
        assert len({info.filename for info in infos}) == len(infos)
        found = {info.filename: (info.external_attr >> 16, archive.read(info)) for info in infos}
        return found, [info.filename for info in infos if "/" not in info.filename.rstrip("/")]


@pytest.mark.parametrize("name", COMMANDS)
def test_request_is_that_of_the_real_client(place: Place, name: str):
    words, environ = COMMANDS[name]
    theirs = place.theirs(words, environ)
    installed = entries(theirs)[0]["version"][1]
    if installed != b"4.8":
        pytest.skip(f"the requests are those of SystemTap 4.8, and {installed.decode()} is installed")
    assert entries(place.ours(words, environ)) == entries(theirs)


def test_there_are_fifty_command_lines():
    assert len(COMMANDS) >= 50


@pytest.fixture(params=[serving, serving_original], ids=["stapsrv", "original"])
def either(request: pytest.FixtureRequest, stap: Stap) -> Iterator[Server]:
    with request.param(stap) as server:
        yield server


def test_module_is_that_of_the_real_client(either: Server, stap: Stap, tmp_path: Path):
    words = [
        "-p4",
        "-r",
        stap.installation.release,
        "-m",
        "same",
        "-e",
        'probe begin { println("same") exit() }',
    ]
    theirs = finish(stap.begin_via(either.port, *words, release=None))
    assert theirs.status == 0, theirs.stderr
    trust = ["--trust", stap.directory / "ssl/client"]
    environ = stap.environ(PATH="/nowhere")
    command = [*COMPILE, "--server", f"localhost:{either.port}", *trust, "-o", tmp_path / "out", *words]
    ours = subprocess.run(
        list(map(str, command)), env=environ, capture_output=True, text=True, timeout=300, check=False
    )
    assert (ours.returncode, ours.stdout) == (0, f"{tmp_path}/out/same.ko\n"), ours.stderr
    assert (tmp_path / "out/same.ko").read_bytes() == (stap.place / "same.ko").read_bytes()


def test_examples_of_the_page_run(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In order, with the recording server in place of the one that they name."""
    page = (Path(__file__).parents[2] / "docs/client.md").read_text()
    examples = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(examples) >= 4
    monkeypatch.chdir(tmp_path)
    before = len(place.server.requests)
    for example in examples:
        for said, meant in (
            ("build.example:5001", place.server.address),
            ("SHA256:…", place.server.identity.fingerprint),
            ("/run/stap-server", str(tmp_path)),
        ):
            example = example.replace(said, meant)  # noqa: PLW2901
        subprocess.run([sys.executable, "-c", example], check=True, timeout=60)
    assert len(place.server.requests) == before + 5
    assert (tmp_path / "x.ko").read_bytes() == b"M"
