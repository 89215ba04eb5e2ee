"""CPU time of one answer: in a fresh process, as ratios that carry over between machines; and warm.

    python benchmarks/answer.py [--repeats 15]

Measures user plus system time of child processes, in turns so that a busy spell touches all.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

ANSWER = """
import advisor
profile = advisor.Profile(
    modality="ct", task="segmentation", dimensionality="3d", labeled=40, unlabeled=3000
)
assert advisor.recommend(profile).strategies
"""
PROGRAMS = {
    "python -c pass": "pass",
    "import pydantic": "import pydantic; pydantic.BaseModel",
    "import advisor": "import advisor; advisor.recommend",
    "one answer": ANSWER,
}


def cpu_seconds(program: str) -> float:
    """User plus system time of one fresh interpreter that runs `program`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def measure(repeats: int) -> dict[str, float]:
    """The median CPU seconds of each program; the first turn only warms the file cache."""
    turns = [{name: cpu_seconds(p) for name, p in PROGRAMS.items()} for _ in range(repeats + 1)]
    return {name: statistics.median(turn[name] for turn in turns[1:]) for name in PROGRAMS}


def warm(repeats: int) -> dict[str, float]:
    """Median CPU milliseconds of an answer on each engine, in a process that has given some."""
    from advisor import Profile, recommend

    profile = Profile(
        modality="ct", task="segmentation", dimensionality="3d", labeled=40, unlabeled=3000
    )
    found: dict[str, float] = {}
    for engine in ("reference", "durable"):
        times = []
        for _ in range(10 * repeats + 3):
            start = time.process_time()
            recommend(profile, engine=engine)
            times.append(time.process_time() - start)
        found[engine] = 1000 * statistics.median(times[3:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    seconds = measure(repeats)
    bare, pydantic = seconds["python -c pass"], seconds["import pydantic"]
    print(f"{'':18}{'CPU s':>8}{'x bare':>9}{'x pydantic':>12}")
    for name, value in seconds.items():
        print(f"{name:18}{value:8.3f}{value / bare:9.1f}{value / pydantic:12.2f}")
    for name, value in warm(repeats).items():
        print(f"warm, {name:12}{value:8.2f} ms")


if __name__ == "__main__":
    main()
