from __future__ import annotations

from pathlib import Path

import pytest

from stapsrv.errors import IdentityError
from stapsrv.identity.certificate import Identity
from stapsrv.identity.diagnosis import DamagedDatabase, diagnose

from .conftest import DAMAGES, locked, needs_permissions


def test_sound_database_has_no_defect(identity: Identity):
    assert diagnose(identity.directory) is None


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_means_lost_contents(identity: Identity, damage: str):
    DAMAGES[damage](identity.directory)
    error = diagnose(identity.directory)
    assert isinstance(error, DamagedDatabase)
    assert error.where == str(identity.directory)
    assert damage.split()[1] in error.problem


@pytest.mark.parametrize("name", ["cert9.db", "key4.db"])
def test_locked_database_is_not_lost(identity: Identity, name: str):
    with locked(identity.directory / name):
        error = diagnose(identity.directory)
    assert isinstance(error, IdentityError)
    assert not isinstance(error, DamagedDatabase)
    assert str(error) == (
        f"{identity.directory}: {name} cannot be read now (database is locked); "
        "end the program that uses it, and try again"
    )


@needs_permissions
def test_forbidden_database_is_not_lost(identity: Identity):
    (identity.directory / "key4.db").chmod(0)
    with pytest.raises(PermissionError):
        diagnose(identity.directory)


def test_path_with_odd_characters_works(identity: Identity, tmp_path: Path):
    odd = tmp_path / "50% of 'what'? #1"
    identity.directory.rename(odd)
    assert diagnose(odd) is None
