"""One request to one server, whatever that does. The steps are performed with sockets."""

from __future__ import annotations

import pytest
from kit.compile_server import Identity, RecordingServer, response

from stapsrv.client import blocking, exchange
from stapsrv.client.address import Address
from stapsrv.client.errors import ServerNotTrusted, ServerUnavailable
from stapsrv.client.exchange import Stage
from stapsrv.client.trust import Certificates
from stapsrv.errors import ProtocolError

REQUEST = b"PK request"


def send(server, *, trust=None, **more):
    trust = trust or Certificates.by_fingerprint(server.identity.fingerprint)
    return blocking.run(exchange.exchange(Address.parse(server.address), REQUEST, trust, **more))


def test_request_arrives_whole_and_its_response_is_returned(server):
    server.answer = response(x_ko=bytes(300_000))
    stages = []
    assert send(server, on_stage=stages.append) == server.answer
    assert server.requests == [REQUEST]
    assert stages == [Stage.CONNECTING, Stage.SENDING, Stage.COMPILING, Stage.RECEIVING, Stage.DONE]


def test_reset_before_the_handshake_is_tried_again(server, impatient):
    server.faults = ["reset"] * 4
    stages = []
    assert send(server, on_stage=stages.append) == server.answer
    assert stages.count(Stage.BUSY) == 4


def test_busy_server_is_given_up_after_five_tries(server, impatient):
    server.faults = ["reset"] * 6
    with pytest.raises(ServerUnavailable, match="is busy: it reset 5 connections"):
        send(server)
    assert (server.seen, server.requests) == (5, [])


def test_untrusted_server_gets_nothing(server, tmp_path):
    other = Identity.make(tmp_path / "other")
    with pytest.raises(ServerNotTrusted, match=other.fingerprint):
        send(server, trust=Certificates.by_fingerprint(other.fingerprint))
    assert (server.seen, server.requests) == (1, [])


def test_expired_certificate_gets_one_more_try(tmp_path, impatient):
    with RecordingServer.open(Identity.make(tmp_path, days=(-30, -1))) as server:
        with pytest.raises(ServerNotTrusted, match=r"expired on .*; have it renewed"):
            send(server)
        assert (server.seen, server.requests) == (2, [])


def test_certificate_of_tomorrow_is_refused(tmp_path):
    with RecordingServer.open(Identity.make(tmp_path, days=(1, 2))) as server:
        with pytest.raises(ServerNotTrusted, match=r"is not valid before .*; compare the clocks"):
            send(server)


def test_cut_response_is_what_came(server):
    server.answer = response(x_ko=bytes(300_000))
    server.faults = ["cut"]
    assert send(server) == server.answer[: len(server.answer) // 2]


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("close", "the TLS handshake failed"),
        ("hang", r"no response within 0\.3 s; allow more time"),
    ],
)
def test_server_that_does_not_answer_is_said_on_one_line(server, fault, problem):
    server.faults = [fault]
    with pytest.raises(ServerUnavailable, match=f"^{server.address}: {problem}") as raised:
        send(server, timeout_s=0.3)
    assert server.seen == 1
    assert "\n" not in str(raised.value)


def test_empty_and_endless_answers_are_refused(server, monkeypatch):
    server.answer = b""
    with pytest.raises(ServerUnavailable, match="closed the connection without a response"):
        send(server)
    server.answer = bytes(3 << 20)
    monkeypatch.setattr(exchange, "MAX_RESPONSE_BYTES", 1 << 20)
    with pytest.raises(ProtocolError, match="the response has more than 1 MiB"):
        send(server)
