"""The table of settings: files, options, JSON, help, manual, completion and docs derive from it.

To add a setting, add a row to its class and use it, as ``settings.limits.NAME`` for one of :class:`Limits`.
Where a row's class says it may stand:

========================  ===========  =============  ================  ===============
class                     global file  server's file  ``stap-serverd``  ``stap-server``
========================  ===========  =============  ================  ===============
:class:`Service`          yes                         yes
:class:`Description`                   yes            yes               yes
:class:`NetworkAccess`    yes          yes            yes               yes
:class:`Limits`           yes          yes            yes               yes
:class:`Compilation`      yes          yes            yes               yes
:class:`SharedLimits`     yes                         yes
========================  ===========  =============  ================  ===============

What is set of the last four is a :class:`~stapsrv.config.tuning.Tuning`, so that one source can be laid over
another. The other two are the fields of :class:`~stapsrv.config.global_settings.GlobalSettings` and
:class:`~stapsrv.config.settings.ServerSettings`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from stapsrv.config import addresses
from stapsrv.config.compilation import Compilation
from stapsrv.config.kinds import (
    ABSOLUTE_PATH,
    LOG_FORMAT,
    SWITCH,
    Kind,
    choice,
    count,
    duration,
    size,
)
from stapsrv.config.setting import Group, Setting

_MEBI, _GIBI = 1024**2, 1024**3
_DIRECTORY = Kind("DIR", is_path=True)
_DIRECTORY_PATH = Kind("DIR", Path, is_path=True)
_FILE_PATH = Kind("FILE", Path, is_path=True)
_USER = Kind("USER")
_NO_LEAST = duration(least_s=0.0)
_PRIORITY = count("a priority", least=0, most=19)
_GRACE = duration(least_s=0.0, most_s=3600.0)
_NETWORK = Kind("NETWORK", addresses.parse_network)
_REQUEST_BYTES = Kind("BYTES", count("a number of bytes").parse)


class Service(Group):
    """The global file: where the service's files are, and what holds for all of it."""

    tunable = False

    config_path = Setting(
        "CONFIG_PATH",
        _DIRECTORY_PATH,
        "directory of the servers' configuration files",
        default=Path("/etc/stap-server/conf.d"),
        option="",
    )
    stat_path = Setting(
        "STAT_PATH",
        _DIRECTORY_PATH,
        "directory of status files and control sockets",
        default=Path("/var/run/stap-server"),
        option="",
    )
    log_file = Setting(
        "LOG_FILE",
        _FILE_PATH,
        "log of the service, and of servers that have none of their own; /dev/stdout and /dev/stderr are "
        "those that the supervisor was started with",
        default=Path("/var/log/stap-server/log"),
        option="--log",
    )
    log_format = Setting[Any](
        "LOG_FORMAT",
        LOG_FORMAT,
        "how log lines look: classic, json, or journal (no file, but the systemd journal)",
        default_text="classic",
    )
    stap_user = Setting[Any](
        "STAP_USER",
        _USER,
        "user that servers run as; a member of group stap-server",
        default_text="stap-server where root starts servers, else the user who does",
        option="",
        by_process=False,
    )
    metrics = Setting[Any](
        "METRICS",
        Kind("ADDRESS", addresses.parse_metrics_address),
        "metrics and health over HTTP: off, PORT (on 127.0.0.1), ADDRESS:PORT, or unix:PATH",
        default_text="off",
    )
    web = Setting(
        "WEB",
        SWITCH,
        "whether METRICS has the web page, too, at /",
        default=False,
    )
    web_token_file = Setting[Any](
        "WEB_TOKEN_FILE",
        _FILE_PATH,
        "file of mode 0600 whose first line is the token that the web page asks for",
        default_text="the credential stap-server-web-token, if there is one",
    )
    mdns_enabled = Setting[Any](
        "MDNS",
        SWITCH,
        "whether servers are advertised on the network",
        default_text="yes",
        option="--no-mdns",
    )
    mdns_interfaces = Setting[Any](
        "MDNS_INTERFACES",
        Kind("LIST", addresses.parse_interfaces),
        "names of interfaces or addresses to advertise on, with commas between",
        default_text="all that can multicast",
    )
    mdns_host = Setting[Any](
        "MDNS_HOST",
        Kind("NAME", addresses.parse_host),
        "host name to advertise",
        default_text="this host's own",
    )


