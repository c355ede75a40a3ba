"""Statuses and settings as JSON."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.supervisor import SINCE, FakeSupervisor, server_status

from stapsrv.compile.engine.base import EngineStatus
from stapsrv.compile.health import Health
from stapsrv.compile.stats import CacheCounts, RecentTimes
from stapsrv.config.kinds import LogFormat
from stapsrv.config.settings import ServerSettings
from stapsrv.config.table import SERVER_SETTINGS
from stapsrv.control.protocol.jsonrpc import Code
from stapsrv.control.protocol.schema import (
    OutcomeInfo,
    encoded,
    settings_from,
    settings_info,
)
from stapsrv.control.protocol.status_fields import ServerInfo, SupervisorInfo
from stapsrv.control.protocol.validation import checked
from stapsrv.errors import ControlError
from stapsrv.rejection import RejectReason
from stapsrv.supervisor.lifecycle import State
from stapsrv.supervisor.operations import Outcome
from stapsrv.supervisor.status import ReleaseStatus, ServerStatus, ServerWork, SupervisorStatus

EVERYTHING = {
    "ARCH": "x86_64",
    "USER": "me",
    "BUILD": ["-j4", "V=1"],
    "INCLUDE": ["/tapset"],
    "DEFINE": ["A=1"],
    "NICKNAME": "native",
    "RUNTIME": "/runtime",
    "RELEASE": ["6.1.0", "/build/tree"],
    "LOG": "/log",
    "PORT": 5001,
    "SSL": "/ssl",
    "MAXTHREADS": 0,
    "MAXREQSIZE": 7,
    "MAXCOMPRESSEDREQ": 8,
    "LOG_FORMAT": "json",
    "LISTEN": ["192.0.2.1", "fe80::1%eth0"],
    "ALLOW": ["192.0.2.0/24"],
    "DENY": ["192.0.2.66/32"],
    "MAX_CONNECTIONS": 9,
    "HANDSHAKE_TIMEOUT": "1s",
    "REQUEST_TIMEOUT": "2m",
    "MAX_CONNECTIONS_PER_ADDRESS": 8,
    "QUEUE_LENGTH": 0,
    "QUEUE_TIMEOUT": "3h",
    "COMPILE_TIMEOUT": "1d",
    "SEND_TIMEOUT": "0.5s",
    "MAX_OUTPUT_SIZE": 4096,
    "MAX_ANSWER_SIZE": 4097,
    "MAX_TEMP_SIZE": 4098,
    "DRAIN_TIMEOUT": "4s",
    "KILL_GRACE": "0s",
    "LIMIT_CPU": "5m",
    "LIMIT_MEMORY": 4098,
    "LIMIT_FILE": 4099,
    "LIMIT_PROCESSES": 10,
    "LIMIT_CORES": 2,
    "NICE": 11,
    "RESULT_CACHE": "no",
    "PREPARED": "no",
    "SANDBOX_READ": ["/opt/one", "/opt/two"],
    "SANDBOX_WRITE": ["/ccache"],
    "WARMUP": "no",
    "ENGINE": "dask",
    "FARM": "tls://farm.example.com:8786",
    "FARM_CA": "/farm/ca.pem",
    "FARM_CERT": "/farm/cert.pem",
    "FARM_KEY": "/farm/key.pem",
    "FARM_FALLBACK": "local",
    "FARM_WAIT": "90s",
    "SCRIPTS": ["/srv/scripts"],
    "KEEP": True,
}
SETTINGS = ServerSettings(
    arch="x86_64",
    user="me",
    build=("-j4", "V=1"),
    include=("/tapset",),
    define=("A=1",),
    nickname="native",
    runtime="/runtime",
    releases=("6.1.0", "/build/tree"),
    log=Path("/log"),
    log_format=LogFormat.JSON,
    port=5001,
    ssl=Path("/ssl"),
    max_threads=0,
    max_request_bytes=7,
    max_compressed_bytes=8,
    keep_temporary=True,
    tuning={
        "listen": ("192.0.2.1", "fe80::1%eth0"),
        "allow": ("192.0.2.0/24",),
        "deny": ("192.0.2.66/32",),
        "connections": 9,
        "handshake_s": 1.0,
        "request_s": 120.0,
        "connections_per_address": 8,
        "queue_length": 0,
        "queue_s": 10_800.0,
        "compile_s": 86_400.0,
        "send_s": 0.5,
        "output_bytes": 4096,
        "answer_bytes": 4097,
        "temp_bytes": 4098,
        "drain_s": 4.0,
        "kill_grace_s": 0.0,
        "result_cache": False,
        "prepared": False,
        "cpu_s": 300.0,
        "memory_bytes": 4098,
        "file_bytes": 4099,
        "processes": 10,
        "cores": 2,
        "nice": 11,
        "sandbox_read": ("/opt/one", "/opt/two"),
        "sandbox_write": ("/ccache",),
        "warmup": False,
        "engine": "dask",
        "farm": "tls://farm.example.com:8786",
        "farm_ca": "/farm/ca.pem",
        "farm_cert": "/farm/cert.pem",
        "farm_key": "/farm/key.pem",
        "farm_fallback": "local",
        "farm_wait_s": 90.0,
        "scripts": ("/srv/scripts",),
    },
)


def test_every_setting_goes_both_ways():
    assert set(EVERYTHING) == {row.variable for row in SERVER_SETTINGS} | {"KEEP"}
    assert settings_info(SETTINGS) == EVERYTHING
    assert settings_from(EVERYTHING, where="settings") == SETTINGS


def test_defaults_are_left_out():
    assert settings_info(ServerSettings()) == {}
    assert settings_from({}, where="settings") == ServerSettings()


TEXTS = st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: not text.endswith((" ", "\t"))
)


@given(
    st.builds(
        ServerSettings,
        nickname=st.none() | TEXTS,
        define=st.lists(TEXTS.filter(lambda text: text != "()")).map(tuple),
        port=st.integers(0, 65_535),
        keep_temporary=st.booleans(),
    )
)
def test_settings_come_back_equal(settings):
    assert settings_from(settings_info(settings), where="settings") == settings


def test_retired_setting_of_an_older_peer_is_ignored():
    assert settings_from({"PORT": 5001, "STANDBY": 2}, where="settings") == ServerSettings(port=5001)


def test_numbers_may_be_texts_of_their_digits():
    assert settings_from({"PORT": "5001"}, where="settings").port == 5001


def test_durations_may_be_numbers_and_sizes_texts():
    settings = settings_from({"COMPILE_TIMEOUT": 90, "MAX_ANSWER_SIZE": "2M"}, where="settings")
    assert (settings.limits.compile_s, settings.limits.answer_bytes) == (90.0, 2 * 1024 * 1024)


@pytest.mark.parametrize(
    ("info", "text"),
    [
        (
            {"Port": 1},
            "s: unknown variable 'Port'; the variables are "
            + ", ".join([row.variable for row in SERVER_SETTINGS] + ["KEEP"]),
        ),
        (
            {"PORT": 65_536},
            "s.PORT: expected a port number from 0 to 65535 (0: the kernel picks one), not '65536'",
        ),
        (
            {"PORT": "http"},
            "s.PORT: expected a port number from 0 to 65535 (0: the kernel picks one), not 'http'",
        ),
        ({"PORT": 1.5}, "s.PORT: expected a string or a number, not a fraction"),
        ({"PORT": True}, "s.PORT: expected a string or a number, not true"),
        ({"PORT": [1]}, "s.PORT: expected a string or a number, not an array"),
        ({"ARCH": None}, "s.ARCH: expected a string or a number, not null"),
        ({"NICKNAME": 7}, "s.NICKNAME: expected a string, not a number"),
        ({"NICKNAME": ""}, "s.NICKNAME: it is empty; leave it out for the default"),
        ({"NICKNAME": "a\nPORT=1"}, r"s.NICKNAME: 'a\nPORT=1' holds a line break"),
        ({"NICKNAME": "\ud800"}, r"s.NICKNAME: '\ud800' is not UTF-8 text"),
        ({"RELEASE": "6.1"}, "s.RELEASE: expected an array of strings, not a string"),
        ({"RELEASE": [6.1]}, "s.RELEASE: expected a string or a number, not a fraction"),
        ({"DEFINE": [7]}, "s.DEFINE: expected a string, not a number"),
        ({"DEFINE": [""]}, "s.DEFINE: it is empty; leave it out for the default"),
        ({"DEFINE": ["()"]}, 's.DEFINE: "()" cannot be an element'),
        ({"LOG": "log"}, "s.LOG: expected an absolute path, not 'log'"),
        ({"SSL": "~/ssl"}, "s.SSL: expected an absolute path, not '~/ssl'"),
        ({"RUNTIME": "r"}, "s.RUNTIME: expected an absolute path, not 'r'"),
        ({"INCLUDE": ["/a", "b"]}, "s.INCLUDE: expected an absolute path, not 'b'"),
        ({"KEEP": "yes"}, "s.KEEP: expected true or false, not a string"),
    ],
)
def test_wrong_settings_are_named(info, text):
    with pytest.raises(ControlError) as caught:
        settings_from(info, where="s")
    assert (caught.value.code, str(caught.value)) == (Code.INVALID_PARAMS, text)


def test_status_of_a_server():
    status = server_status(
        7,
        State.BACKING_OFF,
        settings=ServerSettings(port=5001),
        reason="it crashed",
        certificate_expires=datetime(2030, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
        certificate_serial="06:73",
        connections=3,
        workers=4,
        engine=EngineStatus(
            name="dask",
            address="tls://farm:8786",
            connected=False,
            since=datetime(2030, 1, 1, tzinfo=UTC),
            reason="no route",
            releases=("6.1 x86_64",),
            lost_workers=2,
        ),
        refusals={RejectReason.DENIED: 2, RejectReason.CONNECTIONS: 0},
        releases=(ReleaseStatus("6.1.0", Health.UNHEALTHY, "x.h:3: error: no"),),
        recent=RecentTimes(3, 0.0, 2.34567),
        cache=CacheCounts(
            hits=5, misses=4, shared=3, stored=2, uncacheable=Counter(option=1), builds=Counter(prepared=4)
        ),
    )
    assert encoded(status, ServerInfo) == {
        "id": 7,
        "nickname": "7",
        "settings": {"PORT": 5001},
        "origin": None,
        "wanted": "up",
        "state": "backing-off",
        "since": "2026-02-03T04:05:06.789Z",
        "reason": "it crashed",
        "port": 5001,
        "workers": 4,
        "engine": {
            "name": "dask",
            "address": "tls://farm:8786",
            "connected": False,
            "since": "2030-01-01T00:00:00.000Z",
            "reason": "no route",
            "workers": 0,
            "slots": 0,
            "releases": ["6.1 x86_64"],
            "running": 0,
            "waiting": 0,
            "retries": 0,
            "lost_workers": 2,
        },
        "running": 0,
        "queued": 0,
        "done": 0,
        "failed": 0,
        "certificate_expires": "2030-01-01T00:00:00.000Z",
        "certificate_serial": "06:73",
        "certificate_sha256": None,
        "connections": 3,
        "refusals": {"denied": 2},
        "releases": [{"name": "6.1.0", "health": "unhealthy", "reason": "x.h:3: error: no"}],
        "recent": {"requests": 3, "queue_s": 0.0, "compile_s": 2.346},
        "cache": {
            "hits": 5,
            "misses": 4,
            "shared": 3,
            "stored": 2,
            "uncacheable": {"option": 1},
            "builds": {"prepared": 4},
        },
    }


def test_times_are_read_back_by_the_standard_library():
    info = encoded(server_status(7), ServerInfo)
    assert datetime.fromisoformat(info["since"]) == SINCE
    assert datetime.fromisoformat(info["since"]).tzinfo == UTC


def test_everything_that_a_status_knows_is_told():
    server, supervisor = (
        encoded(server_status(7), ServerInfo),
        encoded(FakeSupervisor(server_status(7)).status(), SupervisorInfo),
    )
    *own, work = (field.name for field in attrs.fields(ServerStatus))
    told = {*own, *(field.name for field in attrs.fields(ServerWork))}
    assert (set(server), work) == (told, "work")
    assert set(supervisor) == {field.name for field in attrs.fields(SupervisorStatus)}
    assert supervisor["servers"] == [server]


def test_what_is_sent_has_the_shape_that_clients_expect():
    outcome = encoded(Outcome(server_status(7), already=True, error=None), OutcomeInfo)
    assert checked(outcome, OutcomeInfo, name="outcome", exact=True) == {
        "server": checked(encoded(server_status(7), ServerInfo), ServerInfo, name="server", exact=True),
        "already": True,
        "error": None,
    }
    assert encoded(Outcome(None, already=False, error="no"), OutcomeInfo)["server"] is None
    info = encoded(FakeSupervisor(server_status(7)).status(), SupervisorInfo)
    checked(info, SupervisorInfo, name="status", exact=True)
