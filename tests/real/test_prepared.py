"""New modules by plans in place of make, by the real stap: the same module, and never an old one."""

from __future__ import annotations

import attrs
import pytest
from kit.real import serving

pytestmark = pytest.mark.timeout(900)  # the server's own compiles give way to everything else

SCRIPT = 'global n probe timer.s(1) { n[pid()] <<< 1; printf("%d\\n", @count(n[1])) }'


@pytest.mark.parametrize("sandbox", ["bubblewrap", "landlock", "off"])
def test_module_by_plan_is_that_of_make(stap, tmp_path, sandbox):
    fresh = attrs.evolve(stap, directory=tmp_path / "fresh")
    with serving(fresh, "--warmup", "yes", f"--sandbox={sandbox}") as server:
        server.log.wait(r": Kernel release \S+ can be compiled for; ", timeout_s=800)
        ran = fresh.via(server.port, "-p4", "-e", SCRIPT)
        assert ran.status == 0, ran.stderr
        server.log.wait(r"Request from .*, build: prepared$")
