"""What a finished run left, read for its report: metrics.json and predictions.csv."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from ..files import FileError

Rows = Sequence[Mapping[str, str]]  # of predictions.csv, one for each case
Predicted = Mapping[tuple[str, float], Mapping[int, Rows]]  # by start and label fraction, then seed

COLOURS = {"pretrained": "tab:blue", "scratch": "tab:orange"}  # of the starts, in every picture


class Run(NamedTuple):
    """One run of fine-tuning, as the script lists them."""

    start: str
    fraction: float
    seed: int
    checkpoint: Path

    def __str__(self) -> str:
        return f"{self.start}, {share(self.fraction)}, seed {self.seed}"


class Outcome(NamedTuple):
    """A finished run.

    Attributes:
        module: Its script.
        out: Its folder.
        settings: Those of the run, which need not be the script's own.
        own: The script's own, without the label fractions that choose the same of these patients.
        metrics: What metrics.json holds.
        predicted: What predictions.csv holds.
        test: The decoded test cases, in the order of its rows.
    """

    module: ModuleType
    out: Path
    settings: Any
    own: Any
    metrics: Mapping[str, Any]
    predicted: Predicted
    test: Sequence[Any]

    def shown(self) -> Run:
        """The run of which examples are shown: the first with the most labelled cases."""
        most = max(self.metrics["results"], key=lambda result: result["labelled_cases"])
        runs = (Run(*run) for run in self.module.runs(self.settings, self.out))
        return next(run for run in runs if run.fraction == most["label_fraction"])

    def rows(self, run: Run) -> Rows:
        """The predictions of one run."""
        return self.predicted[run.start, run.fraction][run.seed]


def finished(module: ModuleType, data: Path, out: Path) -> Outcome:
    """Reads the folder of a run.

    Args:
        module: The script of the run.
        data: Its manifest.
        out: Its folder, after `evaluate`.

    Raises:
        FileError: If the folder does not hold what `evaluate` writes on these test cases.
    """
    metrics = _metrics(out)
    settings, predicted = _settings(module, metrics["settings"], out), _predictions(out)
    cases = module.prepare(module.read_manifest(data, settings), settings, out)
    test = [c for c in cases if c.target and c.split == metrics["split"]]
    rows = next(iter(next(iter(predicted.values())).values()))
    if [c.path.name for c in test] != [Path(row["path"]).name for row in rows]:
        raise FileError(f"{out}/predictions.csv: is of other test cases than {data} names")
    with redirect_stderr(StringIO()):  # the run has told what it leaves out
        seeds = replace(settings, label_fractions=module.Settings().label_fractions)
        kept = module.distinct(cases, seeds).label_fractions
    own = replace(module.Settings(), label_fractions=kept)
    return Outcome(module, out, settings, own, metrics, predicted, test)


def share(fraction: float) -> str:
    """A label fraction in words: up to 1 a share of the patients, above 1 their number.

    Args:
        fraction: As in the settings.
    """
    return f"label fraction {fraction:g}" if fraction <= 1 else f"{fraction:g} labelled patients"


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
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in stored.items()}
    if unknown := values.keys() ^ {f.name for f in fields(module.Settings)}:
        raise FileError(f"{out} was made by another script: {sorted(unknown)[0]} is not in both")
    return module.Settings(**values)


def _predictions(out: Path) -> Predicted:
    found: dict[tuple[str, float], dict[int, list[dict[str, str]]]] = {}
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            run = row.pop("start"), float(row.pop("label_fraction"))
            found.setdefault(run, {}).setdefault(int(row.pop("seed")), []).append(row)
    return found


# %% Scores beside the main one
def measures(outcome: Outcome, rows: Rows) -> dict[str, float]:
    """What else the predictions of one run are worth, by name; NaN where that is not defined.

    Args:
        outcome: Of the run.
        rows: Of predictions.csv.
    """
    module = outcome.module
    columns = {n: [row[n] for row in rows] for n in rows[0] if n not in ("path", "patient")}
    truth = columns.pop(module.TARGET, [])
    if module.TARGET == "boxes":
        return _precision(outcome, columns["boxes with scores"])
    values = {n: np.array(v, float) for n, v in columns.items()}
    if module.TARGET == "target":
        error = np.abs(values["predicted"] - np.array(truth, float))
        return {"mean absolute error": float(error.mean())}
    if hasattr(module, "probabilities"):
        kinds = [module.parse(t) for t in truth]
        return {
            f"AUROC of {name}": _auroc(score, np.array([place in kind for kind in kinds]))
            for place, (name, score) in enumerate(values.items())
        }
    return {n: _mean(v) for n, v in values.items()}


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """The share of pairs in which the positive case scores higher, ties half (Mann-Whitney)."""
    above = np.sign(score[positive][:, None] - score[~positive]) / 2 + 0.5
    return _mean(above)


def _precision(outcome: Outcome, found: Sequence[str]) -> dict[str, float]:
    """Average precision of each class that a test case holds."""
    module, test = outcome.module, outcome.test
    score = module.Score([boxes(module, text) for text in found], test, outcome.settings)
    kinds = np.unique(np.concatenate([module.stored_boxes(case)[0][:, -1] for case in test]))
    return {
        f"AP of class {kind:g}": module.average_precision(hits, np.ones(len(owner)), truths.sum())
        for kind, (truths, owner, hits) in zip(kinds, score.classes, strict=True)
    }


def boxes(module: ModuleType, text: str) -> np.ndarray:
    """(n, 2 * DIMS + 2) corners in stored coordinates, class and score.

    Args:
        module: A script for detection.
        text: Of predictions.csv.
    """
    rows = [] if text == "none" else [box.split() for box in text.split(";")]
    return np.array(rows, float).reshape(len(rows), 2 * module.DIMS + 2)
