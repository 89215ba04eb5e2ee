"""The report of a run: what was found, shown and run, for people."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from string import Template
from types import ModuleType
from typing import Any

import numpy as np

from .curves import calibration, curves
from .examples import examples
from .outcome import Outcome, finished, measures, share

LOADER = Template("""
The encoder by itself, for images (B, C, size, ...) in [0, 1] as the script, which has to lie beside
this code, reads them:

```python
import importlib
import json
from safetensors import safe_open

script = importlib.import_module($script)
with safe_open($file, "pt") as opened:
    known = json.loads(opened.metadata()["settings"])
    tensors = {name: opened.get_tensor(name) for name in opened.keys()}
known = {name: tuple(v) if isinstance(v, list) else v for name, v in known.items()}
encoder = script.Encoder(script.Settings(**known)).eval()
encoder.load_state_dict(tensors)
features = encoder.embed(images)
```
""")


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
    outcome = finished(module, data, out)
    metrics = outcome.metrics
    title = (module.__doc__ or "").strip().partition("\n")[0]
    lines = [f"# {title}", "", *metrics["verdict"], "", *_table(metrics)]
    lines += ["", *_measures(outcome), ""]
    further, pictures = _frozen(module, metrics), ["curves.png", "examples.png"]
    curves(outcome)
    if hasattr(module, "probabilities"):
        further += calibration(outcome)
        pictures.insert(1, "calibration.png")
    examples(outcome)
    lines += [*further, *[""] * bool(further), *(f"![{p}]({p})\n" for p in pictures)]
    lines += [
        f"{metrics['test_patients']} patients of the {metrics['split']} split; every prediction is "
        "in [predictions.csv](predictions.csv), every number in [metrics.json](metrics.json).",
        f"Settings other than the script's own: {', '.join(_changed(outcome)) or 'none'}.",
        metrics["software"] + ".",
    ]
    text = "\n".join(lines) + "\n"
    if (encoder := out / "encoder.safetensors").exists():
        names = {"script": module.__name__, "file": encoder.as_posix()}
        text += LOADER.substitute({k: json.dumps(name) for k, name in names.items()})
    part = out / "report.md.part"
    part.write_text(text, encoding="utf-8")
    os.replace(part, out / "report.md")
    return out / "report.md"


def _changed(outcome: Outcome) -> list[str]:
    ran = outcome.settings
    names = [f.name for f in fields(ran) if getattr(ran, f.name) != getattr(outcome.own, f.name)]
    return [f"`{name} = {getattr(ran, name)!r}`" for name in names]


def _table(metrics: Mapping[str, Any]) -> list[str]:
    rows = [("labelled cases", "", metrics["metric"], "95 % interval"), ("---",) * 4]
    for result in metrics["results"]:
        for name, score in result.items():
            if isinstance(score, dict):
                value, low, high = (f"{score[k]:.3f}" for k in ("value", "low", "high"))
                rows.append((str(result["labelled_cases"]), name, value, f"{low} to {high}"))
    return _rows(rows)


def _measures(outcome: Outcome) -> list[str]:
    """Scores beside the main one, one column a start and label fraction."""
    found = {
        f"{start}, {share(fraction)}": [measures(outcome, rows) for rows in seeds.values()]
        for (start, fraction), seeds in outcome.predicted.items()
    }
    rows = [("mean over seeds", *found), ("---",) * (1 + len(found))]
    for name in next(iter(found.values()))[0]:
        means = [float(np.mean([each[name] for each in seeds])) for seeds in found.values()]
        form = ".4g" if "error" in name else ".3f"  # an error has a unit
        rows.append((name, *("none" if np.isnan(m) else f"{m:{form}}" for m in means)))
    return _rows(rows)


def _rows(rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in rows]


def _frozen(module: ModuleType, metrics: Mapping[str, Any]) -> list[str]:
    """What frozen features are worth; of pairs what they are worth as they come, from any start."""
    found = metrics["frozen_features"]
    if module.TARGET == "pair":
        return [f"- {name}: {value:.3f}" for name, value in next(iter(found.values())).items()]
    return [
        f"- frozen features, {start}: {probe} {value:.3f}"
        for start, probes in found.items()
        for probe, value in probes.items()
    ]
