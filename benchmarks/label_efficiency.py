"""Does pre-training help on real images, when labels are few? Each set, a method, and its cost.

    python benchmarks/label_efficiency.py hippocampus FOLDER OUT [--method ID]
    python benchmarks/label_efficiency.py radiographs pneumoniamnist.npz OUT
    python benchmarks/label_efficiency.py cells FOLDER OUT

- hippocampus: Task04 of the Medical Segmentation Decathlon (doi 10.1038/s41467-022-30695-9), as it
  is distributed or as images/ beside labels/; a fifth of the subjects is the test set.
- radiographs: PneumoniaMNIST (MedMNIST v2, doi 10.1038/s41597-022-01721-8), with its own splits.
- cells: BCCD, blood smears with boxes (JPEGImages/, Annotations/, ImageSets/), with its own splits.

All images of the training split are pre-trained on; both starts see the same labels, batches and
budget. The settings are far smaller than a script's own: minutes to half an hour on two idle cores.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from advisor import dataset, recommend
from advisor.beside.report import report
from advisor.beside.script import opened
from advisor.plan import make_plan
from advisor.render import render

CELLS = ("RBC", "WBC", "Platelets")
Rows = list[tuple[str, str, str, str]]  # path, target, patient, split


class Problem(NamedTuple):
    """A set of images, and how long to train on it."""

    rows: Callable[[Path, Path], Rows]
    target: str
    profile: dict[str, Any]
    method: str
    settings: dict[str, str]


def hippocampi(folder: Path, _: Path) -> Rows:
    return [tuple(row) for row in dataset.from_folder(folder).rows]


def radiographs(file: Path, out: Path) -> Rows:
    import numpy as np
    from PIL import Image

    out.mkdir(parents=True, exist_ok=True)
    rows = []
    with np.load(file) as content:
        for split in ("train", "val", "test"):
            images, labels = (content[f"{split}_{what}"] for what in ("images", "labels"))
            for n, (image, label) in enumerate(zip(images, labels.ravel(), strict=True)):
                path = out / f"{split}-{n}.png"
                Image.fromarray(image).save(path)
                rows.append((str(path.resolve()), str(label), path.stem, split))
    return rows


def cells(folder: Path, _: Path) -> Rows:
    rows = []
    for split in ("train", "val", "test"):
        for name in (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().split():
            boxes = []
            for each in ElementTree.parse(folder / "Annotations" / f"{name}.xml").iter("object"):
                corners = [
                    each.findtext(f"bndbox/{c}", "") for c in ("xmin", "ymin", "xmax", "ymax")
                ]
                if int(corners[0]) < int(corners[2]) and int(corners[1]) < int(corners[3]):
                    boxes.append(" ".join([*corners, str(CELLS.index(each.findtext("name", "")))]))
            image = (folder / "JPEGImages" / f"{name}.jpg").resolve()
            rows.append((str(image), "; ".join(boxes) or "none", name, split))
    return rows


PROBLEMS = {
    "hippocampus": Problem(
        hippocampi,
        "mask",
        {"modality": "mri", "task": "segmentation", "dimensionality": "3d", "classes": 3},
        "models-genesis",
        {
            "size": "32",
            "batch_size": "8",
            "epochs": "12",
            "warmup_epochs": "1",
            "finetune_steps": "150",
            "finetune_batch_size": "4",
            "label_fractions": "4,16",
            "seeds": "2",
        },
    ),
    "radiographs": Problem(
        radiographs,
        "label",
        {"modality": "xray", "task": "classification", "dimensionality": "2d", "classes": 2},
        "simclr",
        {
            "size": "32",
            "batch_size": "64",
            "epochs": "20",
            "warmup_epochs": "2",
            "finetune_steps": "150",
            "finetune_batch_size": "16",
            "label_fractions": "20,100,500",
            "seeds": "3",
        },
    ),
    "cells": Problem(
        cells,
        "boxes",
        {"modality": "microscopy", "task": "detection", "dimensionality": "2d", "classes": 3},
        "simclr",
        {
            "size": "160",
            "batch_size": "32",
            "epochs": "40",
            "warmup_epochs": "4",
            "finetune_steps": "200",
            "finetune_batch_size": "4",
            "label_fractions": "10,50",
            "seeds": "2",
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("problem", choices=list(PROBLEMS))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--method", help="another method than the one measured so far")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    given = parser.parse_args()
    problem, out = PROBLEMS[given.problem], given.out
    out.mkdir(parents=True, exist_ok=True)
    rows = problem.rows(given.source, out / "images")
    with (out / "manifest.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", problem.target, "patient", "split"), *rows])
    changes = dict(change.split("=", 1) for change in given.set)
    settings = {**problem.settings, "workers": "0", **changes}
    answer = recommend({**problem.profile, "backbone": "cnn", "gpus": 0})
    script = out / "train.py"
    script.write_text(render(make_plan(answer, given.method or problem.method, settings)))
    command = ["all", "--data", str(out / "manifest.csv"), "--out", str(out / "run")]
    status = subprocess.run([sys.executable, str(script), *command]).returncode
    if status:
        raise SystemExit(status)
    print(report(opened(script), out / "manifest.csv", out / "run").read_text())


if __name__ == "__main__":
    main()
