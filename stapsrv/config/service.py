"""The rows of the table (:mod:`stapsrv.config.table`) that are the service's own, of the global file."""

from __future__ import annotations

from pathlib import Path

from stapsrv.config.addresses import MetricsAddress, parse_host, parse_interfaces, parse_metrics_address
from stapsrv.config.kinds import SWITCH, Kind, LogFormat, parse_log_format
from stapsrv.config.setting import Group, Setting

LOG_FORMAT = Kind("classic|json|journal", parse_log_format)


class Service(Group):
    """The global file: where the service's files are, and what holds for all of it."""

    tunable = False

    config_path = Setting(
        "CONFIG_PATH",
        Kind("DIR", Path, is_path=True),
        "directory of the servers' configuration files",
        default=Path("/etc/stap-server/conf.d"),
        option="",
    )
    stat_path = Setting(
        "STAT_PATH",
        Kind("DIR", Path, is_path=True),
        "directory of status files and control sockets",
        default=Path("/var/run/stap-server"),
        option="",
    )
    log_file = Setting(
        "LOG_FILE",
        Kind("FILE", Path, is_path=True),
        "log of the service, and of servers that have none of their own; /dev/stdout and /dev/stderr are "
        "those that the supervisor was started with",
        default=Path("/var/log/stap-server/log"),
        option="--log",
    )
    log_format = Setting[LogFormat | None](
        "LOG_FORMAT",
        LOG_FORMAT,
        "how log lines look: classic, json, or journal (no file, but the systemd journal)",
        default_text="classic",
    )
    stap_user = Setting[str | None](
        "STAP_USER",
        Kind("USER"),
        "user that servers run as; a member of group stap-server",
        default_text="stap-server where root starts servers, else the user who does",
        option="",
        by_process=False,
    )
    metrics = Setting[MetricsAddress | None](
        "METRICS",
        Kind("ADDRESS", parse_metrics_address),
        "metrics and health over HTTP: off, PORT (on 127.0.0.1), ADDRESS:PORT, or unix:PATH",
        default_text="off",
    )
    mdns_enabled = Setting[bool | None](
        "MDNS",
        SWITCH,
        "whether servers are advertised on the network",
        default_text="yes",
        option="--no-mdns",
    )
    mdns_interfaces = Setting[tuple[str, ...] | None](
        "MDNS_INTERFACES",
        Kind("LIST", parse_interfaces),
        "names of interfaces or addresses to advertise on, with commas between",
        default_text="all that can multicast",
    )
    mdns_host = Setting[str | None](
        "MDNS_HOST", Kind("NAME", parse_host), "host name to advertise", default_text="this host's own"
    )
