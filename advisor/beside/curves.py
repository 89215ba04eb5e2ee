"""The curves of a run: its losses, its scores, and how far its probabilities can be believed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from .outcome import COLOURS, Outcome, Rows, share
from .pictures import save

BINS = 10
STYLES = ("-", "--", ":", "-.")  # of the label fractions
Pairs = tuple[np.ndarray, np.ndarray]  # of probabilities, and whether what they are of is true


def curves(outcome: Outcome) -> None:
    """curves.png: the losses of each stage, and the score against the number of labelled cases.

    Args:
        outcome: Of the run, with the histories in its folder.
    """
    module, settings, out = outcome.module, outcome.settings, outcome.out
    first = [file for stage in module.FIRST if (file := out / f"{stage}.csv").exists()]
    count = len(first) + 2
    figure = Figure(figsize=(4.6 * count, 4), layout="constrained")
    *before, tuned, scores = figure.subplots(1, count)
    for axis, file in zip(before, first, strict=True):
        _losses(axis, [(file, {"color": "black"})], file.stem)
    styles = {f: STYLES[n % len(STYLES)] for n, f in enumerate(settings.label_fractions)}
    runs = [
        (file.with_suffix(".csv"), {"color": COLOURS[start], "linestyle": styles[fraction]})
        for start, fraction, _, file in module.runs(settings, out)
    ]
    _losses(tuned, runs, "finetune")
    for start in module.STARTS:
        tuned.plot([], [], color=COLOURS[start], label=start)
    for fraction, style in styles.items():
        tuned.plot([], [], color="grey", linestyle=style, label=share(fraction))
    tuned.legend(fontsize=8)
    _scores(scores, outcome)
    save(figure, out / "curves.png")


def _losses(axis: Any, runs: Sequence[tuple[Path, dict[str, str]]], title: str) -> None:
    lowest, highest = np.inf, 0.0
    for file, look in runs:
        curve = np.atleast_1d(np.genfromtxt(file, delimiter=",", names=True))
        marker = "o" if len(curve) == 1 else ""  # one point is no line
        axis.plot(curve["step"], curve["loss"], marker=marker, alpha=0.7, **look)
        lowest, highest = min(lowest, curve["loss"].min()), max(highest, curve["loss"].max())
    axis.set(xlabel="step", ylabel="loss", title=title)
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if lowest > 0:  # some losses are negative
        axis.set_yscale("log", subs=(2, 5) if highest > 10 * lowest else (2, 3, 4, 5, 6, 8))
        for set_formatter in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            set_formatter(FuncFormatter("{:g}".format))


def _scores(axis: Any, outcome: Outcome) -> None:
    results, starts = outcome.metrics["results"], outcome.module.STARTS
    cases = np.array([result["labelled_cases"] for result in results], float)
    order, wide = cases.argsort(), cases.max() >= 10 * cases.min()
    for place, start in enumerate(starts):
        low, value, high = (
            np.array([result[start][k] for result in results], float)[order]
            for k in ("low", "value", "high")
        )
        away = 0.02 * (place - (len(starts) - 1) / 2)  # beside each other, not over each other
        beside = cases * 10**away if wide else cases + away * cases.max()
        spans = np.clip([value - low, high - value], 0, None)
        look = {"color": COLOURS[start], "marker": "o", "capsize": 4}
        axis.errorbar(beside[order], value, spans, label=start, **look)
    if wide:
        axis.set_xscale("log")
    if len(results) == 1:
        axis.set_xlim(0.9 * cases[0], 1.1 * cases[0])
    axis.set_xticks(cases, [f"{n:g}" for n in cases])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(xlabel="labelled cases", ylabel=outcome.metrics["metric"])
    axis.set_title("test patients, 95 % intervals")
    axis.legend(fontsize=8)


# %% How far probabilities can be believed
def calibration(outcome: Outcome) -> list[str]:
    """calibration.png: the reliability of the probabilities; returns their calibration errors.

    Args:
        outcome: Of a script for classification.
    """
    module, predicted = outcome.module, outcome.predicted
    fractions = list(dict.fromkeys(fraction for _, fraction in predicted))
    lines = []
    figure = Figure(figsize=(4 * len(fractions), 4.6), layout="constrained")
    row = figure.subplots(1, len(fractions), squeeze=False)[0]
    axes = dict(zip(fractions, row, strict=True))
    for fraction, axis in axes.items():
        axis.plot((0, 1), (0, 1), color="grey", linestyle=":")
        axis.set(xlabel="predicted probability", ylabel="share that is right", aspect="equal")
        axis.set_title(share(fraction))
    for (start, fraction), seeds in predicted.items():
        pairs = [certainty(module, rows) for rows in seeds.values()]
        error = float(np.mean([calibration_error(*pair) for pair in pairs]))
        confidence, right, _ = reliability(*map(np.concatenate, zip(*pairs, strict=True)))
        axes[fraction].plot(
            confidence,
            right,
            color=COLOURS[start],
            marker="o",
            label=f"{start}: error {error:.3f}",
        )
        lines.append(f"- expected calibration error, {start}, {share(fraction)}: {error:.3f}")
    for axis in axes.values():
        axis.legend()
    save(figure, outcome.out / "calibration.png")
    return lines


def certainty(module: ModuleType, rows: Rows) -> Pairs:
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
