"""What the user of the real client gets from a server: the same as from stap itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from kit.real import Asked, Ran, Stap, vermagic, without_client_lines, without_word_of_jobs


@pytest.fixture(scope="session")
def local_answers() -> dict[Asked, Ran]:
    """What stap said itself, so that it is asked once for both backends."""
    return {}


def test_answer_is_that_of_a_local_stap(server, stap, asked, scripts, local_answers):
    """Status, standard output and standard error, but for paths and what the client says itself."""
    if asked not in local_answers:
        local_answers[asked] = as_through_a_server(stap.local(*asked.arguments, stdin=asked.stdin), stap)
    remote = stap.via(server.port, *asked.arguments, stdin=asked.stdin)
    assert asked.words in remote.stdout + remote.stderr
    assert remote.status == asked.status
    answer = without_sent_paths(without_client_lines(remote), scripts)
    assert without_word_of_jobs(answer) == without_word_of_jobs(local_answers[asked])


def test_module_is_made_anew_for_the_release_and_placed(server, stap, request):
    """The name is new, so that nobody's cache has it."""
    name = f"placed_{request.node.callspec.params['server']}"
    ran = stap.via(server.port, "-p4", "-m", name, "-e", "probe begin { exit() }")
    assert (ran.status, ran.stdout) == (0, f"{name}.ko\n"), ran.stderr
    assert vermagic(stap.place / f"{name}.ko") == stap.installation.release
    assert sorted(path.name for path in stap.place.iterdir()) == [f"{name}.ko", "tmp"]
    assert not list(stap.temporary.iterdir())


def as_through_a_server(ran: Ran, stap: Stap) -> Ran:
    """Return what a local stap said as a server and its client have to say it.

    The server hides its user's paths; the client names the module that it has placed in its own directory.
    """

    def passed_on(text: str) -> str:
        text = re.sub(re.escape(str(stap.temporary)) + r"/stap\w{6}", "<server>/stap000000", text)
        for path in (stap.directory, Path.home()):
            text = text.replace(str(path), "<server>")
        return re.sub(r"^<server>/\S+/(?=[^/\s]+\.ko$)", "", text, flags=re.MULTILINE)

    return Ran(ran.status, passed_on(ran.stdout), passed_on(ran.stderr))


def without_sent_paths(ran: Ran, scripts: Path) -> Ran:
    """Undo the renaming of files that are sent: their paths in the request begin with its root's names."""
    sent = rf"\b(script|tapset)(?={re.escape(str(scripts))})"
    return Ran(ran.status, re.sub(sent, "", ran.stdout), re.sub(sent, "", ran.stderr))
