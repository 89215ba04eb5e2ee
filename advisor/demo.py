"""The whole path on real images, on a CPU: question, answer, script, and the script run."""

from __future__ import annotations

import csv
import importlib.util
import shlex
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from . import dataset, explain, page
from .dataset import Found
from .files import FileError, write
from .profile import nearest
from .words import options

BRAIN = """\
One averaged brain (MNI ICBM152, McConnell Brain Imaging Centre; it comes with nilearn) cut into
coronal slices: it shows that everything is wired together, and is no evidence for any method.
Blocks of four neighbouring slices stand in for patients; a gap of 12 mm keeps the test apart."""
BATCH = 8  # what two cores manage


class Demo(NamedTuple):
    """One data set for the demo.

    Attributes:
        about: What the user should know of the images.
        found: The images and their targets.
        fractions: Numbers of labelled patients to fine-tune with.
    """

    about: str
    found: Found
    fractions: tuple[int, ...]


def run(
    data: Path | None,
    out: Path,
    minutes: float | None = None,
    modality: str = "mri",
    decathlon: str | None = None,
) -> None:
    """Asks, answers, writes the script and trains it, all into one folder.

    A folder that was made for it and is still empty when something fails is taken away again.

    Args:
        data: A folder that `dataset.from_folder` understands; without one, the brain of nilearn.
        out: Where everything goes.
        minutes: How long training may take, roughly, on two cores; 4 if not given.
        modality: What the images of `data` are.
        decathlon: A task of the Medical Segmentation Decathlon, such as "Task04_Hippocampus", to
            be downloaded.

    Raises:
        FileError: If a package is missing, or the task cannot be downloaded.
        DatasetError: If the folder is not understood.
        ProfileError: If the modality is not known.
    """
    _need("torch", "monai", "tqdm", "matplotlib", "nibabel", extra="train")
    fresh = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        _all(data, out, minutes or 4.0, modality, decathlon)
    except BaseException:
        if fresh:
            with suppress(OSError):  # it holds something by now
                out.rmdir()
        raise


def _all(
    data: Path | None, out: Path, minutes: float, modality: str, decathlon: str | None
) -> None:
    if decathlon:
        data = _download(decathlon, out)
    demo = _folder(data) if data else _brain(out / "images")
    found = demo.found
    target = "mask" if found.task == "segmentation" else "label"
    manifest = out / "manifest.csv"
    _write_manifest(manifest, target, found.rows)
    answers = {
        "modality": modality,
        "task": found.task,
        "dimensionality": found.dimensionality,
        "labeled": max(demo.fractions),
        "unlabeled": max(0, len(found.rows) - max(demo.fractions)),
        "classes": max(2, len(found.classes)),
        "backbone": "cnn",
        "batch_size": BATCH,
        "gpus": 0,
    }
    script = _answer(answers, demo, out, minutes)
    run = ["--data", str(manifest), "--out", str(out / "run")]
    print(f"\n$ {shlex.join(['python', str(script), 'all', *run])}", flush=True)
    status = subprocess.run([sys.executable, str(script), "all", *run]).returncode
    if status:
        raise SystemExit(status)
    print(f"\n$ {shlex.join(['medssl', 'report', str(script), *run])}", flush=True)
    from .beside.report import report
    from .beside.script import opened

    print(f"Written: {report(opened(script), manifest, out / 'run')}, with curves and examples.")
    if data is None:
        print("One averaged brain shows the wiring; it is no evidence for or against pre-training.")


def _answer(answers: dict[str, object], demo: Demo, out: Path, minutes: float) -> Path:
    """Prints the answer and writes the script for it."""
    from .plan import make_plan
    from .ranking import recommend
    from .render import render

    answer = recommend(answers)
    print(f"{demo.about}\n\n$ medssl recommend {options(answer.profile)}\n")
    whole = explain.answer(answer)
    page.terminal(page.Page(whole.title, whole.about, whole.sections[:1]), sys.stdout)
    trained = (s.method for s in answer.strategies if s.emits and s.family != "baseline")
    method = next(trained, None)
    plan = make_plan(answer, method, _small(demo, minutes))
    script = out / "train.py"
    write(script, render(plan), force=True)
    print(f"\nThe best-ranked method that pre-trains is {plan.method}: {script}")
    return script


