"""What has been set of the tunable settings."""

from __future__ import annotations

import pytest

from stapsrv.config.tuning import Tuning, with_tuning


def test_tuning_is_a_value():
    one, same = Tuning({"connections": 1, "drain_s": 2.0}), Tuning({"drain_s": 2.0, "connections": 1})
    assert (one, hash(one)) == (same, hash(same))
    assert one != Tuning({"connections": 1})
    with pytest.raises(KeyError):
        Tuning({"conections": 1})


def test_tunable_values_are_put_together():
    assert with_tuning({"port": 1}) == {"port": 1}
    assert with_tuning({"port": 1, "nice": 2}) == {"port": 1, "tuning": Tuning({"nice": 2})}


def test_parts_of_a_tuning():
    tuning = Tuning({"connections": 1, "listen": ("192.0.2.1",), "total_compiles": 2})
    assert tuning.of_servers() == {"connections": 1, "listen": ("192.0.2.1",)}
    assert tuning.identifying() == {"listen": ("192.0.2.1",)}
    assert (tuning.effective("connections"), tuning.effective("nice")) == (1, 5)
