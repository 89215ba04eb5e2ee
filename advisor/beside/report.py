"""The report of a run: what was found, shown and run, for people."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from ..files import FileError
from .pictures import draw, plane, save

BINS = 10
LOADER = """
The encoder by itself, for images (B, C, size, ...) in [0, 1] as the script reads them:

```python
import json
import {script}  # the script of this run
from safetensors import safe_open

with safe_open("{file}", "pt") as opened:
    known = json.loads(opened.metadata()["settings"])
    tensors = dict((name, opened.get_tensor(name)) for name in opened.keys())
known = dict((n, tuple(v) if isinstance(v, list) else v) for n, v in known.items())
encoder = {script}.Encoder({script}.Settings(**known)).eval()
encoder.load_state_dict(tensors)
features = encoder.embed(images)
```
"""
Pairs = tuple[np.ndarray, np.ndarray]  # of probabilities, and whether what they are of is true


def report(module: ModuleType, data: Path, out: Path) -> Path:
    """Writes report.md and its pictures: curves, for classification calibration, examples.

    Args:
        module: The script of the run.
        data: Its manifest.
        out: Its folder, after `evaluate`.

    Returns:
        report.md

    Raises:
        FileError: If the folder does not hold what `evaluate` writes.
    """
    metrics = _metrics(out)
    settings = _settings(module, metrics["settings"], out)
    cases = module.prepare(module.read_manifest(data, settings), settings, out)
    test = [c for c in cases if c.target and c.split == metrics["split"]]
    predicted = _predictions(out)
    title = (module.__doc__ or "").strip().partition("\n")[0]
    lines = [f"# {title}", "", *metrics["verdict"], "", *_table(metrics)]
    lines += ["", *_frozen(metrics)]
    curves(module, metrics, settings, out)
    if hasattr(module, "probabilities"):
        lines += calibration(module, predicted, out / "calibration.png")
        _classified(module, predicted, test, settings, out / "examples.png")
    elif hasattr(module, "found_mask"):
        _segmented(module, test, settings, out)
    pictures = ("curves.png", "calibration.png", "examples.png")
    lines += ["", *(f"![{p}]({p})\n" for p in pictures if (out / p).exists())]
    lines += [
        f"{metrics['test_patients']} patients of the {metrics['split']} split; every prediction is "
        "in [predictions.csv](predictions.csv), every number in [metrics.json](metrics.json).",
        f"Settings other than the script's own: {', '.join(_changed(settings)) or 'none'}.",
        metrics["software"] + ".",
    ]
    text = "\n".join(lines) + "\n"
    if (encoder := out / "encoder.safetensors").exists():
        text += LOADER.format(script=module.__name__, file=encoder.as_posix())
    part = out / "report.md.part"
    part.write_text(text, encoding="utf-8")
    os.replace(part, out / "report.md")
    return out / "report.md"


def _metrics(out: Path) -> dict[str, Any]:
    file = out / "metrics.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise FileError(f"{file}: is missing; run `evaluate` first") from None
    except ValueError as error:
        raise FileError(f"{file}: {error}") from None
    if not {"settings", "split", "verdict", "results", "software"} <= found.keys():
        raise FileError(f"{file}: is not what `evaluate` of this version writes; run it again")
    return found


def _settings(module: ModuleType, stored: Mapping[str, Any], out: Path) -> Any:
    """The settings of the run, which need not be the script's own."""
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in stored.items()}
    if unknown := values.keys() ^ {f.name for f in fields(module.Settings)}:
        raise FileError(f"{out} was made by another script: {sorted(unknown)[0]} is not in both")
    return module.Settings(**values)


def _changed(settings: Any) -> list[str]:
    return [
        f"`{f.name} = {getattr(settings, f.name)!r}`"
        for f in fields(settings)
        if getattr(settings, f.name) != f.default
    ]


def _table(metrics: Mapping[str, Any]) -> list[str]:
    rows = [("labelled cases", "", metrics["metric"], "95 % interval"), ("---",) * 4]
    for result in metrics["results"]:
        for name, score in result.items():
            if isinstance(score, dict):
                value, low, high = (f"{score[k]:.3f}" for k in ("value", "low", "high"))
                rows.append((str(result["labelled_cases"]), name, value, f"{low} to {high}"))
    return [f"| {' | '.join(row)} |" for row in rows]


