#!/usr/bin/env python3
"""Give hostile bytes to the parsers for as long as is wanted; save what breaks one, and exit non-zero.

Guided by coverage where atheris is installed (pip install atheris), else by chance from the saved corpus.
What breaks a check is saved in corpus/TARGET/crash-…, where the suite finds it from then on. It needs no
network, no stap and no particular user.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

MEMORY_MB = 1024
"""The most that all inputs of a target may make of memory, the interpreter and its modules included."""
BROKEN = 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="default: all of them in turn")
    parser.add_argument("--time", type=float, default=60.0, metavar="S", help="seconds for each target")
    parser.add_argument(
        "--engine", choices=("atheris", "chance"), help="default: atheris, if it is installed"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()), help="for the engine chance")
    parser.add_argument("--guided", metavar="DIRECTORY", help=argparse.SUPPRESS)
    options = parser.parse_args()
    engine = options.engine or ("atheris" if importlib.util.find_spec("atheris") else "chance")
    if options.guided:
        run_guided(options.targets[0], options.time, Path(options.guided))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    names = targets()
    if unknown := set(options.targets) - set(names):
        parser.error(f"{', '.join(sorted(unknown))}: the targets are {', '.join(names)}")
    broken = []
    for name in options.targets or names:
        say(f"{name}: {options.time:g} s, by {engine}")
        found = (
            guided(name, options.time) if engine == "atheris" else by_chance(name, options.time, options.seed)
        )
        if found:
            broken.append(name)
    say(f"broken: {', '.join(broken)}" if broken else "nothing is broken")
    return BROKEN if broken else 0


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def targets() -> list[str]:
    return sorted(path.name for path in (HERE / "corpus").iterdir())


def by_chance(name: str, seconds: float, seed: int) -> bool:
    """Change saved inputs by chance; return whether one broke the check."""
    from fuzz.cpu_time import TooSlow, bounded
    from fuzz.mutation import changed, some_changes
    from fuzz.targets import CHECKS, INPUT_S, WORDS, corpus

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MB << 20, hard))
    chance = random.Random(seed)
    pool = [path.read_bytes() for path in corpus(name)]
    ends = time.monotonic() + seconds
    count = 0
    try:
        while time.monotonic() < ends:
            data = changed(chance.choice(pool), some_changes(chance, WORDS[name], pool))
            count += 1
            try:
                with bounded(INPUT_S):
                    CHECKS[name](data)
            except (Exception, TooSlow):  # noqa: BLE001 - any exception is a finding
                traceback.print_exc()
                save(name, data)
                return True
            if chance.random() < 0.01:
                # A change of a change of a change comes further than any of them.
                pool.append(data)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        say(f"{name}: {count} inputs, seed {seed}")
    return False


def guided(name: str, seconds: float) -> bool:
    """Run atheris; return whether something broke the check."""
    with tempfile.TemporaryDirectory(prefix="stapsrv-fuzz.") as directory:
        work = Path(directory)
        (work / "new").mkdir()
        command = [sys.executable, __file__, name, f"--time={seconds}", f"--guided={work}"]
        done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True, errors="replace")
        lines = done.stderr.splitlines()
        say("\n".join(line for line in lines if "DONE" in line or "stat::number" in line))
        crashes = sorted(work.glob("*-*"))
        if done.returncode or crashes:
            say("\n".join(lines[-60:]))
        for crash in crashes:
            save(name, crash.read_bytes())
    return bool(done.returncode or crashes)


def run_guided(name: str, seconds: float, work: Path) -> None:
    """Run in the process that atheris takes over."""
    import atheris

    from fuzz.mutation import MAX_BYTES

    with atheris.instrument_imports(include=["stapsrv"]):
        from fuzz.targets import CHECKS, INPUT_S, WORDS
    dictionary = work / "words"
    dictionary.write_text(
        "".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in WORDS[name])
    )
    libfuzzer = [
        f"-max_total_time={int(seconds)}",
        f"-timeout={INPUT_S}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-dict={dictionary}",
        f"-artifact_prefix={work}/",
        f"-max_len={MAX_BYTES}",
        "-print_final_stats=1",
        "-verbosity=1",
    ]
    atheris.Setup([sys.argv[0], *libfuzzer, str(work / "new"), str(HERE / "corpus" / name)], CHECKS[name])
    atheris.Fuzz()


def save(name: str, data: bytes) -> None:
    path = HERE / "corpus" / name / f"crash-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    say(f"saved as {path}")


if __name__ == "__main__":
    sys.exit(main())
