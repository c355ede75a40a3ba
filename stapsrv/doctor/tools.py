"""Are the programs there that compiling and certificates take?"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator

from stapsrv.compile.engine.stap import find_stap
from stapsrv.doctor.context import DoctorContext
from stapsrv.doctor.findings import Finding, failure, ok
from stapsrv.errors import TranslatorError
from stapsrv.process import ExitReason, run_process_tree

_ANSWER_S = 20.0
_COMPILERS = {"gcc": "gcc", "make": "make"}
_DATABASE_TOOLS = {"certutil": "libnss3-tools", "pk12util": "libnss3-tools"}


async def check_stap(patient: DoctorContext) -> AsyncIterator[Finding]:
    """Is stap there, and does it say its version?"""
    stap = await find_stap(patient.environ)
    yield ok("stap", f"{stap.path}, version {stap.version}")


async def check_tools(patient: DoctorContext) -> AsyncIterator[Finding]:
    """Are the compiler, make and NSS's tools there, and do they run?"""
    for tool, package in _COMPILERS.items():
        yield await _look_for(tool, package, patient, "--version")
    for tool, package in _DATABASE_TOOLS.items():
        yield await _look_for(tool, package, patient)


async def _look_for(tool: str, package: str, patient: DoctorContext, *arguments: str) -> Finding:
    """Find a program; run it too, if arguments are given that make it say something harmless."""
    path = shutil.which(tool, path=patient.environ.get("PATH"))
    remedy = f"install it (Debian: {package})"
    if path is None:
        return failure(tool, "was not found on the path", remedy)
    if not arguments:
        return ok(tool, path)
    try:
        outcome = await run_process_tree([path, *arguments], deadline_s=_ANSWER_S)
    except TranslatorError as exc:
        return failure(tool, f"{path} {exc.problem}", remedy)
    if outcome.exit_reason is not ExitReason.EXITED or outcome.status != 0:
        return failure(tool, f"{path} {' '.join(arguments)} does not answer", remedy)
    said = outcome.stdout.decode("utf-8", "replace").partition("\n")[0]
    return ok(tool, f"{path}: {said}")