def _frozen(metrics: Mapping[str, Any]) -> list[str]:
    return [
        f"- frozen features, {start}: {probe} {value:.3f}"
        for start, probes in metrics["frozen_features"].items()
        for probe, value in probes.items()
    ]


def _predictions(out: Path) -> dict[tuple[str, str], dict[str, list[dict[str, str]]]]:
    """The rows of predictions.csv: by start and label fraction, then by seed."""
    found: dict[tuple[str, str], dict[str, list[dict[str, str]]]] = {}
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            seeds = found.setdefault((row["start"], row["labels"]), {})
            seeds.setdefault(row["seed"], []).append(row)
    return found


def curves(module: ModuleType, metrics: Mapping[str, Any], settings: Any, out: Path) -> None:
    """curves.png: the losses, and the score against the number of labelled cases.

    Args:
        module: The script of the run.
        metrics: What metrics.json holds.
        settings: The settings of the run.
        out: Its folder, with the histories.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    first = {out / f"{stage}.csv": "black" for stage in module.FIRST}
    files = {file: colour for file, colour in first.items() if file.exists()}
    names = {file.stem: colour for file, colour in files.items()} | module.STARTS
    for start, _, _, checkpoint in module.runs(settings, out):
        files[checkpoint.with_suffix(".csv")] = module.STARTS[start]
    for file, colour in files.items():
        curve = np.genfromtxt(file, delimiter=",", names=True)
        left.plot(curve["step"], curve["loss"], color=colour, alpha=0.7)
    left.set(xlabel="step", ylabel="loss", yscale="log", title="training")
    for name, colour in names.items():
        left.plot([], [], color=colour, label=name)
    left.legend()
    for start, colour in module.STARTS.items():
        found = [result[start] for result in metrics["results"]]
        low, value, high = (np.array([f[k] for f in found]) for k in ("low", "value", "high"))
        spans = np.clip([value - low, high - value], 0, None)
        cases = [result["labelled_cases"] for result in metrics["results"]]
        right.errorbar(cases, value, spans, label=start, color=colour, marker="o", capsize=4)
    right.set(xlabel="labelled cases", ylabel=metrics["metric"])
    right.set_title("test patients, 95 % intervals")
    right.legend()
    save(figure, out / "curves.png")


# %% How far probabilities can be believed
def calibration(
    module: ModuleType,
    predicted: Mapping[tuple[str, str], Mapping[str, Sequence[Mapping[str, str]]]],
    file: Path,
) -> list[str]:
    """Draws the reliability of the probabilities and returns their calibration errors.

    Args:
        module: A script for classification.
        predicted: Rows of predictions.csv by (start, label fraction), then by seed.
        file: A PNG file.
    """
    fractions = list(dict.fromkeys(fraction for _, fraction in predicted))
    lines = []
    figure = Figure(figsize=(4 * len(fractions), 4.6), layout="constrained")
    row = figure.subplots(1, len(fractions), squeeze=False)[0]
    axes = dict(zip(fractions, row, strict=True))
    for fraction, axis in axes.items():
        axis.plot((0, 1), (0, 1), color="grey", linestyle=":")
        axis.set(xlabel="predicted probability", ylabel="share that is right", aspect="equal")
        axis.set_title(f"label fraction {float(fraction):g}")
    for (start, fraction), seeds in predicted.items():
        pairs = [certainty(module, rows) for rows in seeds.values()]
        error = float(np.mean([calibration_error(*pair) for pair in pairs]))
        confidence, right, _ = reliability(*map(np.concatenate, zip(*pairs, strict=True)))
        axes[fraction].plot(
            confidence,
            right,
            color=module.STARTS[start],
            marker="o",
            label=f"{start}: error {error:.3f}",
        )
        share = f"label fraction {float(fraction):g}"
        lines.append(f"- expected calibration error, {start}, {share}: {error:.3f}")
    for axis in axes.values():
        axis.legend()
    save(figure, file)
    return lines


def certainty(module: ModuleType, rows: Sequence[Mapping[str, str]]) -> Pairs:
    """What is believed with which probability, and whether it is so.

    Of one class a case: the likeliest. Of several findings: each of them.

    Args:
        module: A script for classification.
        rows: Of predictions.csv, one for each case.
    """
    classes = [name for name in rows[0] if name.startswith("class ")]
    predicted = np.array([[float(row[name]) for name in classes] for row in rows])
    truth = np.zeros_like(predicted)
    for place, row in enumerate(rows):
        truth[place, list(module.parse(row[module.TARGET]))] = 1
    if module.TARGET == "labels":
        return predicted.ravel(), truth.ravel()
    best = predicted.argmax(1)
    every = np.arange(len(rows))
    return predicted[every, best], truth[every, best]


def reliability(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Mean confidence, share right and share of all, in bins of equal width.

    Args:
        confidence: Probabilities (n,).
        right: 1 where what they are of is true, else 0 (n,).

    Returns:
        (3, bins in use)
    """
    place = np.ceil(confidence * BINS).clip(1, BINS).astype(int) - 1
    counts, sure, good = (
        np.bincount(place, weights, BINS) for weights in (None, confidence, right)
    )
    used = counts > 0
    return np.array(
        [sure[used] / counts[used], good[used] / counts[used], counts[used] / len(right)]
    )


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error (arXiv:1706.04599): the mean gap, bins weighted by cases.

    Args:
        confidence: Probabilities (n,).
        right: 1 where what they are of is true, else 0 (n,).
    """
    sure, good, share = reliability(confidence, right)
    return float((share * np.abs(sure - good)).sum())


# %% Examples
def _classified(
    module: ModuleType,
    predicted: Mapping[tuple[str, str], Mapping[str, Sequence[Mapping[str, str]]]],
    test: Sequence[Any],
    settings: Any,
    file: Path,
) -> None:
    """Test images with their truth and the most probable classes."""
    start, fraction = next(iter(module.STARTS)), max(settings.label_fractions)
    seeds = next(v for (s, f), v in predicted.items() if s == start and float(f) == fraction)
    rows = {row["path"]: row for row in next(iter(seeds.values()))}
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    figure.suptitle(f"{start}, label fraction {fraction:g}, first seed")
    chosen = sorted(set(np.linspace(0, len(test) - 1, 8).round().astype(int).tolist()))
    for axis, place in zip(figure.subplots(2, 4).flat, chosen, strict=False):  # few test images
        case = test[place]
        found = {
            n: float(v) for n, v in rows[module.name_of(case)].items() if n.startswith("class ")
        }
        likely = sorted(found, key=lambda name: -found[name])[:2]
        guesses = ", ".join(f"{n.removeprefix('class ')}: {found[n]:.2f}" for n in likely)
        axis.imshow(plane(module.unpacked(np.load(case.array))), cmap="gray", vmin=0, vmax=1)
        axis.set_title(f"class {case.target}\n{guesses}", fontsize=9)
    for axis in figure.axes:
        axis.axis("off")
    save(figure, file)


def _segmented(module: ModuleType, test: Sequence[Any], settings: Any, out: Path) -> None:
    """Where truth and prediction differ: the plane of each image with most of its truth."""
    start, fraction, seed, file = next(
        run for run in module.runs(settings, out) if run[1] == max(settings.label_fractions)
    )
    model = module.trained(file, settings)
    shown: dict[str, list[torch.Tensor]] = {"image": [], "truth": [], "prediction": []}
    chosen = test[:: -(-len(test) // 4)]
    for case in chosen:
        truth = torch.from_numpy(np.load(case.target)).float()
        found = torch.from_numpy(module.found_mask(model, case, settings))[None].float()
        place = int((truth > 0).sum((0, 1, 2)).argmax()) if truth.ndim == 4 else 0
        images = (module.unpacked(np.load(case.array)), truth, found)
        scales = (1, *[settings.classes - 1] * 2)
        for name, image, scale in zip(shown, images, scales, strict=True):
            plane_of = image[..., place : place + 1] if truth.ndim == 4 else image
            shown[name].append(plane_of / scale)
    title = f"{start}, label fraction {fraction:g}, seed {seed}"
    draw(title, shown, [c.path.name for c in chosen], out / "examples.png")
