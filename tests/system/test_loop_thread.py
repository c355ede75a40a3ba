import threading

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import sniffio

from stapsrv.system.loop_thread import LoopThread

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def bounded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stapsrv.system.loop_thread._END_S", 5.0)
        yield


async def test_call_runs_on_asyncio_in_another_thread():
    async def where():
        await anyio.lowlevel.checkpoint()
        return threading.current_thread().name, sniffio.current_async_library()

    with anyio.fail_after(5):
        async with LoopThread.open("mine") as thread:
            assert await thread.call(where) == ("mine", "asyncio")


async def test_call_raises_what_the_coroutine_raises():
    async def fail():
        raise ValueError("no")

    with anyio.fail_after(5):
        async with LoopThread.open("mine") as thread:
            with pytest.raises(ValueError, match="no"):
                await thread.call(fail)


async def test_cancelled_call_is_cancelled_there_and_its_cleanup_waited_for():
    began, events = anyio.Event(), []

    with anyio.fail_after(5):
        async with LoopThread.open("mine") as thread:

            async def hang():
                thread.post(began.set)
                try:
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        # A way to another thread and back: longer than a caller that does not wait.
                        await anyio.to_thread.run_sync(threading.get_ident)
                    events.append("cleaned up")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(thread.call, hang)
                await began.wait()
                tasks.cancel_scope.cancel()
            assert events == ["cleaned up"]


async def test_end_of_the_block_by_cancellation_ends_the_thread():
    with anyio.fail_after(4):
        with anyio.CancelScope() as scope:
            async with LoopThread.open("mine") as thread, anyio.create_task_group() as tasks:
                tasks.start_soon(thread.call, anyio.sleep_forever)
                scope.cancel()
    for thread in threading.enumerate():
        if thread.name == "mine":
            # It has nothing left to do but to end.
            thread.join(4)
            assert not thread.is_alive()


async def test_call_after_the_end_is_refused():
    async with LoopThread.open("mine") as thread:
        pass
    with pytest.raises(RuntimeError, match="has ended"):
        await thread.call(anyio.sleep_forever)
