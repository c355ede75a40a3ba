"""What is to be compiled becomes a request."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from kit.compile_server import arguments_of

from stapsrv.client.errors import ClientError
from stapsrv.client.job import Job


def words(unzipped, job: Job):
    zipped, last_pass = job.pack()
    entries = unzipped(zipped)
    return arguments_of(entries), entries["sysinfo"], last_pass


def test_text_is_sent_as_standard_input(unzipped):
    job = Job(script="probe", release="6.1", arch="arm64", options=["-p2", "-DA=1"], arguments=["-x", "y"])
    sent, sysinfo, last_pass = words(unzipped, job)
    assert sent == [b"script/-", b"-p2", b"-DA=1", b"-r6.1", b"-aarm64", b"--", b"-x", b"y"]
    assert (sysinfo, last_pass) == (b"sysinfo: 6.1 arm64", 2)
    assert unzipped(job.pack()[0])["script/-"] == b"probe"


def test_path_is_sent_as_a_file_whatever_its_name(unzipped, home):
    (home / "work/-e").write_text("probe")
    sent, *_ = words(unzipped, Job(script=Path("-e"), release="6.1"))
    assert sent[0] == b"script" + os.fsencode(home / "work/-e")


def test_options_may_have_the_script(unzipped):
    sent, _, last_pass = words(unzipped, Job(options=["-l", "syscall.*"], release="6.1"))
    assert (sent, last_pass) == ([b"-lsyscall.*", b"-r6.1"], 2)


@pytest.mark.parametrize(
    ("job", "problem"),
    [
        (Job(script="x", options=["-e", "y"]), "the options have a script of their own"),
        (Job(script="x", options=["stray"]), "the options have a script of their own"),
        (Job(options=["-v"]), "A script must be specified"),
        (Job(script="x", release="/build"), "-r /build is a build tree"),
        (Job(script="x", release="6 1"), "'6 1' is no kernel release"),
        (Job(script="x", release="6.1", moks=["zz"]), "'zz' is no fingerprint of a key"),
    ],
)
def test_what_cannot_be_sent_is_refused(job, problem):
    with pytest.raises(ClientError, match=f"^{problem}"):
        job.pack()


def test_release_has_to_be_named_where_there_is_no_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ClientError, match="this host runs no Linux; name its release with -r"):
        Job(script="x").pack()
