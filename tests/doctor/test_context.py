"""The configuration that the checks share."""

from __future__ import annotations

import threading

from stapsrv.doctor import command


def test_hanging_configuration_is_one_line(site, monkeypatch, capsys):
    hanging = threading.Event()
    monkeypatch.setattr("stapsrv.doctor.context.Inventory", lambda *_arguments: hanging.wait())
    monkeypatch.setattr("stapsrv.doctor.context._TIMEOUT_S", 0.2)
    try:
        assert command.main(["-c", str(site.config)]) == 1
    finally:
        hanging.set()
    said = capsys.readouterr().err
    assert "cannot be read: no answer within 0.2 seconds" in said
    assert said.count("\n") == 1