class Description(Group):
    """A server's file: what the server is, as SystemTap's own stap-server has it."""

    tunable = False
    identifies = True

    nickname = Setting[str | None](
        "NICKNAME",
        Kind("NICKNAME"),
        "the name that people and commands call it by",
        default_text="its id",
        option="-n",
        identifies=False,
    )
    releases = Setting[Any](
        "RELEASE",
        Kind("RELEASE"),
        "a kernel release, or an absolute build tree",
        default_text="the running kernel's",
        option="-r",
        array=True,
    )
    arch = Setting[Any](
        "ARCH", Kind("ARCH"), "the target architecture", default_text="this host's", option="-a"
    )
    user = Setting[Any](
        "USER", _USER, "the user that it runs as", default_text="STAP_USER", option="-u", by_process=False
    )
    include = Setting[Any]("INCLUDE", _DIRECTORY, "a further directory with tapsets", option="-I", array=True)
    runtime = Setting[Any](
        "RUNTIME", _DIRECTORY, "SystemTap's runtime", default_text="the installed one", option="-R"
    )
    build = Setting[Any](
        "BUILD", Kind("OPTION"), "an option for the make that builds modules", option="-B", array=True
    )
    define = Setting[Any](
        "DEFINE", Kind("NAME=VALUE"), "a definition for the C preprocessor", option="-D", array=True
    )
    port = Setting(
        "PORT",
        count("a port number", least=0, most=65_535, note=" (0: the kernel picks one)"),
        "TCP port; 0: any free one, and the same one again after a restart",
        default=0,
        option="--port",
    )
    log = Setting[Any]("LOG", _FILE_PATH, "log file", default_text="LOG_FILE", option="--log")
    log_format = Setting[Any](
        "LOG_FORMAT", LOG_FORMAT, "how its log lines look", default_text="as in the global file", option=""
    )
    ssl = Setting[Any](
        "SSL",
        _DIRECTORY_PATH,
        "certificate database",
        default_text="~/.systemtap/ssl/server of its user",
        option="--ssl",
    )
    max_threads = Setting[Any](
        "MAXTHREADS",
        count("a number of threads", least=0, note=" (0: one request at a time)"),
        "requests compiled at the same time; 0: one at a time",
        default_text="the number of cores",
        option="--max-threads",
    )
    max_request_bytes = Setting(
        "MAXREQSIZE",
        _REQUEST_BYTES,
        "largest request in bytes, uncompressed",
        default=50_000,
        option="--max-request-size",
    )
    max_compressed_bytes = Setting(
        "MAXCOMPRESSEDREQ",
        _REQUEST_BYTES,
        "largest request in bytes, as sent",
        default=5_000,
        option="--max-compressed-request",
    )


class NetworkAccess(Group):
    """The addresses that a server listens on, and the clients that it admits."""

    listen = Setting[tuple[str, ...]](
        "LISTEN",
        Kind("ADDRESS", addresses.parse_listen_address),
        "an address to listen on, in place of all that this host has",
        array=True,
        identifies=True,
    )
    allow = Setting[tuple[str, ...]](
        "ALLOW", _NETWORK, "a network whose clients may use the server, in place of all clients", array=True
    )
    deny = Setting[tuple[str, ...]](
        "DENY", _NETWORK, "a network whose clients may not use the server, whatever is allowed", array=True
    )


