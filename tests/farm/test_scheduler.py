import anyio
import pytest
from distributed import Client, Scheduler

from stapsrv.errors import ConfigError
from stapsrv.farm.scheduler import SchedulerOptions, open_scheduler

# Dask is made of asyncio.
pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


async def test_scheduler_has_no_page_unless_asked_for():
    async with open_scheduler(SchedulerOptions(listen="tcp://127.0.0.1:0")) as scheduler:
        with pytest.raises(OSError, match="All connection attempts failed"):
            await anyio.connect_tcp("127.0.0.1", scheduler.http_server.port)


async def test_function_of_a_client_is_not_run_by_the_scheduler():
    async with open_scheduler(SchedulerOptions(listen="tcp://127.0.0.1:0")) as scheduler:
        async with Client(scheduler.address, asynchronous=True, set_as_default=False) as client:
            with pytest.raises(ValueError, match="run_function"):
                await client.run_on_scheduler(print)


async def test_address_without_the_files_that_it_needs_is_refused_in_one_line():
    with pytest.raises(
        ConfigError, match=r"^tls://127\.0\.0\.1:0: needs the farm's authority, .*; make them"
    ):
        async with open_scheduler(SchedulerOptions(listen="tls://127.0.0.1:0")):
            pass


async def test_end_of_a_scheduler_does_not_fail_with_dask_s_own(monkeypatch):
    close = Scheduler.close

    async def fail_after_close(scheduler, **options):
        await close(scheduler, **options)
        raise RuntimeError("Cannot change state of expiring Timeout")

    monkeypatch.setattr(Scheduler, "close", fail_after_close)
    async with open_scheduler(SchedulerOptions(listen="tcp://127.0.0.1:0")):
        pass
