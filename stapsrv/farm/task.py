"""The one function that a farm runs, and how its compile ends with its task.

Dask cancels no task that runs. A node's plugin sees that one is not wanted any more - it was cancelled, its
client is gone, the node closes - and has the compile end, with all its processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distributed import Reschedule, get_worker
from distributed.diagnostics.plugin import WorkerPlugin

if TYPE_CHECKING:
    from distributed import Worker

    from stapsrv.farm.node import FarmNode

# A node tells by an event of this topic that a job begins there: one that only waits there is not to blame
# for the node's end.
BEGUN_TOPIC = "stapsrv-begun"
_PLUGIN = "stapsrv-node"
# Where a task goes that is still wanted, or has ended by itself.
_WANTED = frozenset({"executing", "long-running", "memory", "error", "resumed"})


async def compile_job(message: bytes) -> bytes:
    """Compile a job on the node that runs this, and return its answer."""
    plugin = get_worker().plugins.get(_PLUGIN)
    if not isinstance(plugin, NodePlugin):
        raise RuntimeError("this worker is no node of stapsrv: run stap-farm worker")  # noqa: TRY004
    answer = await plugin.node.compile(message)
    if answer is None:
        # Nobody waits for it here; if anybody does, it runs elsewhere.
        raise Reschedule
    return answer


class NodePlugin(WorkerPlugin):
    """Ties a node to the Dask worker that speaks for it."""

    name = _PLUGIN

    def __init__(self, node: FarmNode) -> None:
        self.node = node
        self._worker: Worker | None = None

    def setup(self, worker: Worker) -> None:
        """Know the worker: Dask calls this when it begins."""
        self._worker = worker

    def transition(self, key: object, start: str, finish: str, **_more: Any) -> None:  # noqa: ANN401, ARG002
        """Tell that a task begins; let go of one that is not wanted any more, or whose answer was taken."""
        if finish == "executing" and self._worker is not None:
            self._worker.log_event(BEGUN_TOPIC, {"job": str(key), "node": self._worker.address})
        if finish not in _WANTED:
            self.node.release(str(key))

    def teardown(self, worker: Worker) -> None:  # noqa: ARG002 - Dask's signature
        """End all compiles: the worker closes, and nobody would get what they make."""
        self.node.cancel_all()
