"""The health of a release: who is called when it changes."""

from __future__ import annotations

from stapsrv.compile.health import Health, ReleaseHealth


def test_release_is_usable_until_it_is_unhealthy():
    health = ReleaseHealth()
    usable = {}
    for now in Health:
        health.set(now)
        usable[now] = health.is_usable
    assert usable == {now: now is not Health.UNHEALTHY for now in Health}


def test_changed_is_called_after_each_change_and_not_without_one():
    seen = []
    health = ReleaseHealth(lambda release: seen.append((release.health, release.reason)))
    for reason in ("no headers", "no headers", "no compiler"):
        health.set(Health.UNHEALTHY, reason)
    health.set(Health.HEALTHY)
    assert seen == [
        (Health.UNHEALTHY, "no headers"),
        (Health.UNHEALTHY, "no compiler"),
        (Health.HEALTHY, None),
    ]


def test_when_healthy_calls_at_once_and_after_each_recovery_until_its_end():
    health = ReleaseHealth()
    calls = []
    health.set(Health.HEALTHY)
    with health.when_healthy(lambda: calls.append(health.health)):
        assert len(calls) == 1
        health.set(Health.WARMING)
        assert len(calls) == 1
        health.set(Health.HEALTHY)
        assert len(calls) == 2
    health.set(Health.WARMING)
    health.set(Health.HEALTHY)
    assert len(calls) == 2


def test_when_tried_calls_after_each_attempt_whatever_came_of_it():
    health = ReleaseHealth()
    calls = []
    with health.when_tried(lambda: calls.append(health.health)):
        for now in (Health.WARMING, Health.UNHEALTHY, Health.WARMING, Health.HEALTHY):
            health.set(now)
    assert calls == [Health.UNHEALTHY, Health.HEALTHY]
