"""What a whole run will take, from a few real steps on this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from .script import readable, settings_of

OUT_OF_MEMORY = (
    "an't allocate memory",  # torch
    "annot allocate memory",  # the system
    "Unable to allocate",  # numpy, in a reader
    "DataLoader worker (pid",  # "exited unexpectedly", "is killed by signal"
)
TRIED = 5  # steps, of which the first, slower one is not counted


def estimate(module: ModuleType, data: Path, out: Path, options: Sequence[str]) -> Iterator[str]:
    """Lines on size, memory, hours and disk; decodes a few images only, and trains nothing.

    Args:
        module: The script.
        data: The manifest.
        out: The folder that the run would have.
        options: Settings, as on the script's command line.
    """
    settings = settings_of(module, data, out, options, "dry-run")
    try:
        yield from _lines(module, settings, data, out)
    except Exception as error:  # torch has an error of its own for GPUs only
        if not _of_memory(error):
            raise
        gpu = isinstance(error, torch.cuda.OutOfMemoryError)
        where = "this GPU" if gpu else "this machine"
        module.fail(f"not enough memory on {where} for these settings: {_lower(settings, gpu)}")


def _of_memory(error: Exception) -> bool:
    """Whether memory ran out, here or in a reader, which the system may have killed for it."""
    kind = isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))
    return kind or any(sign in str(error) for sign in OUT_OF_MEMORY)


def _lines(module: ModuleType, settings: Any, data: Path, out: Path) -> Iterator[str]:
    cases = module.read_manifest(data, settings)
    labelled = [c for c in cases if c.target and c.split == "train"]
    read = readable(module, labelled, out / "cache", settings)
    for place, case in enumerate(cases):  # the few images stand for all others
        few = read[place % len(read)]
        cases[place] = replace(case, array=few.array, target=few.target if case.target else "")
    for name, (network, samples, schedule), times in _stages(module, cases, settings, out):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats(module.this_device())
        seconds = _rehearsed(module, network, samples, schedule, settings)
        whole, encoder = (
            sum(p.numel() for p in part.parameters()) / 1e6 for part in (network, network.encoder)
        )
        hours = seconds * schedule.steps * times / 3600
        yield (
            f"{name}: {whole:.2f} million parameters, {encoder:.2f} of them the encoder's; "
            f"{_memory(module.this_device())}; {seconds:.3g} s a step, {schedule.steps} steps"
            f"{f', {times} runs' * (times > 1)}: {_time(hours)}"
        )
    masks = [Path(c.target).stat().st_size for c in read if c.target.endswith(".npy")]
    disk = len(cases) * np.mean([c.array.stat().st_size for c in read])
    disk += sum(bool(c.target) for c in cases) * np.mean(masks or [0])
    yield f"decoded copies: {_size(disk)} in {out / 'cache'} for {len(cases)} images"
    yield f"too much memory: {_lower(settings)}; too many hours: {_shorter(settings)}"


def _stages(
    module: ModuleType, cases: list[Any], settings: Any, out: Path
) -> Iterator[tuple[str, tuple[Any, Any, Any], int]]:
    """Every stage that learns: what from what for how long, and how many times."""
    if hasattr(module, "learning"):
        yield "pretrain", module.learning(cases, settings), 1
    fraction = max(settings.label_fractions)
    learned = module.fine_tuning(module.Model(settings), cases, fraction, settings.seed, settings)
    yield "finetune", learned, len(module.runs(settings, out))


def _rehearsed(module: ModuleType, network: Any, data: Any, schedule: Any, settings: Any) -> float:
    """Median seconds of a step of the script's loop, reading included."""
    device = module.this_device()
    network = module.ready(network, device)
    optimizer, ended = module.optimizer_of(network, schedule.weight_decay, settings), []
    few = replace(schedule, steps=TRIED).batches(len(data.cases), 0)
    loader = torch.utils.data.DataLoader(data, batch_sampler=few, num_workers=settings.workers)
    for step, batch in enumerate(loader, start=1):
        optimizer.zero_grad(set_to_none=True)
        module.backward(network, [part.to(device) for part in batch], settings)
        nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        optimizer.step()
        if hasattr(network, "after_step"):
            network.after_step(min(1.0, step / schedule.steps))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ended.append(time.perf_counter())
    return float(np.median(np.diff(ended)))


def _memory(device: torch.device) -> str:
    """The most that the stage used of the GPU, or else this process up to now."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / 1e9
        return f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f} of {total:.0f} GB on the GPU"
    try:
        import resource
    except ImportError:  # Windows keeps no such record
        return "memory unknown"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak * (1 if sys.platform == 'darwin' else 1024) / 1e9:.2f} GB at most so far (CPU)"


def _time(hours: float) -> str:
    minutes = hours * 60
    if minutes < 59.5:
        return "under a minute" if minutes < 1 else _counted(minutes, "minute")
    return f"{hours:.1f} hours" if hours < 9.95 else _counted(hours, "hour")


def _counted(number: float, unit: str) -> str:
    return f"{number:.0f} {unit}{'s' * (round(number) != 1)}"


def _size(bytes: float) -> str:
    for unit, each in (("GB", 1e9), ("MB", 1e6)):
        if bytes >= each:
            return f"{bytes / each:.3g} {unit}"
    return "under 1 MB"


def _lower(settings: Any, gpu: bool = True) -> str:
    fewer = "" if gpu or not settings.workers else "--workers, "
    sizes = f"lower {fewer}--batch-size, --finetune-batch-size or --size"
    if getattr(settings, "recompute", True) and getattr(settings, "images_at_once", 1) == 1:
        return sizes
    ways = {"images_at_once": "lower --images-at-once", "recompute": "add --recompute 1"}
    known = [way for name, way in ways.items() if hasattr(settings, name)]
    return ", ".join([*known, f"or {sizes}"])


def _shorter(settings: Any) -> str:
    names = ("epochs", "finetune_steps", "seeds", "label_fractions")
    known = [f"--{n.replace('_', '-')}" for n in names if hasattr(settings, n)]
    return f"lower {', '.join(known)}"
