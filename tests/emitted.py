"""Emitted scripts as modules, tiny data sets for them, and runs of seconds on one core.

module = script("mae", "ct", "segmentation", "3d")
run(module, "all", volumes(tmp_path), tmp_path / "run", epochs=2)
"""

from __future__ import annotations

import atexit
import csv
import importlib.util
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import nibabel
import numpy as np
import torch
from PIL import Image

from advisor import recommend
from advisor.plan import make_plan
from advisor.render import render

torch.set_num_threads(1)
UNPATCHED: dict[str, Any] = {}  # `precision` of each script as it was emitted
FOLDER = tempfile.TemporaryDirectory(prefix="emitted-")
atexit.register(FOLDER.cleanup)
HIPPOCAMPUS = Path(__file__).parents[2] / "shared" / "data" / "hippocampus"  # beside the checkout

TINY: dict[str, Any] = {
    "batch_size": 4,
    "epochs": 1,
    "warmup_epochs": 0,
    "finetune_steps": 2,
    "finetune_batch_size": 2,
    "label_fractions": (1.0,),
    "seeds": 1,
    "bootstrap_samples": 20,
    "workers": 0,
    "log_every": 1,
    "patch_size": 8,
    "mask_block": 8,
    "network_depth": 3,
    "decoder_width": 8,
    "decoder_dim": 32,
    "decoder_depth": 1,
    "projection_dim": 16,
    "hidden_dim": 32,
    "pyramid_width": 16,
    "embedding_dim": 16,
    "prototypes": 8,
    "random_crops": 1,
    "predictor_dim": 32,
    "predictor_depth": 1,
    "permutations": 8,
    "critic_width": 8,
    "local_views": 2,
    "words": 6,
    "adversarial_start": 0.1,
    "queue_size": 8,
    "out_dim": 16,
    "bottleneck_dim": 16,
    "local_crops": 2,
}


@cache
def text(
    method: str = "simclr",
    modality: str = "xray",
    task: str = "classification",
    dimensionality: str = "2d",
    backbone: str | None = None,
    multilabel: bool = False,
    **overrides: str,
) -> str:
    """What `medssl generate` writes for such a problem."""
    profile = {
        "modality": modality,
        "task": task,
        "dimensionality": dimensionality,
        "backbone": backbone,
        "multilabel": multilabel,
    }
    return render(make_plan(recommend(profile, engine="reference"), method, overrides))


@cache
def script(*arguments: Any, **keywords: Any) -> ModuleType:
    """The same, imported; equal arguments give the same module."""
    source = text(*arguments, **keywords)
    name = f"emitted_{len(list(Path(FOLDER.name).iterdir()))}"
    file = Path(FOLDER.name) / f"{name}.py"
    file.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():  # libraries deprecate their own parts while they are imported
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    # some processors would compute in bfloat16; what tests expect must not depend on the machine
    UNPATCHED[name] = module.precision
    module.precision = lambda device: torch.autocast(device.type, enabled=False)
    return module


def smallest(module: ModuleType) -> dict[str, Any]:
    """The smallest values with which this script still runs."""
    names = {field.name for field in fields(module.Settings)}
    swin, transformer = hasattr(module, "SwinUNETR"), "network_depth" in names
    width = 12 if swin else 64 if transformer else 8
    size = 64 if swin else 16 if "base_crops" in names else 32  # VoCo sees ten crops a volume
    wanted = {**TINY, "network_width": width, "size": size}
    return {name: value for name, value in wanted.items() if name in names}


def settings(module: ModuleType, **changed: Any) -> Any:
    """Its `Settings`, tiny but for what is changed."""
    return module.Settings(**{**smallest(module), **changed})


def options(module: ModuleType, **changed: Any) -> list[str]:
    """The same as command-line options."""
    words: list[str] = []
    for name, value in {**smallest(module), **changed}.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


def run(module: ModuleType, stage: str, manifest: Path, out: Path, **changed: Any) -> None:
    """`python script.py STAGE --data MANIFEST --out OUT`, with tiny settings, in this process."""
    words = ["script.py", stage, "--data", str(manifest), "--out", str(out)]
    with patch.object(sys, "argv", words + options(module, **changed)):
        module.main()


