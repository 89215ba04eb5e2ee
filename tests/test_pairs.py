"""Every pair of answers that can go together is in a script that is run, from images to a verdict.

Faults that hide in a combination mostly need two of its parts, so a cover of all pairs finds them
with a twentieth of the runs that all combinations would take.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from emitted import pictures, run, script, volumes
from PIL import Image

from advisor import Knowledge, recommend

KNOWLEDGE = Knowledge.load()
TARGETS = {
    "classification": "label",
    "findings": "labels",
    "segmentation": "mask",
    "regression": "target",
    "retrieval": "label",
    "detection": "boxes",
    "registration": "pair",
}
AXES: dict[str, tuple[str, ...]] = {
    "modality": tuple(KNOWLEDGE.modalities),
    "task": tuple(TARGETS),
    "dimensionality": ("2d", "3d", "video"),
    "backbone": ("cnn", "vit"),
    "adaptation": ("finetune", "frozen"),
}
Choice = tuple[tuple[str, str], ...]


def fitting(choice: Choice) -> list[str]:
    """Methods whose script is for it, by their cards."""
    answers = dict(choice)
    if answers["dimensionality"] not in KNOWLEDGE.modalities[answers["modality"]].dimensionality:
        return []
    task = "classification" if answers["task"] == "findings" else answers["task"]
    return [
        card.id
        for card in KNOWLEDGE.methods.values()
        if card.script
        and answers["dimensionality"] in card.script.dimensionality
        and answers["backbone"] in card.script.backbone
        and task in card.script.task
    ]


def cover() -> list[Choice]:
    """Full choices, each taking in as many pairs that are still missing as any does."""
    every = [tuple(zip(AXES, values)) for values in itertools.product(*AXES.values())]
    pairs = {choice: set(itertools.combinations(choice, 2)) for choice in every if fitting(choice)}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        best = max(pairs, key=lambda choice: len(pairs[choice] & missing))  # of ties the first
        chosen.append(best)
        missing -= pairs[best]
    return chosen


def cases() -> list[tuple[str, Choice]]:
    """With a method for each: of those that no rule excludes the one used least so far."""
    used: Counter[str] = Counter()
    found = []
    for choice in cover():
        answers: dict[str, Any] = dict(choice)
        if answers["task"] == "findings":
            answers |= {"task": "classification", "multilabel": True}
        ranked = {s.method for s in recommend(answers, engine="reference").strategies}
        # public weights need a file, which tests of their own make
        able = ranked & set(fitting(choice)) - {"imagenet", "public-checkpoint"}
        method = min(sorted(able), key=lambda m: used[m])
        used[method] += 1
        found.append((method, choice))
    return found


CASES = cases()


def in_suv(manifest: Path) -> None:
    """Makes of grey values what a PET script takes for standardised uptake values."""
    for file in manifest.parent.glob("i*"):
        if file.suffix == ".png":
            np.save(file.with_suffix(".npy"), np.asarray(Image.open(file)) / np.float32(20))
        else:
            image = nibabel.load(file)
            values = np.abs(image.get_fdata()) / 40
            nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), image.affine), file)
    text = re.sub(r"(?<![\w])(i\d+)\.png", r"\1.npy", manifest.read_text())
    manifest.write_text(text)


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=["-".join([m, *dict(c).values()]) for m, c in CASES]
)
def test_every_pair_of_answers_runs(number: int, tmp_path: Path) -> None:
    method, answers = CASES[number][0], dict(CASES[number][1])
    task, dimensionality = answers["task"], answers["dimensionality"]
    module = script(
        method,
        answers["modality"],
        "classification" if task == "findings" else task,
        dimensionality,
        backbone=answers["backbone"],
        multilabel=task == "findings",
    )
    write = volumes if dimensionality == "3d" else pictures
    manifest = write(tmp_path, target=TARGETS[task])
    if answers["modality"] == "pet":
        in_suv(manifest)
    known = {name for name in module.Settings.__dataclass_fields__}
    more: dict[str, Any] = {"adaptation": answers["adaptation"], "finetune_steps": 1}
    more |= {"batch_size": 2, "recompute": number % 2}
    if method == "swin-unetr" and task != "segmentation":
        more["size"] = 32
    more = {name: value for name, value in more.items() if name in known}
    run(module, "all", manifest, tmp_path / "out", **more)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["test_patients"] == 4 and len(metrics["verdict"]) == 1
    for start in module.STARTS:
        assert all(math.isfinite(v) for v in metrics["results"][0][start].values())
    with (tmp_path / "out" / "predictions.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 4 * len(module.STARTS)