def _small(demo: Demo, minutes: float) -> dict[str, str]:
    """Settings that fit two CPU cores: small images, and steps by the minutes given."""
    flat = demo.found.dimensionality == "2d"
    pool = len(demo.found.rows)
    steps = round((85 if flat else 60) * minutes)  # of pre-training, measured on two cores
    return {
        "size": "96" if flat else "32",
        "epochs": str(max(1, round(steps / max(1, pool // BATCH)))),
        "warmup_epochs": "1",
        "finetune_steps": str(max(10, round(55 * minutes / len(demo.fractions)))),
        "finetune_batch_size": "4",
        "label_fractions": ",".join(map(str, demo.fractions)),
        "seeds": "2",
        "workers": "0",
    }


def _need(*packages: str, extra: str) -> None:
    missing = [p for p in packages if importlib.util.find_spec(p) is None]
    if missing:
        raise FileError(f"{missing[0]} is not installed: pip install 'medssl-advisor[{extra}]'")


def _write_manifest(file: Path, target: str, rows: Iterable[tuple[str, ...]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", target, "patient", "split"))
        writer.writerows(rows)


def _folder(folder: Path) -> Demo:
    found = dataset.from_folder(folder)
    labelled = len({patient for _, target, patient, _ in found.rows if target}) * 4 // 5
    if labelled < 4:
        raise dataset.DatasetError(f"{folder}: fewer than 5 labelled patients")
    about = f"{len(found.rows)} {'volumes' if found.dimensionality == '3d' else 'images'}, {folder}"
    return Demo(about, found, (4, 16) if labelled >= 16 else (4,))


def _download(task: str, out: Path) -> Path:
    """One task of the Decathlon (about 30 MB for the hippocampus), by MONAI's own loader."""
    from monai.apps import DecathlonDataset  # type: ignore[attr-defined]

    known = DecathlonDataset.resource
    if task not in known:
        close = nearest(task, known) or f", only {', '.join(known)}"
        raise FileError(f"--decathlon {task}: there is no such task{close}")
    try:
        DecathlonDataset(
            str(out), task, "training", download=not (out / task).is_dir(), cache_num=0
        )
    except Exception as error:  # MONAI raises it bare where there is no network
        raise FileError(
            f"{task} cannot be downloaded ({_root(error)}); where there is a network, unpack "
            f"{known[task]} and give its folder with --data"
        ) from None
    return out / task


def _root(error: BaseException) -> str:
    """What went wrong first, in one line: a lost connection is wrapped in five others."""
    while below := error.__cause__ or error.__context__:
        error = below
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def _brain(folder: Path) -> Demo:
    """Coronal slices of the MNI brain with grey and white matter as classes 1 and 2."""
    _need("nilearn", extra="demo")
    import nibabel
    import numpy as np
    from PIL import Image

    shipped = resources.files("nilearn.datasets.data")

    def volume(kind: str) -> np.ndarray:
        name = f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
        with resources.as_file(shipped / name) as path:
            return np.asarray(nibabel.load(path).dataobj, dtype=np.float32)  # type: ignore[attr-defined]

    t1, grey, white = (volume(kind) for kind in ("t1", "gm", "wm"))
    grey, white = grey / grey.max(), white / white.max()
    classes = np.where(white > 0.5, 2, np.where(grey > 0.5, 1, 0)).astype(np.uint8)
    scaled = (t1 / t1.max() * 65535).astype(np.uint16)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    test, pool = range(160, 208), range(24, 148)  # coronal planes, 1 mm apart, from back to front
    for y in (*pool, *test):
        image, mask = folder / f"slice-{y:03}.png", folder / f"slice-{y:03}-mask.png"
        Image.fromarray(np.ascontiguousarray(scaled[:, y, ::-1].T)).save(image)
        Image.fromarray(np.ascontiguousarray(classes[:, y, ::-1].T)).save(mask)
        block = f"block-{y // 4}"
        labelled = y in test or (y // 4 % 4 == 0)
        target, split = str(mask.resolve()) if labelled else "", "test" if y in test else "train"
        rows.append((str(image.resolve()), target, block, split))
    found = Found("segmentation", "2d", ("background", "grey matter", "white matter"), tuple(rows))
    return Demo(BRAIN, found, (2, 8))
