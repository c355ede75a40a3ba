"""What a Dockerfile says of the image that its last stage makes."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import attrs


@attrs.frozen
class Image:
    """An image's configuration, as ``docker inspect`` would show it."""

    environ: dict[str, str]
    user: str
    volumes: list[str]
    ports: list[int]
    healthcheck: list[str]
    entrypoint: list[str]
    copied: list[str]

    @classmethod
    def described_by(cls, dockerfile: Path) -> Image:
        """Read the last stage of a Dockerfile."""
        text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
        stage = re.split(r"^FROM .*\n", text, flags=re.MULTILINE)[-1]
        said: dict[str, list[str]] = {}
        for line in stage.splitlines():
            word, _, rest = line.strip().partition(" ")
            said.setdefault(word, []).append(rest.strip())
        (health,) = said["HEALTHCHECK"]
        return cls(
            environ=dict(word.split("=", 1) for line in said["ENV"] for word in shlex.split(line)),
            user=said["USER"][-1],
            volumes=said["VOLUME"],
            ports=[int(port) for line in said["EXPOSE"] for port in line.split()],
            healthcheck=json.loads(health.partition(" CMD ")[2]),
            entrypoint=json.loads(said["ENTRYPOINT"][-1]),
            copied=[word for line in said["COPY"] for word in line.split()[:-1]],
        )
