"""A collection: the files of a directory as scripts and their descriptions. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping

import attrs

from stapsrv.scripts.meta import parse_meta
from stapsrv.scripts.script import Script
from stapsrv.scripts.sidecar import parse_sidecar

SCRIPT, SIDECAR, META = ".stp", ".toml", ".meta"
TAPSETS = "tapset"
"""The name of a directory whose files are no scripts, but tapsets of some."""


@attrs.frozen
class Collection:
    """The scripts of a directory, by name; ``fault`` says why it could not be read."""

    directory: str
    scripts: tuple[Script, ...] = ()
    fault: str | None = None


@attrs.frozen
class Unreadable:
    """Stands for the content of a file that cannot be read."""

    reason: str


def make_collection(directory: str, files: Mapping[str, bytes | Unreadable]) -> Collection:
    """Return the collection of a directory, free of links, by the content of its files by path below it."""
    scripts = [_script(directory, name, files) for name in sorted(files) if name.endswith(SCRIPT)]
    return Collection(directory, tuple(scripts))


def _script(directory: str, name: str, files: Mapping[str, bytes | Unreadable]) -> Script:
    script = Script(collection=directory, name=name, path=posixpath.join(directory, name))
    source = files[name]
    if isinstance(source, Unreadable):
        return attrs.evolve(script, fault=f"{name}: {source.reason}")
    try:
        source.decode("utf-8")
    except UnicodeDecodeError as exc:
        return attrs.evolve(script, fault=f"{name}: byte {exc.start} is not UTF-8")
    script = attrs.evolve(script, source=source)
    stem = name.removesuffix(SCRIPT)
    # A sidecar beside a file of upstream's was written on purpose: it goes before.
    for described, read in ((stem + SIDECAR, _with_sidecar), (stem + META, _with_meta)):
        content = files.get(described)
        if content is not None:
            try:
                return _checked(read(script, _readable(content)))
            except ValueError as exc:
                return attrs.evolve(script, fault=f"{described}: {exc}")
    return script


def _readable(content: bytes | Unreadable) -> bytes:
    if isinstance(content, Unreadable):
        raise ValueError(content.reason)  # noqa: TRY004 - of what a file says
    return content


def _checked(script: Script) -> Script:
    parsed = script.parsed
    if parsed.fault is not None:
        raise ValueError(f"options: {parsed.fault}")
    if parsed.operands:
        word = parsed.operands[0].decode("utf-8", "replace")
        raise ValueError(f"options: {word!r} is no option; see arguments")
    return script


def _with_sidecar(script: Script, content: bytes) -> Script:
    return attrs.evolve(script, **parse_sidecar(content))


def _with_meta(script: Script, content: bytes) -> Script:
    found = parse_meta(content.decode("utf-8", "surrogateescape"), posixpath.basename(script.name))
    return script if found is None else attrs.evolve(script, options=found.options, arguments=found.arguments)
