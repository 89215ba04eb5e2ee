"""Does pre-training help on real volumes? Hippocampus segmentation with 4 and 16 labelled subjects.

    python benchmarks/hippocampus.py FOLDER OUT

FOLDER holds Task04 of the Medical Segmentation Decathlon (doi 10.1038/s41467-022-30695-9), as it is
distributed or as images/ beside labels/. A fifth of the subjects is the test set, all others are
pre-trained on; both starts see the same labels, batches and budget. Ten minutes on two idle cores.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

from advisor import dataset, recommend
from advisor.plan import make_plan
from advisor.render import render

SMALL = {
    "size": "32",
    "batch_size": "8",
    "epochs": "12",
    "warmup_epochs": "1",
    "finetune_steps": "150",
    "finetune_batch_size": "4",
    "label_fractions": "4,16",
    "seeds": "2",
    "workers": "0",
}


def main() -> None:
    folder, out = map(Path, sys.argv[1:3])
    out.mkdir(parents=True, exist_ok=True)
    found = dataset.from_folder(folder)
    with (out / "manifest.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "mask", "patient", "split"), *found.rows])
    problem = {
        "modality": "mri",
        "task": found.task,
        "dimensionality": found.dimensionality,
        "labeled": 16,
        "unlabeled": len(found.rows) - 16,
        "classes": len(found.classes),
        "backbone": "cnn",
        "gpus": 0,
    }
    plan = make_plan(recommend(problem), "models-genesis", SMALL)
    (out / "train.py").write_text(render(plan), encoding="utf-8")
    command = ["all", "--data", str(out / "manifest.csv"), "--out", str(out / "run")]
    raise SystemExit(subprocess.run([sys.executable, str(out / "train.py"), *command]).returncode)


if __name__ == "__main__":
    main()
