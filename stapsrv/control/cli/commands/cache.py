"""``stap-server cache``: inspects, verifies and clears results and plans (docs/cache.md).

It works on the directory, whether a server runs or not: removed results are gone for running servers at once.
Only its owner can, and root, who becomes the owner for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from stapsrv.compile.cache.disk import RESULTS_DIRECTORY, DiskStore
from stapsrv.compile.engine.prepared.store import all_stores
from stapsrv.control.cli.commands.common import Owner, VerbParser, guarded
from stapsrv.control.cli.console import encode_document
from stapsrv.errors import ConfigError
from stapsrv.identity.certificate import systemtap_directory

_PROGRAM = "stap-server cache"
_UNBOUNDED = 1 << 62


@guarded(_PROGRAM)
def main(argv: Sequence[str]) -> int:
    """Run ``stap-server cache``; return the exit status."""
    given = _parser().parse_args(argv)
    owner = Owner.find(given.user, os.environ)
    if os.geteuid() == 0 and owner.name != "root":
        options = ["--json"] if given.json else []
        return owner.run("cache", given.verb, *options)
    systemtap = systemtap_directory(owner.environ)
    directory = systemtap / RESULTS_DIRECTORY
    try:
        found = _carry_out(given.verb, directory, systemtap)
    except OSError as exc:
        raise ConfigError(
            f"cannot be read or changed ({exc.strerror})",
            where=str(directory),
            remedy=f"run this as {owner.name}, or as root",
        ) from exc
    if given.json:
        sys.stdout.write(encode_document({"directory": str(directory), **found}))
    else:
        counted = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in found.items())
        sys.stdout.write(f"{directory}: {counted}\n")
    return 1 if found.get("damaged") else 0


def _carry_out(verb: str, directory: Path, systemtap: Path) -> Mapping[str, int]:
    # Without limits: a command that only counts must not expire anything.
    store = DiskStore(directory, max_bytes=_UNBOUNDED, max_age_s=float(_UNBOUNDED))
    match verb:
        case "clear":
            removed = sum(plans.clear() for plans in all_stores(systemtap))
            return {"removed": store.clear(), "prepared_starts": removed}
        case "verify":
            verified = store.verify()
            return {"sound": verified.sound, "damaged": verified.damaged}
        case _:
            statistics = store.statistics()
            found = {"results": statistics.entries, "bytes": statistics.stored_bytes}
            starts = [plans.statistics() for plans in all_stores(systemtap)]
            return found | {
                "prepared_starts": sum(count for count, _ in starts),
                "prepared_bytes": sum(size for _, size in starts),
            }


def _parser() -> VerbParser:
    parser = VerbParser(
        _PROGRAM,
        description="Inspect, verify or clear the result cache of servers.",
        example="stats --json",
        whose="whose results",
    )
    parser.common.add_argument("--json", action="store_true", help="print a JSON object")
    add = parser.add_verb
    add("stats", "count the results and the prepared starts, and what they take of the disk")
    add("clear", "remove all results and plans; running servers compile anew")
    add("verify", "check every result, and remove damaged ones")
    return parser
