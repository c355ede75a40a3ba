"""The command line of stap-farm."""

from __future__ import annotations

from pathlib import Path

import pytest

from stapsrv.config.addresses import parse_farm_address
from stapsrv.config.tuning import Tuning
from stapsrv.errors import UsageError
from stapsrv.farm.options import LISTEN, parse_arguments, releases_of, tuning_of, with_farm

FILES = ["--ca", "ca.pem", "--cert", "/etc/node.pem", "--key", "node.key"]


def test_worker_has_its_node_what_it_offers_and_its_limits():
    words = [
        "--scheduler",
        "tls://farm:8786",
        "--slots=3",
        "--port",
        "8790",
        "--name",
        "n1",
        "-r",
        "6.1.0",
        "-r6.12.0",
        "-I",
        "tapsets",
    ]
    given, values = parse_arguments(["worker", *words, *FILES, "--limit-cpu", "1m", "--sandbox", "landlock"])
    assert given.command == "worker"
    assert str(values.pop("scheduler")) == "tls://farm:8786"
    assert values == {
        "slots": 3,
        "port": 8790,
        "name": "n1",
        "releases": ("6.1.0", "6.12.0"),
        "include": (str(Path("tapsets").absolute()),),
        "ca": Path("ca.pem").absolute(),
        "cert": Path("/etc/node.pem"),
        "key": Path("node.key").absolute(),
        "cpu_s": 60.0,
        "sandbox": "landlock",
    }


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "the following arguments are required: COMMAND; see stap-farm --help"),
        (["work"], r"argument COMMAND: invalid choice: 'work'"),
        (["worker", "--listen", "tls://farm:1"], "unrecognized arguments: --listen tls://farm:1"),
        (["worker", "--slots", "0"], "--slots: expected a number of compiles, 1 or more, not '0'"),
        (["worker", "--scheduler", "farm"], "--scheduler: expected tls://HOST:PORT, with an IPv6 address in"),
        (
            ["worker", "--scheduler", "tcp://farm:1"],
            "--scheduler: expected tls://HOST:PORT, since tcp:// without",
        ),
        (["worker", "--max-connections", "3"], "unrecognized arguments: --max-connections 3"),
        (["scheduler", "--key", ""], "--key: needs a value"),
        (
            ["scheduler", "--listen"],
            "argument --listen: expected one argument; see stap-farm scheduler --help",
        ),
        (["ca"], "the following arguments are required: VERB; see stap-farm ca --help"),
        (["ca", "issue"], "the following arguments are required: NAME; see stap-farm ca issue --help"),
    ],
)
def test_wrong_command_line_is_one_line(words, problem):
    with pytest.raises(UsageError) as caught:
        parse_arguments(words)
    assert str(caught.value).startswith(problem)
    assert "\n" not in str(caught.value)


def test_options_go_before_the_host_s_files_and_servers_limits_do_not_count():
    base = Tuning({"cpu_s": 1.0, "memory_bytes": 2, "connections": 3, "result_cache_bytes": 4})
    assert tuning_of({"cpu_s": 9.0, "slots": 3}, base) == {"cpu_s": 9.0, "memory_bytes": 2}


@pytest.mark.parametrize(
    ("named", "offered"),
    [({}, ()), ({"releases": ("installed",)}, ()), ({"releases": ("a", "b", "a")}, ("a", "b"))],
)
def test_all_releases_are_offered_unless_some_are_named(named, offered):
    assert releases_of(named) == offered


def test_authority_s_words():
    given, _values = parse_arguments(["ca", "issue", "n1", "/farm", "--host", "a", "--host", "10.0.0.7"])
    assert (given.name, given.directory, given.hosts) == ("n1", "/farm", ["a", "10.0.0.7"])


HOST = Tuning({"farm": "tls://farm:1", "farm_ca": "/ca", "farm_cert": "/cert", "farm_key": "/key"})
OTHER = {"ca": Path("/a"), "cert": Path("/b"), "key": Path("/c")}


def test_host_s_settings_stand_in_for_options():
    assert with_farm({}, HOST) == {
        "scheduler": parse_farm_address("tls://farm:1"),
        "ca": "/ca",
        "cert": "/cert",
        "key": "/key",
    }
    assert with_farm({"slots": 3}, Tuning()) == {"slots": 3}
    assert with_farm({"scheduler": LISTEN, **OTHER}, HOST) == {"scheduler": LISTEN, **OTHER}


def test_certificates_are_of_one_source():
    with pytest.raises(
        UsageError, match=r"^--cert --key: the farm's authority, a certificate and its key belong"
    ):
        with_farm({"ca": Path("/a")}, HOST)
    with pytest.raises(UsageError, match=r"^--key: the farm's authority, a certificate and its key belong"):
        with_farm({}, Tuning({name: HOST[name] for name in ("farm_ca", "farm_cert")}))


def test_farm_of_this_host_alone_has_no_certificates():
    plain = parse_farm_address("tcp://127.0.0.1:1")
    assert with_farm({"scheduler": plain}, HOST) == {"scheduler": plain}
    assert "ca" not in with_farm({"listen": plain}, HOST)
    assert with_farm({"listen": LISTEN}, HOST)["ca"] == "/ca"
