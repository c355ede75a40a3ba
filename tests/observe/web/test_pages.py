"""Which page a path leads to, and what is on it."""

from __future__ import annotations

import pytest
from kit.live import ended, running
from kit.supervisor import DEFAULTS
from kit.web import a_moment, a_server

from stapsrv.compile.health import Health
from stapsrv.config.settings import ServerSettings
from stapsrv.config.tuning import Tuning
from stapsrv.observe.web.pages import find_view, problems, release_path, run_of
from stapsrv.supervisor.lifecycle import State, Wanted
from stapsrv.supervisor.status import ReleaseStatus


@pytest.mark.parametrize(
    ("path", "template"),
    [
        ("/", "overview.html"),
        ("/add-client", "add_client.html"),
        ("/server/7", "server.html"),
        ("/release/6.1.0-test", "release.html"),
        ("/request/12", "request.html"),
        ("/request/11", "request.html"),
        ("/server/8", None),
        ("/server/x", None),
        ("/server/" + "9" * 5000, None),
        ("/server/\u0664", None),
        ("/server", None),
        ("/release/9.9", None),
        ("/request/13", None),
        ("/add-client/x", None),
        ("/../etc/passwd", None),
        ("", "overview.html"),
        ("/nothing", None),
    ],
)
def test_paths(path, template):
    view = find_view(path, a_moment())
    assert (view and view.template) == template


def test_release_with_slashes_has_a_path_that_leads_back():
    name = "/usr/src/linux 6"
    release = ReleaseStatus(name, Health.HEALTHY, None)
    view = find_view(release_path(name), a_moment(a_server(releases=(release,))))
    assert view is not None
    assert view.facts["name"] == name


def test_overview_adds_up_servers_and_has_the_last_requests_first():
    recent = {number: ended() for number in range(1, 101)}
    moment = a_moment(a_server(7, queued=1, done=5), a_server(8, State.FAILED, done=2), recent=recent)
    view = find_view("/", moment)
    assert view is not None
    facts = view.facts
    assert (facts["serving"], facts["queued"], facts["done"], facts["hits"]) == (1, 1, 7, 75.0)
    assert facts["refusals"] == [("denied", 6)]
    numbers = [number for number, _ in facts["recent"]]
    assert (numbers[0], len(numbers)) == (100, 50)


def test_server_s_page_has_its_own_requests_alone():
    recent = {1: ended(server=7), 2: ended(server=8), 3: ended(server=7)}
    view = find_view("/server/7", a_moment(recent=recent, under_way={4: running(server=8)}))
    assert view is not None
    assert [number for number, _ in view.facts["recent"]] == [3, 1]
    assert view.facts["running"] == {}


def test_request_for_a_release_that_nobody_serves_has_a_page_of_that():
    moment = a_moment(recent={1: ended(release="5.5.5")})
    view = find_view("/release/5.5.5", moment)
    assert view is not None
    assert view.facts["served"] == []


def test_scripts_are_shown_with_the_release_that_their_label_means():
    served = tuple(ReleaseStatus(name, Health.HEALTHY, None) for name in ("6.1", "6.1 (x)"))
    counts = {"6.1": {"ok": 2}, "6.1 (x)": {"ok": 3}, "6.1 (x) (b)": {"fails": 4}, "6.1 (c)": {"ok": 5}}
    moment = a_moment(a_server(releases=served), scripts={**counts, "6.9": {"ok": 6}}, new_releases=("6.9",))
    overview = find_view("/", moment)
    assert overview is not None
    assert [(each.label, each.release) for each in overview.facts["scripts"]] == [
        ("6.1", "6.1"),
        ("6.1 (x)", "6.1 (x)"),
        ("6.1 (x) (b)", "6.1 (x)"),
        ("6.1 (c)", "6.1"),
        ("6.9", "6.9"),
    ]
    page = find_view("/release/6.1", moment)
    assert page is not None
    assert [(each.label, each.counts) for each in page.facts["scripts"]] == [
        ("6.1", {"ok": 2}),
        ("6.1 (c)", {"ok": 5}),
    ]
    # Nobody serves it, or has asked for it.
    new = find_view("/release/6.9", moment)
    assert new is not None
    assert [each.is_new for each in new.facts["scripts"]] == [True]


def test_problems_are_named():
    broken = ReleaseStatus("6.1", Health.UNHEALTHY, "no headers")
    moment = a_moment(
        a_server(7, State.FAILED, nickname="a", reason="its port is taken"),
        a_server(8, nickname="b", releases=(broken,)),
        a_server(9, State.STOPPING, nickname="c", wanted=Wanted.DOWN),
        refused=("/etc/x.conf:1: unknown variable",),
    )
    assert problems(moment.state) == (
        "Server a is failed: its port is taken",
        "Server b cannot compile for 6.1: no headers",
        "Configuration refused: /etc/x.conf:1: unknown variable",
    )


@pytest.mark.parametrize(
    ("host", "listen", "address"),
    [
        ("build1", (), "build1:7"),
        ("2001:db8::7", (), "'[2001:db8::7]:7'"),
        ("build1", ("192.0.2.1",), "192.0.2.1:7"),
    ],
)
def test_commands_have_the_address_at_which_the_server_listens(host, listen, address):
    settings = ServerSettings(port=7, tuning=Tuning({"listen": listen} if listen else {})).resolved(DEFAULTS)
    server = a_server(7, settings=settings)
    stopped = a_server(8, State.STOPPED)
    view = find_view("/add-client", a_moment(server, stopped, host=host))
    assert view is not None
    assert [(offer["address"], offer["releases"]) for offer in view.facts["offers"]] == [
        (address, ["6.1.0-test"])
    ]


def test_another_run_of_the_supervisor_has_another_name():
    assert run_of(a_moment(pid=1).state) != run_of(a_moment(pid=2).state)
