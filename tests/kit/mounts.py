"""What a mount plan shows at a path."""

from __future__ import annotations

from pathlib import Path

from stapsrv.sandbox.mount_plan import Access, MountPlan


def access_to(plan: MountPlan, path: Path) -> Access | None:
    """Return the access of the deepest mount at or above ``path``; None where there is none."""
    return next((plan.mounts[above] for above in (path, *path.parents) if above in plan.mounts), None)