def write_manifest(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """A CSV with the keys of the first row as its header."""
    rows = list(rows)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return file


def shape(label: int, sides: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """True inside a ball (class 0) or a box (class 1) at a random place."""
    radius = min(sides) / 5
    axes = np.meshgrid(*(np.arange(n) for n in sides), indexing="ij")
    away = [np.abs(axis - rng.uniform(0.3, 0.7) * n) for axis, n in zip(axes, sides, strict=True)]
    return np.max(away, 0) <= radius if label else sum(a**2 for a in away) <= radius**2


def rows_of(count: int, labelled: int, target: str, each: int = 1) -> list[dict[str, Any]]:
    """`each` rows a patient; who begins within the first four is `test`, other labelled `train`."""
    rows = []
    for n in range(count):
        known = {"label": n % 2, "labels": ("none", "0", "1", "0;1")[n % 4]}
        value = known.get(target, f"m{n}")  # the others follow from the image
        row = {"path": f"i{n}", target: value if n < labelled else "", "patient": f"p{n // each}"}
        first = n // each * each
        split = "test" if first < 4 else "train" if first < labelled else ""
        rows.append({**row, "split": split})
    return rows


def entry(target: str, n: int, inside: np.ndarray, ending: str) -> Any:
    """What a manifest says of image `n`, with a ball or box `inside`."""
    if target == "target":
        return round(100 * inside.mean() + np.argwhere(inside).mean(), 3)
    if target == "boxes":
        order = slice(None, None, -1 if inside.ndim == 2 else 1)  # x is the column of a picture
        corners = np.argwhere(inside).min(0)[order], np.argwhere(inside).max(0)[order] + 1
        return " ".join(map(str, [*corners[0], *corners[1], 0]))
    other = n - 2 if n % 4 > 1 else n + 2  # of the same class
    return {"mask": f"m{n}{ending}", "pair": f"i{other}{ending};m{n}{ending};m{other}{ending}"}[
        target
    ]


def pictures(
    folder: Path,
    count: int = 16,
    labelled: int = 12,
    target: str = "label",
    sides: tuple[int, int] = (40, 32),
    each: int = 1,
) -> Path:
    """8-bit grey PNG files of noise with a bright ball or box; returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(count, labelled, target, each)
    for n, row in enumerate(rows):
        rng = np.random.default_rng(n)
        inside = shape(n % 2, sides, rng)
        pixels = 100 * inside + rng.uniform(20, 100, sides)
        row["path"] += ".png"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / row["path"])
        if target not in ("label", "labels") and row[target]:
            row[target] = entry(target, n, inside, ".png")
            if target in ("mask", "pair"):
                Image.fromarray(inside.astype(np.uint8)).save(folder / f"m{n}.png")
    return write_manifest(folder / "manifest.csv", rows)


def volumes(
    folder: Path,
    count: int = 10,
    labelled: int = 8,
    target: str = "mask",
    sides: tuple[int, int, int] = (30, 36, 24),
    spacing: float = 1.5,
) -> Path:
    """NIfTI volumes in Hounsfield-like numbers with a bright ball or box; returns the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, affine = rows_of(count, labelled, target), np.diag([spacing] * 3 + [1])
    for n, row in enumerate(rows):
        rng = np.random.default_rng(n)
        inside = shape(n % 2, sides, rng)
        voxels = 400 * inside + rng.normal(-300, 100, sides)
        row["path"] += ".nii.gz"
        nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), affine), folder / row["path"])
        if target not in ("label", "labels") and row[target]:
            row[target] = entry(target, n, inside, ".nii.gz")
            if target in ("mask", "pair"):
                mask = nibabel.Nifti1Image(inside.astype(np.uint8), affine)
                nibabel.save(mask, folder / f"m{n}.nii.gz")
    return write_manifest(folder / "manifest.csv", rows)


def built(method: str, dimensionality: str = "2d", backbone: str | None = None, **changed: Any):
    """A script's module, and its tiny method; segmentation, for its networks are smaller."""
    module = script(method, "mri", "segmentation", dimensionality, backbone=backbone)
    torch.manual_seed(0)
    return module, module.Method(settings(module, **changed)).train()


def random_images(module: ModuleType, network: torch.nn.Module, count: int = 3) -> torch.Tensor:
    """(count, C, region, ...), the same in every call."""
    side = module.region(network.settings)
    generator = torch.Generator().manual_seed(5)
    return torch.rand(count, network.settings.channels, *[side] * module.DIMS, generator=generator)


def seeded(function: Any, *arguments: Any) -> Any:
    """What a function that draws at random gives, the same in every call."""
    torch.manual_seed(1)
    return function(*arguments)
