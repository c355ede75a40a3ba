"""The words for refusals are those that operators find in the documentation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from stapsrv.rejection import RejectReason

LIMITS = Path(__file__).parents[1] / "docs" / "limits.md"


@pytest.mark.parametrize("reason", RejectReason)
def test_reason_is_documented_and_named_as_its_word(reason):
    assert reason.name == reason.value.upper()
    assert f"`{reason}`" in LIMITS.read_text(encoding="utf-8")


def test_reasons_are_light_to_import():
    code = "import sys, stapsrv.rejection; print(sorted({'anyio', 'attrs', 'structlog'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
