"""Machine owner keys, and a stand-in for the kernel's program that signs with them."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
import structlog

from stapsrv.errors import IdentityError
from stapsrv.identity.key_types import KeyType, generate_key
from stapsrv.identity.mok import Mok, create_mok


def make_mok(directory: Path) -> Mok:
    """Make a key in ``directory``; takes 0.2 s and more."""

    async def make() -> Mok:
        log = structlog.wrap_logger(None, processors=[_drop])
        return await create_mok(directory, log=log, trial=no_trial)

    return anyio.run(make)


def ml_dsa() -> KeyType:
    """Return a kind of key besides RSA; a test is skipped where the libraries know none."""
    try:
        generate_key(KeyType.ML_DSA_65, rsa_bits=0)
    except IdentityError as exc:
        pytest.skip(str(exc))
    return KeyType.ML_DSA_65


async def no_trial(_key: Mok) -> None:
    """Stand in for the trial that a key of RSA does not have to pass."""
    raise AssertionError


def make_sign_file(build_tree: Path, script: str = 'echo "signed $*" >>"$4"') -> Path:
    """Write a ``scripts/sign-file`` into a build tree; by default it appends its arguments to the module."""
    program = build_tree / "scripts" / "sign-file"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


def _drop(*_event: object) -> object:
    raise structlog.DropEvent
