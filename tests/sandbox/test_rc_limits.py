"""The limits in stap's own file, and those of the server."""

from __future__ import annotations

import resource

import pytest

from stapsrv.config.table import Limits
from stapsrv.config.tuning import Tuning
from stapsrv.sandbox.limits import explain_limit
from stapsrv.sandbox.rc_limits import apply_rc

DEFAULTS = Limits()


@pytest.mark.parametrize(
    "text", ["", "-w\n", "# --rlimit-cpu=9999\n", "--rlimit-stack=9999999\n--rlimit-cpu=x"]
)
def test_file_that_states_none_changes_nothing(text):
    applied = apply_rc(text, Tuning())
    assert applied.text is None
    assert applied.limits.cpu_s == DEFAULTS.cpu_s
    assert not applied.stated
    assert not applied.remarks


@pytest.mark.parametrize(
    "text",
    [
        "--rlimit-cpu=850\n",
        "-w --rlimit-cpu 850 # long",
        "--rlimit-cpu=0x352",
        "--rlimit-cpu=850\n--rlimit-cpu=9",
    ],
)
def test_limit_of_the_file_goes_before_a_lower_default(text):
    applied = apply_rc(text, Tuning())
    assert applied.limits.cpu_s == 850
    assert applied.text is None


def test_lower_limit_of_the_file_is_stap_s_to_set():
    """Of a control group, which holds for all processes, the default stays."""
    applied = apply_rc("--rlimit-as=1000000000 --rlimit-nproc=100 --rlimit-fsize=1000", Tuning())
    for name in ("memory_bytes", "processes", "file_bytes"):
        assert getattr(applied.limits, name) == getattr(DEFAULTS, name)
    assert applied.text is None
    assert "--rlimit-as=1000000000 in stap's rc file" in str(
        explain_limit(applied.limits, 1, b"std::bad_alloc", stated=applied.stated)
    )


def test_lower_of_two_that_are_set_holds():
    text = "-w --rlimit-cpu=850 --rlimit-as=1000\n# the end\n"
    applied = apply_rc(text, Tuning({"cpu_s": 60.0, "memory_bytes": 2048, "file_bytes": 7}))
    assert applied.limits.cpu_s == 60.0
    assert applied.limits.memory_bytes == 2048
    assert applied.limits.file_bytes == 7
    # stap would complain of the one that it cannot set.
    assert str(applied.text).split() == ["-w", "--rlimit-as=1000", "#", "the", "end"]
    assert applied.remarks == ("LIMIT_CPU=1m and --rlimit-cpu=850", "LIMIT_MEMORY=2k and --rlimit-as=1000")


def test_no_limit_of_this_server_leaves_the_file_s():
    applied = apply_rc("--rlimit-cpu=850", Tuning({"cpu_s": 0.0}))
    assert applied.limits.cpu_s == 0
    assert applied.text is None


def test_limit_that_this_process_may_not_set_is_left_out(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _number: (500, 500))
    assert str(apply_rc("--rlimit-cpu=850", Tuning()).text).strip() == ""
