"""Turns what a page shows into HTML; every value is escaped, by the templates' one rule."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import jinja2

from stapsrv.observe.web.pages import Moment, View, hit_percent, release_path, run_of

# Blocks with such names are the parts of a page that change while one looks at it.
_LIVE = "live_"
_BASE = "base.html"
_NONE = "\N{EN DASH}"
_MINUTE_S, _HOUR_S = 60, 3600
_EXACT_S = 10
_KIBI = 1024


class Renderer:
    """The templates."""

    def __init__(self) -> None:
        self._templates = jinja2.Environment(
            loader=jinja2.PackageLoader("stapsrv.observe.web"),
            # Not by the file's name: whatever is shown is escaped.
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.filters |= {
            "seconds": seconds,
            "bytes": in_bytes,
            "moment": moment_of,
            "percent": percent,
            "release_path": release_path,
            "hit_percent": hit_percent,
        }
        self._templates.globals["days_until"] = days_until
        self._templates.globals["ui"] = self._templates.get_template("macros.html").module

    def page(self, view: View, moment: Moment | None = None) -> bytes:
        """Return a whole page; one without a moment shows nothing of the supervisor."""
        return self._templates.get_template(view.template).render(_facts(view, moment)).encode()

    def regions(self, view: View, moment: Moment) -> dict[str, str]:
        """Return the parts that change, by the names of their elements' ``data-live``."""
        template = self._templates.get_template(view.template)
        blocks = {**self._templates.get_template(_BASE).blocks, **template.blocks}
        context = template.new_context(_facts(view, moment))
        return {
            name: "".join(block(context)).strip() for name, block in blocks.items() if name.startswith(_LIVE)
        }


def seconds(value: float | None) -> str:
    """Return a duration for people."""
    if value is None:
        return _NONE
    if value < _EXACT_S:
        return f"{value:.2f} s"
    whole = int(value)
    if whole < _MINUTE_S:
        return f"{whole} s"
    if whole < _HOUR_S:
        return f"{whole // _MINUTE_S} min {whole % _MINUTE_S} s"
    return f"{whole // _HOUR_S} h {whole % _HOUR_S // _MINUTE_S} min"


def days_until(until: datetime | None, now: datetime) -> str:
    """Return how many days there are left."""
    return _NONE if until is None else f"{(until - now).days} days"


def moment_of(value: datetime | None) -> str:
    """Return a date and time for people."""
    return _NONE if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def percent(value: float | None) -> str:
    """Return a share for people."""
    return _NONE if value is None else f"{value:.0f} %"


def in_bytes(value: int) -> str:
    """Return a size for people."""
    if value < _KIBI:
        return f"{value} B"
    return f"{value / _KIBI:.1f} KiB" if value < _KIBI**2 else f"{value / _KIBI**2:.1f} MiB"


def _facts(view: View, moment: Moment | None) -> dict[str, Any]:
    if moment is None:
        return dict(view.facts)
    known = {
        "now": moment.at,
        "host": moment.host,
        "supervisor": moment.state.supervisor,
        "names": {server.id: server.nickname for server in moment.state.servers.values()},
        "run": run_of(moment.state),
    }
    return known | dict(view.facts)
