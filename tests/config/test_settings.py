"""The settings of one server."""

from __future__ import annotations

import os
from pathlib import Path

import attrs

from stapsrv.config.global_settings import SYSTEM_SETTINGS, lay_over
from stapsrv.config.settings import HostDefaults, ServerSettings, total_compiles
from stapsrv.config.table import Limits
from stapsrv.config.tuning import Tuning

HOST = HostDefaults(arch="x86_64", release="6.1", user="me", log=Path("/l"))
CORES = len(os.sched_getaffinity(0))


def test_server_goes_before_global_file_and_later_file_before_earlier():
    defaults = HostDefaults(
        arch="x86_64",
        release="6.1",
        user="me",
        log=Path("/l"),
        tuning=Tuning({"connections": 5, "compile_s": 6.0}),
    )
    limits = ServerSettings(tuning={"connections": 7}).resolved(defaults).limits
    assert (limits.connections, limits.compile_s, limits.nice) == (7, 6.0, Limits.nice.default)
    once = lay_over(SYSTEM_SETTINGS, "QUEUE_LENGTH=1\nMAX_CONNECTIONS=2\n", where="a")
    twice = lay_over(once, "QUEUE_LENGTH=3\nMAX_CONNECTIONS=\n", where="b")
    assert twice.tuning == {"queue_length": 3, "connections": 2}


def test_what_is_not_set_is_the_host_s():
    resolved = ServerSettings(releases=("6.2", "6.2"), user="bob").resolved(HOST)
    assert resolved == ServerSettings(
        arch="x86_64", releases=("6.2",), user="bob", log=Path("/l"), tuning=HOST.tuning
    )
    assert ServerSettings().resolved(HOST).releases == ("6.1",)


def test_server_whose_requests_are_compiled_elsewhere_has_no_release_of_this_host():
    assert ServerSettings(tuning={"engine": "dask"}).resolved(HOST).releases == ()
    of_all = attrs.evolve(HOST, tuning=Tuning({"engine": "dask"}))
    assert ServerSettings().resolved(of_all).releases == ()
    assert ServerSettings(tuning={"engine": "local"}).resolved(of_all).releases == ("6.1",)


def test_identity_leaves_out_nickname_order_and_limits_but_not_where_it_listens():
    one = ServerSettings(nickname="a", releases=("6.2", "6.1"), tuning={"nice": 3}, keep_temporary=True)
    other = ServerSettings(releases=("6.1", "6.2"))
    assert one.identity(HOST) == other.identity(HOST)
    elsewhere = ServerSettings(releases=("6.1", "6.2"), tuning={"listen": ("192.0.2.1",)})
    assert elsewhere.identity(HOST) != other.identity(HOST)
    assert ServerSettings(port=1).identity(HOST) != ServerSettings(port=2).identity(HOST)


def test_workers_are_the_threads_or_the_cores():
    assert [ServerSettings(max_threads=number).workers for number in (None, 0, 3)] == [CORES, 1, 3]
    assert [total_compiles(Tuning(values)) for values in ({}, {"total_compiles": 3})] == [CORES, 3]
