"""What the variables of the configuration files mean, where no table says it."""

from __future__ import annotations

from stapsrv.config.files import SERVER_VARIABLES
from stapsrv.config.global_settings import GLOBAL_VARIABLES
from stapsrv.config.tunables import TUNABLES

GLOBAL = {
    "CONFIG_PATH": "directory of the servers' configuration files (/etc/stap-server/conf.d)",
    "STAT_PATH": "directory of status files and control sockets (/var/run/stap-server)",
    "LOG_FILE": "log of the service, and of servers that have none of their own (/var/log/stap-server/log); "
    "/dev/stdout and /dev/stderr are those that the supervisor was started with",
    "LOG_FORMAT": "how log lines look: classic, json, or journal",
    "METRICS": "where metrics and health are told over HTTP: off, PORT, IP:PORT or unix:PATH (off)",
    "STAP_USER": "whom servers run as (stap-server where root starts them, else whoever does)",
    "MDNS": "whether servers are advertised on the network: yes or no",
    "MDNS_INTERFACES": "names of interfaces or addresses to advertise on, with commas between (all)",
    "MDNS_HOST": "host name to advertise (this host's own)",
}
SERVER = {
    "ARCH": "target architecture (this host's)",
    "USER": "whom it runs as",
    "BUILD": "options for the make that builds modules",
    "INCLUDE": "further directories with tapsets",
    "DEFINE": "definitions for the C preprocessor",
    "NICKNAME": "what it is called (its id)",
    "RUNTIME": "SystemTap's runtime (the installed one)",
    "RELEASE": "kernel releases, or absolute build trees (the running kernel's)",
    "LOG": "its log (LOG_FILE)",
    "PORT": "TCP port (0: one that the kernel picks, and the same one again after a restart)",
    "SSL": "certificate database (~/.systemtap/ssl/server of its user)",
    "MAXTHREADS": "requests compiled at the same time; 0: one at a time (the number of cores)",
    "MAXREQSIZE": "largest request in bytes, uncompressed (50000)",
    "MAXCOMPRESSEDREQ": "largest request in bytes, as sent (5000)",
    "LOG_FORMAT": "how its log lines look (as in the global file)",
}


def described(kind: str) -> dict[str, str]:
    """Return each variable of a kind of file, and what it means.

    Args:
        kind: ``global``, ``server``, or ``tunable`` for those that stand in both.
    """
    tunables = {
        row.variable: f"{row.help}{f' ({row.default_text})' if row.default_text else ''}" for row in TUNABLES
    }
    if kind == "tunable":
        return tunables
    variables, texts = {"global": (GLOBAL_VARIABLES, GLOBAL), "server": (SERVER_VARIABLES, SERVER)}[kind]
    names = [variable.name for variable in variables if variable.name not in tunables]
    return {name: texts.get(name, "") for name in names}