class Limits(Group):
    """The bounds in time and size of all that a peer or a compile could stretch.

    Durations are in seconds of the event loop's clock, sizes in bytes.
    """

    # A cold compile takes 10 to 15 s on a small host and some scripts minutes, so its time is generous; all
    # that depends on a peer is short.

    connections = Setting(
        "MAX_CONNECTIONS",
        count("a number of connections"),
        "open connections; more are reset before the handshake, so that clients come back",
        default=512,
    )
    connections_per_address = Setting(
        "MAX_CONNECTIONS_PER_ADDRESS",
        count("a number of connections"),
        "open connections from one address, or one IPv6 network of 64 bits; more are reset, too",
        default=128,
    )
    handshake_s = Setting(
        "HANDSHAKE_TIMEOUT", duration(), "how long a client may take for the TLS handshake", default=10.0
    )
    request_s = Setting(
        "REQUEST_TIMEOUT", duration(), "how long a client may take to send its request", default=30.0
    )
    queue_length = Setting(
        "QUEUE_LENGTH",
        count("a number of requests", least=0),
        "requests that may wait for a worker; more connections are reset before the handshake",
        default=256,
    )
    queue_s = Setting("QUEUE_TIMEOUT", duration(), "how long a request may wait for a worker", default=300.0)
    compile_s = Setting("COMPILE_TIMEOUT", duration(), "how long stap may take for a request", default=600.0)
    send_s = Setting(
        "SEND_TIMEOUT", duration(), "how long a client may take to receive its answer", default=60.0
    )
    output_bytes = Setting(
        "MAX_OUTPUT_SIZE",
        size(),
        "what stap may print for a request, on each of standard output and standard error",
        default=16 * _MEBI,
    )
    answer_bytes = Setting(
        "MAX_ANSWER_SIZE", size(), "all files of an answer together, before compression", default=64 * _MEBI
    )
    temp_bytes = Setting("MAX_TEMP_SIZE", size(), "temporary files of a request together", default=_GIBI)
    result_cache = Setting(
        "RESULT_CACHE",
        SWITCH,
        "answer a request whose result is cached without compiling it again",
        default=True,
    )
    prepared = Setting(
        "PREPARED",
        SWITCH,
        "build new modules by commands that are known from a build of the server's own, without make",
        default=True,
    )
    drain_s = Setting(
        "DRAIN_TIMEOUT", _GRACE, "how long a server that stops lets outstanding requests finish", default=5.0
    )
    kill_grace_s = Setting(
        "KILL_GRACE",
        _GRACE,
        "how long a compile that is ended has between the signals TERM and KILL",
        default=2.0,
    )
    cpu_s = Setting(
        "LIMIT_CPU", _NO_LEAST, "processor time of each process of a compile; 0: no limit", default=600.0
    )
    memory_bytes = Setting(
        "LIMIT_MEMORY",
        size(least=0),
        "address space of each process of a compile, and memory of all in a control group; 0: no limit",
        default=8 * _GIBI,
    )
    file_bytes = Setting(
        "LIMIT_FILE", size(least=0), "size of each file that a compile writes; 0: no limit", default=2 * _GIBI
    )
    processes = Setting(
        "LIMIT_PROCESSES",
        count("a number of processes", least=0),
        "processes of a compile at the same time; 0: no limit",
        # stap has make work on one job at a time where the limit is 30 a core or less.
        default=max(512, 32 * (os.cpu_count() or 1)),
        default_text="512, or 32 for each core",
    )
    cores = Setting(
        "LIMIT_CORES",
        count("a number of cores", least=0),
        "cores that a compile may use up at the same time, in a control group; 0: no limit",
        default=0,
    )
    nice = Setting("NICE", _PRIORITY, "how far compiles stand behind other programs", default=5)
    sandbox_read = Setting[tuple[str, ...]](
        "SANDBOX_READ", ABSOLUTE_PATH, "a further file or directory that compiles may read", array=True
    )
    sandbox_write = Setting[tuple[str, ...]](
        "SANDBOX_WRITE", ABSOLUTE_PATH, "a further directory that compiles may change", array=True
    )
    warmup = Setting(
        "WARMUP",
        SWITCH,
        "compile for each release once after the start, in the background, so that no first client waits",
        default=True,
    )


class SharedLimits(Group):
    """The settings that all servers of a supervisor share."""

    total_compiles = Setting[int | None](
        "MAX_COMPILES",
        count("a number of compiles"),
        "requests compiled at the same time by all servers together",
        default_text="the number of cores",
    )
    total_connections = Setting[int | None](
        "MAX_TOTAL_CONNECTIONS",
        count("a number of connections"),
        "open connections to all servers together",
        default_text="4096, or what the limit of open files allows",
    )
    total_temp_bytes = Setting(
        "MAX_TOTAL_TEMP_SIZE",
        size(),
        "temporary files of all requests to all servers together; beyond it the largest request is ended",
        default=4 * _GIBI,
    )
    total_request_bytes = Setting(
        "MAX_TOTAL_REQUEST_MEMORY",
        size(least=2 * _MEBI),
        "memory for requests and answers of all servers together; beyond it requests wait",
        default=_GIBI,
    )
    temp_in_memory = Setting(
        "TEMP_IN_MEMORY",
        SWITCH,
        "compile in memory where TMPDIR is not set and twice MAX_TOTAL_TEMP_SIZE is free",
        default=True,
    )
    result_cache_bytes = Setting(
        "RESULT_CACHE_SIZE", size(least=_MEBI), "all cached results together, on disk", default=256 * _MEBI
    )
    result_cache_s = Setting(
        "RESULT_CACHE_AGE",
        duration(least_s=1.0, most_s=366 * 86_400.0),
        "how long a result is kept",
        default=30 * 86_400.0,
    )
    sandbox = Setting(
        "SANDBOX",
        choice("auto", "bubblewrap", "landlock", "off", gone={"unshare": "auto or bubblewrap"}),
        "how compiles are kept from the rest of the host; auto: the first way that works",
        default="auto",
    )


# What may stand in a server's file, and in the global one.
SERVER_SETTINGS = (*Description.rows, *NetworkAccess.rows, *Limits.rows, *Compilation.rows)
TUNABLES = (*NetworkAccess.rows, *Limits.rows, *Compilation.rows, *SharedLimits.rows)
GLOBAL_SETTINGS = (*Service.rows, *TUNABLES)
# Variables of the last release that have no effect any more: accepted, with a warning, for one release.
RETIRED = ("STANDBY",)
