"""What stap keeps in its own cache beside modules, and does not notice that it is out of date.

For ``@cast`` with a header and for tracepoints stap compiles that header, and keeps what it has found out
about its types. It finds that again by the header's name, at most by the times of that one file, whatever
the headers say that are included there. The offsets that it then works out stand in the C of a module.

Seen with SystemTap 4.8 (``*_hash.log`` in its cache).
"""

from __future__ import annotations

from pathlib import Path

_TYPES = ("typequery_*", "tracequery_*")


def forget_types(cache: Path) -> None:
    """Remove what stap's cache has of the types in headers; stap finds it out again when it needs it.

    Args:
        cache: stap's, which need not exist.

    Raises:
        OSError: something could not be removed.
    """
    for names in _TYPES:
        for path in cache.glob(f"*/{names}"):
            path.unlink(missing_ok=True)
