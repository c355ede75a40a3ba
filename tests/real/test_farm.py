"""Requests of the real client that a farm compiles, whatever dies of it."""

from __future__ import annotations

import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from kit import real
from kit.farm import Farm
from kit.real import CompilerGate, finish, vermagic
from kit.trees import ProcessObserver

# They wait for several real compiles, one after the other.
pytestmark = pytest.mark.long
WORKER = r"answered rc=0, compiled, .*, worker: (n\d)$"


@pytest.fixture
def gate(tmp_path):
    gate = CompilerGate(tmp_path / "gate", visible=tmp_path / "visible")
    yield gate
    gate.close()


@pytest.fixture
def farm(stap, gate, tmp_path):
    """A farm whose workers have what servers found out before of the newest release."""
    installation = stap.installation
    options = ("-r", installation.release, "-R", str(installation.runtime), gate.option, "--prepared=no")
    (tmp_path / "farm").mkdir()
    with Farm.open(tmp_path / "farm", environ=stap.environ(), options=options) as farm:
        yield farm


@pytest.fixture
def serve_farm(serve, farm):
    return lambda *options, **more: serve("--engine=dask", f"--farm={farm.address}", *options, **more)


def compile_of(stap, server, script):
    ran = stap.via(server.port, "-p4", "-e", script)
    assert ran.status == 0, ran.stderr
    return stap.place / ran.module


def held_by(workers):
    """Return the worker that compiles now, and its process tree."""
    trees = {index: ProcessObserver(worker.process.pid) for index, worker in enumerate(workers)}
    (found,) = (index for index, tree in trees.items() if "cc1" in tree.names)
    return workers[found], trees[found]


def test_module_is_made_by_a_worker_and_known_afterwards(farm, serve_farm, stap):
    farm.start_scheduler()
    farm.start_workers()
    server = serve_farm(caching=True)
    script = "probe begin { println(1) exit() }"
    module = compile_of(stap, server, script)
    assert vermagic(module) == stap.installation.release
    assert server.log.wait(WORKER)[1] == "n0"
    first = module.read_bytes()
    assert compile_of(stap, server, script).read_bytes() == first
    assert server.log.has(r"answered rc=0, hit, ", 1)


def test_killed_worker_costs_no_request(farm, serve_farm, stap, gate):
    farm.start_scheduler()
    workers = farm.start_workers(count=2)
    server = serve_farm()
    client = stap.begin_via(server.port, "-p4", "-I", gate.directory, "-e", gate.SCRIPT)
    gate.wait_reached(client)
    killed, tree = held_by(workers)
    killed.kill()
    tree.wait_gone()
    gate.open()
    ran = finish(client)
    assert ran.status == 0, ran.stderr
    assert server.log.wait(WORKER)[1] != f"n{workers.index(killed)}"


def test_killed_scheduler_costs_no_request(farm, serve_farm, stap, gate):
    scheduler = farm.start_scheduler()
    workers = farm.start_workers(count=2)
    server = serve_farm()
    client = stap.begin_via(server.port, "-p4", "-I", gate.directory, "-e", gate.SCRIPT)
    gate.wait_reached(client)
    _, tree = held_by(workers)
    scheduler.kill()
    tree.wait_gone()
    farm.start_scheduler()
    gate.open()
    ran = finish(client)
    assert ran.status == 0, ran.stderr
    assert server.log.count(WORKER) == 1


def killable(stap, *options, **environ):
    """Serve as :func:`kit.real.serving` does, but for the good end."""
    return real._started(stap, [sys.executable, "-m", "stapsrv.daemon"], *options, **environ)


def test_killed_server_takes_its_compiles_off_the_farm(farm, serve_farm, stap, gate):
    farm.start_scheduler()
    workers = farm.start_workers(count=2)
    server = serve_farm(using=killable, release=True)
    client = stap.begin_via(server.port, "-p4", "-I", gate.directory, "-e", gate.SCRIPT)
    gate.wait_reached(client)
    _, tree = held_by(workers)
    server.process.kill()
    tree.wait_gone()
    finish(client)


def test_client_that_leaves_ends_its_compile_on_the_farm(farm, serve_farm, stap, gate):
    farm.start_scheduler()
    workers = farm.start_workers()
    server = serve_farm()
    client = stap.begin_via(server.port, "-p4", "-I", gate.directory, "-e", gate.SCRIPT)
    gate.wait_reached(client)
    _, tree = held_by(workers)
    client.kill()
    tree.wait_gone()
    finish(client)
    gate.open()
    compile_of(stap, server, "probe begin { println(2) exit() }")


def test_restart_of_each_worker_costs_no_request(farm, serve_farm, stap):
    farm.start_scheduler()
    workers = farm.start_workers(count=2)
    server = serve_farm()

    def ask(number):
        return stap.via(server.port, "-p4", "-e", f"probe begin {{ println({number}) exit() }}")

    with ThreadPoolExecutor(4) as clients:
        asked = [clients.submit(ask, number) for number in range(4)]
        for worker in workers:
            assert worker.stop() == 0
            farm.start_workers()
        ran = [each.result() for each in asked]
    assert [each.status for each in ran] == [0] * len(ran), [each.stderr for each in ran]
    assert server.log.count(re.sub(r"\(.*", "", WORKER)) == len(ran)
