import pytest

from stapsrv.farm.task import BEGUN_TOPIC, NodePlugin


class FakeNode:
    def __init__(self):
        self.cancelled = []

    def release(self, name):
        self.cancelled.append(name)

    def cancel_all(self):
        self.cancelled.append("all")


@pytest.mark.parametrize(
    ("finish", "is_ended"),
    [
        *[(state, False) for state in ("executing", "memory", "error", "resumed", "long-running")],
        *[(state, True) for state in ("cancelled", "released", "forgotten", "rescheduled")],
    ],
)
def test_compile_of_a_task_that_nobody_waits_for_is_ended(finish, is_ended):
    node = FakeNode()
    NodePlugin(node).transition("a", "executing", finish, stimulus_id="x")
    assert node.cancelled == (["a"] if is_ended else [])


def test_all_compiles_end_with_the_worker():
    node = FakeNode()
    NodePlugin(node).teardown(None)
    assert node.cancelled == ["all"]


class FakeWorker:
    address = "tls://127.0.0.1:9"

    def __init__(self):
        self.said = []

    def log_event(self, topic, message):
        self.said.append((topic, message))


def test_node_tells_that_a_job_begins():
    plugin, worker = NodePlugin(FakeNode()), FakeWorker()
    plugin.setup(worker)
    plugin.transition("a", "ready", "executing")
    plugin.transition("a", "executing", "memory")
    assert worker.said == [(BEGUN_TOPIC, {"job": "a", "node": worker.address})]
