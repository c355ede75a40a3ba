"""sd_notify against a real datagram socket."""

from __future__ import annotations

import os
import socket

import pytest

from stapsrv.system.sd_notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    address = f"{tmp_path}/notify" if request.param == "path" else f"@stapsrv-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address.replace("@", "\0"))
        receiver.settimeout(10)
        yield receiver, Notifier.from_environ({"NOTIFY_SOCKET": address})


def test_messages(manager):
    receiver, notifier = manager
    notifier.ready("serving on [::]:5001")
    notifier.stopping()
    notifier.failed("first\nsecond")
    assert [receiver.recv(4096) for _ in range(3)] == [
        b"READY=1\nSTATUS=serving on [::]:5001",
        b"STOPPING=1",
        b"STATUS=first second\nERRNO=1",
    ]


def test_a_name_that_is_no_text_is_told_all_the_same(manager):
    receiver, notifier = manager
    notifier.failed("log \udcff cannot be written")
    assert receiver.recv(4096) == b"STATUS=log \\udcff cannot be written\nERRNO=1"


def test_nobody_to_tell(tmp_path):
    Notifier.from_environ({}).ready("x")
    Notifier(f"{tmp_path}/nobody").ready("x")
