"""The command line of ``stap-serverd``."""

from __future__ import annotations

from pathlib import Path

import pytest

from stapsrv.config.kinds import LogFormat
from stapsrv.config.settings import ServerSettings
from stapsrv.daemon_options import DaemonOptions, parse_arguments
from stapsrv.errors import UsageError


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        ("-r6.1 -r /tree", ServerSettings(releases=("6.1", "/tree"))),
        ("-a i686", ServerSettings(arch="i386")),
        ("-B -j4 -BV=1 -D-x -D A=-r", ServerSettings(build=("-j4", "V=1"), define=("-x", "A=-r"))),
        ("-I /a -I/b -R /r -k", ServerSettings(include=("/a", "/b"), runtime="/r", keep_temporary=True)),
        ("--port 5001 --max-threads=0", ServerSettings(port=5001, max_threads=0)),
        ("--log /l --ssl=/s", ServerSettings(log=Path("/l"), ssl=Path("/s"))),
        (
            "--max-request-size=7 --max-compressed-request 8",
            ServerSettings(max_request_bytes=7, max_compressed_bytes=8),
        ),
    ],
)
def test_options_attached_and_separate(line, settings):
    assert parse_arguments(line.split()) == DaemonOptions(server=settings, log=settings.log)


@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("", DaemonOptions()),
        ("--log /l --backend trio", DaemonOptions(log=Path("/l"), backend="trio")),
        ("-c /a -c/b", DaemonOptions(config_file=Path("/b"))),
        (
            "--no-resume --on-demand --max-compiles 3",
            DaemonOptions(resume=False, on_demand=True, service={"total_compiles": 3}),
        ),
        ("--no-mdns", DaemonOptions(service={"mdns_enabled": False})),
        (
            "--mdns-interfaces eth0,192.0.2.1 --mdns-host=build.local",
            DaemonOptions(service={"mdns_interfaces": ("eth0", "192.0.2.1"), "mdns_host": "build"}),
        ),
    ],
)
def test_without_a_server_the_configured_ones_are_hosted(line, options):
    assert parse_arguments(line.split()) == options


@pytest.mark.parametrize(
    ("line", "option"),
    [("-c /a -r 6.1", "-c"), ("--on-demand --port 1", "--on-demand"), ("-k --no-resume", "--no-resume")],
)
def test_one_server_or_the_configured_ones(line, option):
    with pytest.raises(UsageError) as caught:
        parse_arguments(line.split())
    assert str(caught.value) == (
        f"a server is described, and {option} is for the configured ones; leave one of the two out"
    )


def test_relative_paths_become_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    server = parse_arguments(["--log", "l", "--ssl", "s", "-I", "t", "-R", "r"]).server
    assert (server.log, server.ssl) == (tmp_path / "l", tmp_path / "s")
    assert (server.include, server.runtime) == ((f"{tmp_path}/t",), f"{tmp_path}/r")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--nonsense", "unknown option '--nonsense'; did you mean --no-resume?"),
        ("-x", "unknown option '-x'; see stap-serverd --help"),
        ("operand", "unexpected argument 'operand'; see stap-serverd --help"),
        (
            "--port 65536",
            "--port: expected a port number from 0 to 65535 (0: the kernel picks one), not '65536'",
        ),
        ("--port=-1", "--port: expected a port number from 0 to 65535 (0: the kernel picks one), not '-1'"),
        ("--port ٣", "--port: expected a port number from 0 to 65535 (0: the kernel picks one), not '٣'"),
        (
            "--max-threads many",
            "--max-threads: expected a number of threads, 0 or more (0: one request at a time), not 'many'",
        ),
        ("--max-request-size 0", "--max-request-size: expected a number of bytes, 1 or more, not '0'"),
        ("-r", "-r: needs a value"),
        ("--log", "--log: needs a value"),
        ("--mdns-host a.b", "--mdns-host: expected a host name of up to 63 letters"),
        ("--mdns-interfaces=a/b", "--mdns-interfaces: expected names of interfaces or IP"),
        ("--log-format xml", "--log-format: expected classic, json or journal, not 'xml'"),
        ("--max 3", "ambiguous option: --max could match"),
    ],
)
def test_mistake_is_one_line_that_names_the_option(line, text):
    with pytest.raises(UsageError) as caught:
        parse_arguments(line.split())
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


def test_retired_option_is_accepted_with_a_warning():
    warning = "--standby has no effect any more and can be removed"
    assert parse_arguments(["--standby", "2"]) == DaemonOptions(warnings=(warning,))
    assert parse_arguments(["--standby=2", "-r", "6.1"]).server == ServerSettings(releases=("6.1",))


def test_log_format_applies_to_daemon_and_server():
    options = parse_arguments(["-r", "6.1", "--log-format", "JSON"])
    assert options.server == ServerSettings(releases=("6.1",), log_format=LogFormat.JSON)
    assert options.service == {"log_format": LogFormat.JSON}


def test_mdns_options_apply_to_the_one_server():
    options = parse_arguments(["-r", "6.1", "--no-mdns", "--mdns-host", "build"])
    assert options.server == ServerSettings(releases=("6.1",))
    assert options.service == {"mdns_enabled": False, "mdns_host": "build"}
