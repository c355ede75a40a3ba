"""The results of collections' checks, by release: for status, metrics and the web page."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import attrs

from stapsrv.scripts.matrix import Result, count_verdicts, release_order
from stapsrv.system.changes import ChangeCount


@attrs.define(eq=False)
class ScriptOutcomes:
    """The outcomes of one process; each change of them is one of ``changes``.

    Its values are replaced, never altered: a status has them as they were.
    """

    _changes: ChangeCount
    # By release and verdict, of the last check or renewal that there was for a release.
    counts: Mapping[str, Mapping[str, int]] = attrs.field(init=False, factory=dict)
    # Kernel releases that were installed since the start.
    arrived: tuple[str, ...] = attrs.field(init=False, default=())

    def note_results(self, results: Iterable[Result], *, everything: bool) -> None:
        """Count the results of a check, of which ``everything`` says that it was for all releases."""
        before = {} if everything else self.counts
        self._set({**before, **count_verdicts(results)})

    def keep(self, releases: Collection[str]) -> None:
        """Forget what checks came to for all other releases."""
        self._set({release: counts for release, counts in self.counts.items() if release in releases})

    def note_arrived(self, releases: tuple[str, ...]) -> None:
        """Note which releases were installed since the start and are there now."""
        if releases != self.arrived:
            self.arrived = releases
            self._changes.note()

    def _set(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        if counts != self.counts:
            self.counts = {release: counts[release] for release in sorted(counts, key=release_order)}
            self._changes.note()
