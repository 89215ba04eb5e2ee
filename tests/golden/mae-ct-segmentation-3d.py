# Strategy: MAE (mae), generative; rank 1 of 31, score 4.25, moderate certainty
# Problem: modality ct; task segmentation; dimensionality 3d; labeled 40; unlabeled 3000
# Unknown: classes, multilabel, target_scale, multi_view, backbone, adaptation, batch_size,
#     image_size, gpus, gpu_memory_gb, hours, public_weights, domain_shift
# Knowledge: 2026.11, sha256 (of rules/)
#
# Why this method:
# - An image can only be restored by a network that keeps position and local structure, and a
#     pixel-wise task needs just these. [reconstruction-for-dense-tasks: strong, moderate
#     certainty]
# - Independent benchmarks on volumes put masked and restored reconstruction before contrast,
#     whose batches are too small and whose crops are too alike there. [masking-leads-on-volumes:
#     strong, moderate certainty]
# - With few labelled volumes a pre-trained U-Net of moderate size did as well as or better than
#     large transformers in blind challenges. [small-network-first-on-volumes: conditional,
#     moderate certainty]
# - With most of the volume hidden there is nothing to interpolate from, and neither sparse
#     operations nor handmade corruptions are needed. [hide-most-of-the-volume: conditional, low
#     certainty]
#
# What speaks against it:
# - against reconstruction-for-dense-tasks: anon-2026-fprl-kumc, he-2025-cover-kipa3d,
#     kang-2023-pathology-order, taher-2021-btl-ssl14, yue-2025-chexworld-seg,
#     wald-2025-openmind-frozen
# - against masking-leads-on-volumes: jiang-2026-jiangbench, rui-2025-brainmvp-brats-ped,
#     wu-2024-voco160k
# - against small-network-first-on-volumes: jiang-2026-jiangbench
# - against hide-most-of-the-volume: eckstein-2025-missing, jiang-2026-jiangbench
#
# Keep in mind:
# - Split by patient before pre-training and keep the test patients out of the unlabelled pool
#     too. [split-by-patient]
"""MAE for ct segmentation in 3D."""

import argparse
import contextlib
import csv
import difflib
import functools
import hashlib
import json
import math
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import NoReturn

import monai
import nibabel
import numpy as np
import pydicom
import torch
import torch.distributed as dist
import torch.nn.functional as F
from matplotlib.figure import Figure
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.blocks import TransformerBlock, UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from monai.networks.nets import ViT
from nibabel.affines import apply_affine, voxel_sizes
from pydicom.misc import is_dicom
from pydicom.pixels import apply_modality_lut, pixel_array
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset
from tqdm import tqdm

DIMS = 3


# %% Settings: every number of the run with its reason; each is a command-line option too
@dataclass(frozen=True)
class Settings:
    # A high ratio removes redundancy, so that interpolation does not solve the task; 3-D runs on CT
    # and MR used it too. [arXiv:2111.06377]
    mask_ratio: float = 0.75
    # The original decoder has 512; half of it suits small encoders, and the decoder is thrown away.
    # [choice; cf. github.com/facebookresearch/mae]
    decoder_dim: int = 256
    # The original decoder has 8 blocks; half of them keep a run on one GPU short. [choice; cf.
    # github.com/facebookresearch/mae]
    decoder_depth: int = 4
    # The original ran 800; 300 is what one GPU affords on a few thousand images, and longer keeps
    # helping. [choice; cf. github.com/facebookresearch/mae]
    epochs: int = 300
    # The loss does not depend on the batch, so it is set by memory; 64 is the original share of one
    # GPU. [github.com/facebookresearch/mae]
    batch_size: int = 64
    # Published 3-D masked pre-training at small batches used 1e-4 to 3e-4; the original 1.5e-4 per
    # 256 images is meant for 4096. [choice; cf. github.com/ZEKAICHEN/MIM-Med3D]
    learning_rate: float = 0.0003
    # The decay of the original command. [github.com/facebookresearch/mae]
    weight_decay: float = 0.05
    # The original warms up for a twentieth of the run. [choice; cf.
    # github.com/facebookresearch/mae]
    warmup_epochs: int = 15
    # ViT-S, the smallest of the usual sizes; few thousand images do not fill a larger one. [choice;
    # cf. arXiv:2104.02057]
    network_width: int = 384
    # The depth of ViT-S and ViT-B alike. [arXiv:2010.11929]
    network_depth: int = 12
    # Structures of a few voxels vanish in patches of 16; 8 keeps 512 tokens in a crop of 64.
    # [choice; cf. arXiv:2503.00835]
    patch_size: int = 8
    # Channels of the finest level of the segmentation decoder, as in UNETR. [arXiv:2103.10504]
    decoder_width: int = 16
    # Crops of 64 voxels per side fit one GPU and are what published 3-D contrastive and restoration
    # pre-training used. [github.com/MIC-DKFZ/nnssl]
    size: int = 64
    # Mirroring moves the liver and the heart to the wrong side, and position is what spatial
    # pretexts learn from. [choice]
    flip_axes: tuple[int, ...] = ()
    # You did not say how many. The background counts as class 0. [choice]
    classes: int = 2
    # The whole network learns. [choice]
    adaptation: str = "finetune"
    # Choose settings on val, report on test. [choice]
    split: str = "test"
    # 1 and 10 % are the customary semi-supervised shares, and all labels show whether pre-training
    # still pays. Shares of 40 cases below one case are left out. [choice; cf. arXiv:2002.05709]
    label_fractions: tuple[float, ...] = (0.1, 1.0)
    # Hounsfield units are absolute, so one fixed window maps one tissue to one value everywhere;
    # this one spans air to bone. [github.com/MrGiovanni/ModelsGenesis]
    intensity_low: float = -1000.0
    # Hounsfield units are absolute, so one fixed window maps one tissue to one value everywhere;
    # this one spans air to bone. [github.com/MrGiovanni/ModelsGenesis]
    intensity_high: float = 1000.0
    # CT has one channel, in Hounsfield units. [choice]
    channels: int = 1
    # Abdominal and whole-body 3-D pre-training resampled to about 1.5 mm, which keeps a useful
    # field of view in one crop. [github.com/FengheTan9/Hi-End-MAE]
    spacing_mm: float = 1.5
    # Patients lie nearly straight; nnU-Net rotates up to 30 degrees, and half of that keeps organs
    # where they occur. [choice; cf. github.com/MIC-DKFZ/nnUNet]
    rotate_degrees: float = 15.0
    # Two crops of one volume are only alike when they overlap; published 3-D contrast asked for at
    # least half. [github.com/MIC-DKFZ/nnssl]
    min_scale: float = 0.5
    # Hounsfield units carry meaning, so intensity may move only by about what contrast phase and
    # tube voltage change. [choice]
    gamma: float = 0.1
    # About 40 HU on the window of 2000 HU: a low-dose scan. [choice]
    noise: float = 0.02
    # Sharp and soft reconstruction kernels differ by about half a voxel to one voxel. [choice; cf.
    # github.com/MIC-DKFZ/nnUNet]
    blur: float = 0.5
    # Pre-training cuts its crops from a region so many times as long as they are; of 1.25, two
    # crops share at least two fifths. [choice; cf. arXiv:2209.12157]
    read_scale: float = 1.25
    # Enough for a few hundred labelled cases, short enough to repeat for every fraction and seed on
    # one GPU. [choice]
    finetune_steps: int = 2000
    # Fits 3-D crops of 64 voxels with a U-Net on a 12 GB card and is kept equal for 2-D so that
    # runs are comparable. [choice]
    finetune_batch_size: int = 8
    # Fine-tuning of pre-trained 3-D segmentation networks was published with Adam at this rate.
    # [choice; cf. arXiv:2306.16925]
    finetune_learning_rate: float = 0.001
    # Three repetitions are the least that shows a spread and still fit a day on one GPU. [choice]
    seeds: int = 3
    # Patient-level percentile intervals at 95 % are stable to about one unit of the last digit
    # shown. [choice]
    bootstrap_samples: int = 2000
    # A fifth of the patients is held out once and never touched before the evaluation. [choice]
    test_share: float = 0.2
    # Above one file in twenty the fault is in the manifest or the reader and not in single files.
    # [choice]
    unreadable_limit: float = 0.05
    # Fine-tuning zooms less than pre-training, so that the target stays in view. [choice]
    finetune_min_scale: float = 0.7
    # Clipping the gradient at norm 1 keeps a single odd batch from undoing a run. [choice]
    clip_norm: float = 1.0
    # Projections of different images normally spread near 1; below a hundredth they are one point,
    # whatever the loss says. [choice; cf. arXiv:2011.10566]
    collapse_spread: float = 0.01
    # Reading the loss waits for the device, so it is read every tenth step. [choice]
    log_every: int = 10
    # A killed run loses at most so many steps. [choice]
    checkpoint_every: int = 200
    # Reading is a memory-mapped crop, so two processes feed one GPU; 0 reads in the main one.
    # [choice]
    workers: int = 2
    # Splits, first weights, batches and views all follow from it. [choice]
    seed: int = 0
    # Larger batches of a process go through the network in pieces whose gradients are added; a
    # smaller number needs less memory and leaves the pre-training loss what it is (the Dice loss of
    # fine-tuning is then one of each piece). [choice]
    images_at_once: int = 1024
    # 1 computes activations again on the way back instead of keeping them: much less memory for
    # about one more forward pass a step. [arXiv:1604.06174]
    recompute: int = 0

    def reading(self) -> list:
        """What the decoded copies of the images depend on."""
        return [value for name, value in asdict(self).items() if name in READING]

    def recipe(self, pretraining: bool) -> dict:
        """What a checkpoint depends on; the other settings may change between runs."""
        later = ("finetune", "classes", "adaptation") if pretraining else ()
        return {n: v for n, v in asdict(self).items() if n not in FREE and not n.startswith(later)}


READING = set(
    "size read_scale channels intensity_low intensity_high spacing_mm lit_level lit_share".split()
)
FREE = set("workers split seeds label_fractions bootstrap_samples probe_neighbours".split())


# %% Data: a CSV manifest, one row an image or volume; rows without a target are the unlabelled pool
@dataclass(frozen=True)
class Case:
    """One row of the manifest; `array` is its decoded copy in the cache."""

    path: Path
    target: str
    patient: str
    split: str
    folder: Path  # of the manifest, which its entries are relative to
    array: Path = Path()


def fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def read_rows(manifest: Path) -> list[tuple[int, dict[str, str]]]:
    """The rows below the header, each with its line number."""
    if not manifest.is_file():
        fail(f"{manifest}: no such file; write a CSV with the columns path,{TARGET},patient,split")
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as stream:
            table = csv.DictReader(stream, restval="", skipinitialspace=True)
            columns = table.fieldnames or []
            rows = [(table.line_num, row) for row in table]
    except (UnicodeDecodeError, csv.Error) as error:
        fail(f"{manifest}: is no CSV file in UTF-8: {error}")
    for needed in ("path", TARGET):
        if needed not in columns:
            near = difflib.get_close_matches(needed, columns, 1)
            hint = f"is {near[0]!r} meant?" if near else f"it has {', '.join(columns) or 'none'}"
            fail(f"{manifest}: no column {needed!r}; {hint}")
    if not rows:
        fail(f"{manifest}: no rows below the header")
    return rows


def read_manifest(manifest: Path, settings: Settings) -> list[Case]:
    """The cases, with every patient in exactly one split; stops at the first mistake."""
    cases, split_of, line_of = [], {}, {}
    rows = read_rows(manifest)
    for number, row in rows:
        where = f"{manifest} line {number}"
        name, target = row["path"].strip(), row[TARGET].strip()
        path = manifest.parent / name
        file, _ = located(path)
        own = str(Path(name).with_name(file.name)) if name else ""  # frames of one file are one
        patient, split = row.get("patient", "").strip() or own, row.get("split", "").strip()
        if not name or not file.exists():
            fail(f"{where}: path: {name!r} does not exist beside the manifest")
        if split not in ("", "train", "val", "test"):
            fail(f"{where}: split: {split!r} is not one of train, val, test (or empty)")
        if split and split_of.setdefault(patient, split) != split:
            fail(f"{where}: patient {patient!r} is in both {split_of[patient]} and {split}")
        if target and (problem := problem_with(target, manifest.parent, settings)):
            fail(f"{where}: {TARGET}: {problem}")
        for each in pictures_of(path, settings):
            if (first := line_of.setdefault(each.resolve(), number)) != number:
                fail(f"{where}: path: {name!r} is the file of line {first} again")
            cases.append(Case(each, paired(each, path, target), patient, split, manifest.parent))
    cases = assign_splits(cases, split_of, settings)
    if "patient" not in rows[0][1]:
        print("note: no patient column, so every file counts as its own patient", file=sys.stderr)
    return cases


def located(path: Path) -> tuple[Path, int | None]:
    """`clip.dcm#7` is frame 7 of clip.dcm, counted from 0; other entries are whole files."""
    name, _, frame = path.name.rpartition("#")
    if not name or not frame.isdigit() or path.exists():
        return path, None
    return path.with_name(name), int(frame)


def paired(each: Path, path: Path, target: str) -> str:
    """The target of one picture of several; masks are files of the same name, or frames."""
    if each == path or not target or TARGET != "mask":
        return target
    if each.parent == path.parent:
        return f"{target}#{located(each)[1]}"
    return str(Path(target) / each.relative_to(path))


def assign_splits(cases: list[Case], split_of: dict[str, str], settings: Settings) -> list[Case]:
    """Unnamed patients go to `train`; if none is named `test`, a share of the labelled does."""
    labelled = sorted({c.patient for c in cases if c.target} - split_of.keys())
    random.Random(settings.seed).shuffle(labelled)
    named = "test" in split_of.values()
    held_out = 0 if named else max(1, round(settings.test_share * len(labelled)))
    split_of = {**dict.fromkeys(labelled[:held_out], "test"), **split_of}
    return with_labels([replace(c, split=split_of.get(c.patient, "train")) for c in cases])


def with_labels(cases: list[Case]) -> list[Case]:
    """The same cases, if there is something to learn from and to test on."""
    for split in ("train", "test"):
        if not any(c.target and c.split == split for c in cases):
            fail(f"no labelled case in the {split} split: label more patients or name splits")
    return cases


def prepare(cases: list[Case], settings: Settings, out: Path) -> list[Case]:
    """Decodes every file once, to be memory-mapped; what cannot be read is skipped and listed.

    Processes share the work; the first one, whose cases count, reports and decides for all.
    """
    rank, world = rank_and_world()
    if rank == 0:
        refuse_leak(cases, out)
        (out / "cache").mkdir(parents=True, exist_ok=True)
    cases = of_first(cases)
    done = decoded(cases[rank::world], settings, out)
    if world > 1:
        shares = [None] * world
        dist.all_gather_object(shares, done)
        failed = next((share for share in shares if isinstance(share, ValueError)), None)
        done = failed or [shares[n % world][n // world] for n in range(len(cases))]
    if isinstance(done, ValueError) and rank == 0:
        fail(str(done))
    return of_first(kept(cases, done, settings, out) if rank == 0 else [])


def of_first(cases: list[Case]) -> list[Case]:
    """What the first process has, on all of them."""
    shared = [cases]
    if rank_and_world()[1] > 1:
        dist.broadcast_object_list(shared)
    return shared[0]


def decoded(cases: list[Case], settings: Settings, out: Path) -> list[Case | str] | ValueError:
    """Each case, or why it cannot be read; the error of a wrong target, a mistake to mend."""
    rank, world = rank_and_world()
    threads = min(8, max(1, (os.cpu_count() or 1) // world))
    try:
        with ThreadPoolExecutor(threads) as pool:
            work = pool.map(lambda case: decode(case, out / "cache", settings), cases)
            return list(tqdm(work, "reading", len(cases), leave=False, disable=rank > 0 or None))
    except ValueError as error:
        return ValueError(str(error))


def kept(cases: list[Case], done: list[Case | str], settings: Settings, out: Path) -> list[Case]:
    """The cases that could be read, unless too many could not."""
    bad = [(str(case.path), result) for case, result in zip(cases, done) if isinstance(result, str)]
    with (out / "unreadable.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "why"), *bad])
    if len(bad) > settings.unreadable_limit * len(cases):
        fail(
            f"{len(bad)} of {len(cases)} files cannot be read (see {out}/unreadable.csv); "
            f"the first is {bad[0][0]}: {bad[0][1]}"
        )
    if bad:
        print(
            f"note: {len(bad)} unreadable files skipped, listed in {out}/unreadable.csv",
            file=sys.stderr,
        )
    return with_labels([result for result in done if isinstance(result, Case)])


def refuse_leak(cases: list[Case], out: Path) -> None:
    """Stops if patients whom an earlier stage was trained on are now held out."""
    before = out / "splits.csv"
    if not (before.exists() and [*out.glob("pretrain.pt"), *out.glob("finetune/*.pt")]):
        return
    with before.open(newline="", encoding="utf-8") as stream:
        seen = {row["patient"] for row in csv.DictReader(stream) if row["split"] == "train"}
    for case in cases:
        if case.split != "train" and case.patient in seen:
            fail(
                f"patient {case.patient!r} is in {case.split} now, but {out} was trained on it: "
                f"name the splits in the manifest as {before} has them, or choose another --out"
            )


def decode(case: Case, cache: Path, settings: Settings) -> Case | str:
    """The case with its decoded copy, or why it cannot be read; ValueError for a wrong target."""
    try:
        array, grid = cached(case.path, "image", cache, settings)
    except Exception as error:  # readers raise anything on broken files; the reason is listed
        return reason(error)
    case = replace(case, array=array)
    return replace(case, target=decode_target(case, grid, cache, settings))


def reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def cached(path: Path, kind: str, cache: Path, settings: Settings) -> tuple[Path, list[float]]:
    """Where the decoded copy lies, and the grid of the image as stored."""
    file, _ = located(path)
    files = sorted(file.iterdir()) if file.is_dir() else [file]
    stamps = [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    wanted = (path.resolve(), stamps, kind, settings.reading())
    copy = cache / f"{hashlib.sha256(repr(wanted).encode()).hexdigest()[:20]}.npy"
    grid_file = copy.with_suffix(".json")
    if not grid_file.exists():
        array, grid = read(path, kind, settings)
        part = copy.with_suffix(f".{uuid.uuid4().hex}.npy")  # two cases may share a mask
        np.save(part, packed(array, kind))
        os.replace(part, copy)
        part.write_text(json.dumps(grid))
        os.replace(part, grid_file)
    return copy, json.loads(grid_file.read_text())


def finite(array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise ValueError("holds NaN or infinite values")
    return array


def packed(array: np.ndarray, kind: str) -> np.ndarray:
    """Images in [0, 1] with 16 bits, masks with 8."""
    if kind == "image":
        return (array * 65535).round().astype(np.uint16)
    classes = array.clip(0, 255).astype(np.uint8)
    if (classes != array).any():
        raise ValueError("holds values that are no class numbers (whole, from 0 to 255)")
    return classes


def unpacked(array: np.ndarray) -> torch.Tensor:
    """An image, or part of one, as it was before it was packed."""
    return torch.from_numpy(array / np.float32(65535))


@dataclass(frozen=True)
class Schedule:
    """How long and how fast; `batch` counts the images of all processes together."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int
    seed: int

    def rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine to zero."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (1 + math.cos(math.pi * progress)) / 2


class Batches(torch.utils.data.Sampler):
    """Step k draws the same cases and crops in every run, so a resumed run continues exactly."""

    def __init__(self, cases: int, schedule: Schedule, start: int, rank: int, world: int):
        self.cases, self.schedule, self.start = cases, schedule, start
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.schedule.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        seed, batch, order, known = self.schedule.seed, self.schedule.batch, None, -1
        for step in range(self.start, self.schedule.steps):
            keys = []
            for draw in range(step * batch + self.rank, (step + 1) * batch, self.world):
                epoch, place = divmod(draw, self.cases)
                if epoch != known:
                    order = np.random.default_rng((seed, epoch)).permutation(self.cases)
                    known = epoch
                keys.append((int(order[place]), seed * 1_000_003 + draw))
            yield keys


def normalise(image: np.ndarray, settings: Settings) -> np.ndarray:
    """Stored units to [0, 1] through one window, so that a value means one tissue."""
    low, high = settings.intensity_low, settings.intensity_high
    return np.clip((image.astype(np.float32) - low) / (high - low), 0, 1)


def quantity(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """DICOM pixels in the units of their rescale: in CT Hounsfield units."""
    rescaled = apply_modality_lut(stored, dataset)
    return rescaled if (rescaled != stored).any() else stored  # integers stay integers


def voxel_size(sides: Sequence[int], stored: Sequence[float], settings: Settings) -> list[float]:
    """Millimetres per voxel of the working grid, one for all: sizes mean the same everywhere."""
    return [settings.spacing_mm or float(side) for side in stored]


def region(settings: Settings) -> int:
    """The side of what is read, from which pre-training cuts crops of `size`."""
    return int(settings.size * settings.read_scale)


ARRAYS = (".npy", ".npz")


def array_in(path: Path) -> tuple[np.ndarray, list[float]]:
    """The array of a NumPy file, and the millimetres that an .npz file may hold as `spacing`."""
    content = np.load(path, allow_pickle=False)
    if isinstance(content, np.ndarray):
        return content, [1.0, 1.0, 1.0]
    with content:
        names = [name for name in content.files if name != "spacing"]
        if len(names) != 1:
            raise ValueError(f"holds the arrays {', '.join(names) or 'none'}; one is expected")
        spacing = content["spacing"].ravel().tolist() if "spacing" in content else [1.0] * 3
        return content[names[0]], spacing


def frames_in(path: Path, channels: int) -> np.ndarray:
    """(T, H, W) or (T, H, W, C): the last axis is of channels if it is as short as they are few."""
    array, _ = array_in(path)
    few = {3, 4, channels}
    if array.ndim == 3 and array.shape[0] in few and array.shape[2] not in few:
        array = np.moveaxis(array, 0, 2)
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in few):
        array = array[None]
    if array.ndim not in (3, 4):
        raise ValueError(f"has the shape {array.shape}; pictures have two axes, then channels")
    return array


# the layout that convolutions prefer; on CPUs the plain one is faster for volumes
MEMORY = torch.channels_last_3d if torch.cuda.is_available() else torch.contiguous_format


def voxels(path: Path, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """(X, Y, Z) in stored units, and the matrix from indices to millimetres (RAS+).

    NIfTI files, NumPy arrays in that order, DICOM: a folder with one series, or an enhanced file.
    """
    if path.is_dir() or is_dicom(path):
        return series(path, kind)
    if path.suffix in ARRAYS:
        array, spacing = array_in(path)
        if array.ndim != 3 or len(spacing) != 3:
            raise ValueError(f"has the shape {array.shape}; one volume with three axes is expected")
        return array, np.diag([*spacing, 1.0])
    image = nibabel.load(path)
    if len(image.shape) < 3 or max(image.shape[3:], default=1) > 1:
        raise ValueError(f"has the shape {image.shape}; one volume with three axes is expected")
    return np.asanyarray(image.dataobj).reshape(image.shape[:3]), image.affine


def slices(path: Path) -> list[tuple[pydicom.Dataset, np.ndarray]]:
    """Header and pixels of every slice."""
    if path.is_dir():
        parts = [pydicom.dcmread(file) for file in sorted(path.iterdir()) if is_dicom(file)]
        parts = [part for part in parts if "PixelData" in part]
        if len(parts) < 2 or len({part.SeriesInstanceUID for part in parts}) > 1:
            raise ValueError("is no folder with the slices of one DICOM series")
        return [(part, pixel_array(part)) for part in parts]
    dataset = pydicom.dcmread(path)
    frames = dataset.get("PerFrameFunctionalGroupsSequence", ())
    if len(frames) < 2:
        raise ValueError("does not say where its slices lie; name the folder of its series")
    shared, stored = dataset.SharedFunctionalGroupsSequence[0], pixel_array(dataset)
    return [(flat(dataset, shared, frame), plane) for frame, plane in zip(frames, stored)]


def flat(dataset: pydicom.Dataset, *groups: pydicom.Dataset) -> pydicom.Dataset:
    """The header that a frame of an enhanced file would have as a file of its own."""
    header = pydicom.Dataset()
    header.update(dataset)
    for element in (element for group in groups for element in group):
        if element.VR == "SQ" and element.value:
            header.update(element.value[0])
    return header


def series(path: Path, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Slices in the order of their places, not of their names; CT in Hounsfield units."""
    parts = slices(path)
    first = parts[0][0]
    across, down = np.reshape(first.ImageOrientationPatient, (2, 3)).astype(float)
    normal = np.cross(across, down)
    parts.sort(key=lambda part: normal @ np.asarray(part[0].ImagePositionPatient, float))
    places = np.array([header.ImagePositionPatient for header, _ in parts], float)
    gaps = np.diff(places @ normal)
    if gaps.max() > 1.5 * gaps.min():
        raise ValueError(
            f"lacks or doubles slices: they are {gaps.min():.2f} to {gaps.max():.2f} mm apart"
        )
    down_mm, across_mm = map(float, first.PixelSpacing)
    step = (places[-1] - places[0]) / (len(parts) - 1)
    affine = np.eye(4)
    affine[:3] = np.stack([across * across_mm, down * down_mm, step, places[0]], axis=1)
    affine[:2] *= -1  # DICOM counts to the left and to the back
    planes = [plane if kind == "mask" else quantity(plane, header) for header, plane in parts]
    return np.stack([plane.T for plane in planes], 2), affine


def read(path: Path, kind: str, settings: Settings) -> tuple[np.ndarray, list[float]]:
    """(1, X, Y, Z) in RAS+ orientation on the working grid, padded; and the stored grid."""
    stored, affine = voxels(path, kind)
    array = normalise(finite(stored), settings) if kind == "image" else finite(stored)
    upright = nibabel.as_closest_canonical(nibabel.Nifti1Image(array.astype(np.float32), affine))
    volume = torch.from_numpy(np.ascontiguousarray(upright.dataobj))[None]
    stored_mm = voxel_sizes(upright.affine)
    zoom = np.array(voxel_size(upright.shape, stored_mm, settings)) / stored_mm
    volume = resampled(volume, zoom, kind)
    short = [max(0, region(settings) - side) for side in volume.shape[1:]]
    padding = [(0, 0), *((n // 2, n - n // 2) for n in short)]
    return np.pad(volume, padding), grid_of(upright)


def resampled(volume: torch.Tensor, zoom: np.ndarray, kind: str) -> np.ndarray:
    """(1, X, Y, Z) with voxels `zoom` times as long; the first edge of each axis stays in place."""
    sides = np.array(volume.shape[1:])
    # 0.01, so that headers of image and mask that differ by rounding give one size
    size = np.maximum(1, np.round(sides / zoom + 0.01)).astype(int)
    # voxels that become one are averaged, not dropped; of class numbers there is no average
    block = np.clip(zoom.astype(int), 1, sides) if kind == "image" else np.ones(3, int)
    volume = F.avg_pool3d(volume, block.tolist(), ceil_mode=True)
    scale = size * zoom / (block * volume.shape[1:])
    affine = np.column_stack([np.diag(scale[::-1]), scale[::-1] - 1])  # axes from the last
    grid = F.affine_grid(
        torch.from_numpy(affine[None]).float(), [1, 1, *size.tolist()], align_corners=False
    )
    mode = "bilinear" if kind == "image" else "nearest"
    return F.grid_sample(volume[None], grid, mode, "border", align_corners=False)[0].numpy()


def grid_of(image: nibabel.Nifti1Image) -> list[float]:
    """Voxels per axis, then millimetres of the first voxel and of the last along each axis."""
    ends = np.vstack([np.zeros(3), np.diag(image.shape) - np.eye(3)])
    return [*image.shape, *apply_affine(image.affine, ends).ravel().tolist()]


def pictures_of(path: Path, settings: Settings) -> list[Path]:
    return [path]  # a file, or a folder with the slices of a series, is one volume


# %% Views: random crops and intensity changes, drawn for whole batches on the device
def random_affine(images: torch.Tensor, min_scale: float, settings: Settings) -> torch.Tensor:
    """(B, d, d + 1): a random crop, flip and in-plane rotation per image, for affine_grid."""
    count, dims, device = len(images), images.ndim - 2, images.device
    side = torch.empty(count, device=device).uniform_(min_scale, 1).pow(1 / dims)
    side = side * settings.size / images.shape[-1]  # of the region, in the network's own resolution
    shift = (1 - side)[:, None] * torch.empty(count, dims, device=device).uniform_(-1, 1)
    angle = torch.empty(count, device=device).uniform_(-1, 1) * math.radians(
        settings.rotate_degrees
    )
    linear = torch.eye(dims, device=device).repeat(count, 1, 1)
    # affine_grid counts axes from the last; the first two array axes of RAS+ volumes are axial
    a, b = dims - 2, dims - 1
    linear[:, a, a], linear[:, b, b] = angle.cos(), angle.cos()
    linear[:, a, b], linear[:, b, a] = -angle.sin(), angle.sin()
    for axis in settings.flip_axes:
        linear[:, dims - 1 - axis] *= 1 - 2 * torch.randint(2, (count, 1), device=device)
    return torch.cat([linear * side[:, None, None], shift[..., None]], dim=2)


def sample(
    images: torch.Tensor, affine: torch.Tensor, size: int, mode: str = "bilinear"
) -> torch.Tensor:
    """The crops (B, C, size, ...) that `affine` describes; what lies outside is 0."""
    grid = F.affine_grid(
        affine, [*images.shape[:2], *[size] * (images.ndim - 2)], align_corners=False
    )
    return F.grid_sample(images, grid, mode=mode, align_corners=False)


def crop(images: torch.Tensor, settings: Settings) -> torch.Tensor:
    """(B, C, region, ...) -> (B, C, size, ...)"""
    return sample(images, random_affine(images, settings.min_scale, settings), settings.size)


def blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur, one axis after the other."""
    radius = max(1, round(2 * sigma))
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.softmax(-(offsets**2) / (2 * max(sigma, 1e-3) ** 2), 0)
    convolve = F.conv2d if images.ndim == 4 else F.conv3d
    flat = images.flatten(0, 1)[:, None]
    with torch.autocast(images.device.type, enabled=False):  # views keep their precision
        for axis in range(2, images.ndim):
            shape, padding = [1] * images.ndim, [0] * (images.ndim - 2)
            shape[axis], padding[axis - 2] = -1, radius
            flat = convolve(flat, kernel.view(shape), padding=padding)
    return flat.view_as(images)


def spread(images: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """One random number from `low` to `high` per image, in a shape that multiplies images."""
    shape = (len(images), *[1] * (images.ndim - 1))
    return torch.empty(shape, device=images.device).uniform_(low, high)


def tone(images: torch.Tensor, settings: Settings) -> torch.Tensor:
    """Random gamma, contrast and brightness."""
    power = torch.exp(spread(images, -1, 1) * math.log1p(settings.gamma))
    images = images.clamp_min(0) ** power
    contrast = spread(images, 1 - settings.gamma / 2, 1 + settings.gamma / 2)
    return images * contrast + spread(images, -0.1, 0.1) * settings.gamma


def distort(images: torch.Tensor, settings: Settings) -> torch.Tensor:
    """What differs between scanners: tone, sharpness and noise."""
    images = tone(images, settings)
    images = torch.lerp(images, blurred(images, settings.blur), spread(images, 0, 1))
    return images + torch.randn_like(images) * spread(images, 0, settings.noise)


def recomputed(blocks: Iterable[nn.Module], settings: Settings) -> None:
    """Blocks forget what they computed and compute it again for the gradient (arXiv:1604.06174)."""
    for block in blocks if settings.recompute else ():
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


# %% Network
class Encoder(nn.Module):
    """MONAI's Vision Transformer (arXiv:2010.11929), without class token: mean tokens."""

    def __init__(self, settings: Settings):
        super().__init__()
        if settings.size % settings.patch_size:
            fail(f"size: {settings.size} is no multiple of the patch size, {settings.patch_size}")
        width = settings.network_width
        self.net = ViT(
            settings.channels,
            settings.size,
            settings.patch_size,
            hidden_size=width,
            mlp_dim=4 * width,
            num_layers=settings.network_depth,
            num_heads=width // 64,
            spatial_dims=DIMS,
            qkv_bias=True,
        )
        for block in self.net.blocks:
            block.norm_cross_attn = nn.Identity()  # unused here, and processes would wait for it
        for layer in self.net.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.eps = 1e-6  # as published Vision Transformers have it
        recomputed(self.net.blocks, settings)
        self.width, self.grid = width, settings.size // settings.patch_size

    def tokens(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, side, ...) -> (B, T, width): one token a patch, which do not know their places."""
        return self.net.patch_embedding.patch_embeddings(images).flatten(2).mT

    def placed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Adds the positions, interpolated for crops that are smaller than `size`."""
        positions = self.net.patch_embedding.position_embeddings.mT.unflatten(2, [self.grid] * DIMS)
        grid = [round(tokens.shape[1] ** (1 / DIMS))] * DIMS
        mode = "bicubic" if DIMS == 2 else "trilinear"
        return tokens + F.interpolate(positions, grid, mode=mode).flatten(2).mT

    def encode(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, width) -> (B, T, width), for any choice of placed tokens."""
        for block in self.net.blocks:
            tokens = block(tokens)
        return self.net.norm(tokens)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, size, ...) -> token maps (B, width, grid, ...) at 1/3, 2/3 and all depth."""
        last, states = self.net(images)
        depth = len(states)
        chosen = [states[depth // 3 - 1], states[2 * depth // 3 - 1], last]
        return [tokens.mT.unflatten(2, [self.grid] * DIMS) for tokens in chosen]

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, side, ...) -> (B, width)"""
        return self.encode(self.placed(self.tokens(images))).mean(1)


class Decoder(nn.Module):
    """A UNETR decoder (arXiv:2103.10504) of MONAI's blocks: tokens grow to the image's size."""

    def __init__(self, encoder: Encoder, outputs: int, settings: Settings):
        super().__init__()
        if settings.patch_size.bit_count() != 1:
            fail(f"patch_size: {settings.patch_size} is no power of 2, so masks cannot be grown")
        steps = settings.patch_size.bit_length() - 1  # doublings from the token grid to the image
        widths = [settings.decoder_width * 2**level for level in range(steps)]  # fine to coarse
        shared = {"norm_name": "instance", "res_block": True}
        self.image = UnetrBasicBlock(DIMS, settings.channels, widths[0], 3, 1, **shared)
        self.skips = nn.ModuleList(
            UnetrPrUpBlock(
                DIMS, encoder.width, width, steps - 1 - level, 3, 1, 2, **shared, conv_block=True
            )
            for level, width in enumerate(widths[1:], start=1)
        )
        inputs = [*widths[1:], encoder.width]
        self.ups = nn.ModuleList(
            UnetrUpBlock(DIMS, wide, width, 3, 2, **shared) for wide, width in zip(inputs, widths)
        )
        self.final = (
            nn.Conv2d(widths[0], outputs, 1) if DIMS == 2 else nn.Conv3d(widths[0], outputs, 1)
        )

    def forward(self, images: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
        """(B, C, size, ...) and its token maps -> (B, outputs, size, ...)"""
        skips = [self.image(images)]
        for level, skip in enumerate(self.skips):
            skips.append(skip(maps[min(level, 1)]))  # finer skips come from shallower tokens
        x = maps[-1]
        for up, skip in zip(reversed(self.ups), reversed(skips)):
            x = up(x, skip)
        return self.final(x)


def hiding_order(images: torch.Tensor, grid: int, side: int, settings: Settings) -> torch.Tensor:
    """(B, cells): the cells of `side` of `grid` patches per axis in random order."""
    cells = (-(-grid // side)) ** (images.ndim - 2)
    return torch.rand(len(images), cells, device=images.device).argsort(1)


def levels(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of every patch of (B, T, P), each (B, T, 1)."""
    variance, mean = torch.var_mean(rows, 2, keepdim=True)
    return mean, (variance + 1e-6).sqrt()


def patches(images: torch.Tensor, side: int) -> torch.Tensor:
    """(B, C, size, ...) -> (B, T, C * side^d), in the order of a transformer's tokens."""
    dims = images.ndim - 2
    for axis in range(2, 2 + dims):
        images = images.unfold(axis, side, side)
    return images.flatten(2, 1 + dims).flatten(3).transpose(1, 2).flatten(2)


def assembled(rows: torch.Tensor, like: torch.Tensor, side: int) -> torch.Tensor:
    """The inverse: (B, T, C * side^d) -> the shape of `like`."""
    dims, grid = like.ndim - 2, [size // side for size in like.shape[2:]]
    x = rows.unflatten(2, (like.shape[1], *[side] * dims)).unflatten(1, grid)
    order = [place for axis in range(dims) for place in (1 + axis, 2 + dims + axis)]
    return x.permute(0, 1 + dims, *order).reshape(like.shape)  # (B, C, grid, side, grid, side, ...)


# %% Method
class Method(nn.Module):
    """MAE (arXiv:2111.06377): rebuild the hidden patches of an image from the visible ones."""

    def __init__(self, settings: Settings):
        super().__init__()
        self.settings = settings
        self.encoder = Encoder(settings)
        tokens, width = self.encoder.grid**DIMS, settings.decoder_dim
        self.enter = nn.Linear(self.encoder.width, width)
        self.hidden_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        blocks = [
            TransformerBlock(width, 4 * width, width // 32, qkv_bias=True)
            for _ in range(settings.decoder_depth)
        ]
        for block in blocks:
            block.norm_cross_attn = nn.Identity()  # as in the encoder
        self.rebuild = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.leave = nn.Linear(width, settings.channels * settings.patch_size**DIMS)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images = crop(images, self.settings)
        visible, hidden = self.drawn(images)
        x = self.encoded(images, visible)
        target = patches(images, self.settings.patch_size).take_along_dim(hidden, 1)
        # mean squared error on hidden patches, normalised by their own mean and variance
        mean, scale = levels(target)
        error = self.rebuilt(x, visible, hidden).float() - (target - mean) / scale
        return error.square().mean(), x.detach().mean(1)

    def drawn(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Numbers of the patches that are visible and of those that are hidden, (B, T', 1) each."""
        total = self.encoder.grid**DIMS
        kept = max(1, round(total * (1 - self.settings.mask_ratio)))
        order = hiding_order(images, self.encoder.grid, 1, self.settings)[..., None]
        return order[:, -kept:], order[:, :-kept]

    def encoded(self, images: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """Tokens of the visible patches; the encoder never sees the hidden ones."""
        tokens = self.encoder.placed(self.encoder.tokens(images))
        return self.encoder.encode(tokens.take_along_dim(visible, 1))

    def rebuilt(self, x: torch.Tensor, visible: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden patches from the tokens of the visible ones."""
        count, kept, _ = visible.shape
        x = torch.cat([self.enter(x), self.hidden_token.expand(*hidden.shape[:2], -1)], 1)
        order = torch.cat([visible, hidden], 1)
        x = x + self.position.expand(count, -1, -1).take_along_dim(order, 1)
        return self.leave(self.rebuild(x))[:, kept:]

    @torch.no_grad()
    def pictures(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        images, side = crop(images, self.settings), self.settings.patch_size
        visible, hidden = self.drawn(images)
        rows = patches(images, side)
        mean, scale = levels(rows.take_along_dim(hidden, 1))
        found = self.rebuilt(self.encoded(images, visible), visible, hidden).float() * scale + mean
        places = hidden.expand_as(found)
        shown = {"hidden": rows.scatter(1, places, 0), "rebuilt": rows.scatter(1, places, found)}
        return {"image": images} | {n: assembled(r, images, side) for n, r in shown.items()}


# %% Crops: a cube out of a larger array
def corner_of(
    shape: tuple[int, ...], side: int, rng: np.random.Generator, centre: np.ndarray | None = None
) -> list[int]:
    """Of a random crop, or of the one around `centre` that stays inside."""
    if centre is None:
        return [int(rng.integers(0, length - side + 1)) for length in shape]
    corner = np.asarray(centre).astype(int) - side // 2
    return [int(np.clip(start, 0, length - side)) for start, length in zip(corner, shape)]


def cut(array: np.ndarray, corner: list[int], side: int) -> np.ndarray:
    """(C, X, ...) -> (C, side, ...)"""
    return array[(slice(None), *(slice(start, start + side) for start in corner))]


PRIMARY = "Dice"


def dice(found: np.ndarray, truth: np.ndarray, classes: int) -> list[float]:
    """Of each foreground class; NaN where both are empty."""
    values = []
    for c in range(1, classes):
        total = (found == c).sum() + (truth == c).sum()
        values.append(2 * ((found == c) & (truth == c)).sum() / total if total else np.nan)
    return values


class Score:
    """Mean Dice over classes and cases of bootstrap samples, from counts of the cases drawn."""

    def __init__(self, predicted: np.ndarray, cases: list[Case], settings: Settings):
        per_class = predicted[:, : settings.classes - 1]
        # cases without any target, true or found, say nothing
        self.counted = ~np.isnan(per_class).all(axis=1)
        if not self.counted.any():
            fail("no test case holds anything but background, true or found; Dice is not defined")
        self.per_case = np.nanmean(per_class[self.counted], axis=1)

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """counts (samples, cases) -> scores (samples,)"""
        counts = counts[:, self.counted]
        return counts @ self.per_case / counts.sum(1)


# %% Masks hold class numbers per pixel or voxel, 0 is background
def decoded_mask(
    name: str, case: Case, image: Path, grid: list[float], cache: Path, settings: Settings
) -> str:
    """The mask's decoded copy, which must lie on the grid of its image."""
    try:
        array, own_grid = cached(case.folder / name, "mask", cache, settings)
    except Exception as error:
        raise ValueError(f"{name}: cannot be used as a mask: {reason(error)}") from None
    sizes, own_sizes = (" x ".join(map(str, g[:DIMS])) for g in (grid, own_grid))
    if own_sizes != sizes:
        raise ValueError(f"{name}: is {own_sizes}, but its image is {sizes}: {image}")
    if not np.allclose(own_grid, grid, rtol=0, atol=0.5):  # millimetres
        raise ValueError(f"{name}: lies elsewhere in space than its image: {image}")
    classes = np.load(array)
    if (highest := int(classes.max())) >= settings.classes:
        hint = "divide the mask by 255" if set(np.unique(classes)) <= {0, 255} else "set --classes"
        raise ValueError(
            f"{name}: holds class {highest}, but classes are 0 to {settings.classes - 1}: {hint}"
        )
    return str(array)


TARGET = "mask"


# %% Task: a class per pixel or voxel
def problem_with(target: str, folder: Path, settings: Settings) -> str | None:
    """Why this entry of the manifest cannot be used."""
    return None if (folder / target).exists() else f"{target!r} does not exist beside the manifest"


def decode_target(case: Case, grid: list[float], cache: Path, settings: Settings) -> str:
    """The mask's decoded copy, on the same grid as its image."""
    if not case.target:
        return ""
    return decoded_mask(case.target, case, case.path, grid, cache, settings)


class Samples(torch.utils.data.Dataset):
    """Random regions (C, region, ...); for fine-tuning (C, size, ...) and masks (1, size, ...)."""

    def __init__(self, cases: list[Case], settings: Settings, targets: bool):
        self.cases, self.targets = cases, targets
        self.side = settings.size if targets else region(settings)

    def __getitem__(self, key: tuple[int, int]):
        case, rng = self.cases[key[0]], np.random.default_rng(key[1])
        image = np.load(case.array, mmap_mode="r")
        corner = corner_of(image.shape[1:], self.side, rng)
        if not self.targets:
            return (unpacked(cut(image, corner, self.side)),)
        mask = np.load(case.target, mmap_mode="r")
        # every second crop is centred on a labelled voxel, so that small targets are seen
        if rng.random() < 0.5:
            labelled = np.argwhere(mask[0])
            if len(labelled):
                centre = labelled[rng.integers(len(labelled))]
                corner = corner_of(image.shape[1:], self.side, rng, centre)
        target = torch.from_numpy(cut(mask, corner, self.side).astype(np.float32))
        return unpacked(cut(image, corner, self.side)), target


class Model(nn.Module):
    """Encoder and decoder, trained on the sum of Dice loss and cross-entropy."""

    def __init__(self, settings: Settings):
        super().__init__()
        self.settings = settings
        self.encoder = Encoder(settings)
        self.decoder = Decoder(self.encoder, settings.classes, settings)
        self.loss = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)

    def forward(
        self, images: torch.Tensor, masks: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        affine = random_affine(images, self.settings.finetune_min_scale, self.settings)
        images = distort(sample(images, affine, self.settings.size), self.settings)
        masks = sample(masks, affine, self.settings.size, mode="nearest")
        maps = self.encoder(images)
        features = maps[-1].detach().float().flatten(2).mean(2)
        return self.loss(self.decoder(images, maps).float(), masks), features

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, size, ...) -> logits (B, classes, size, ...)"""
        return self.decoder(images, self.encoder(images)).float()


def predict(model: Model, cases: list[Case], settings: Settings) -> np.ndarray:
    """Dice (cases, foreground classes) from sliding windows; NaN where both are empty."""
    rows = [
        dice(found_mask(model, case, settings), np.load(case.target)[0], settings.classes)
        for case in cases
    ]
    return np.array(rows, dtype=float)


@torch.inference_mode()
def found_mask(model: Model, case: Case, settings: Settings) -> np.ndarray:
    """The class of every pixel or voxel."""
    image = unpacked(np.load(case.array))[None].to(next(model.parameters()).device)
    window = [settings.size] * (image.ndim - 2)
    logits = sliding_window_inference(image, window, 4, model.predict, overlap=0.5, mode="gaussian")
    return logits.argmax(1).cpu().numpy()[0]


def columns(predicted: np.ndarray) -> list[list[float]]:
    """What predictions.csv holds per case: the Dice of each foreground class."""
    return predicted.round(5).tolist()


def probes(
    encoder: nn.Module, train: list[Case], test: list[Case], settings: Settings
) -> dict[str, float]:
    return {}  # features are coarser than masks, so frozen ones are no fair test here


def backward(
    network: nn.Module, batch: list[torch.Tensor], settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the batch, piece after piece: a mean over images needs no more at a time."""
    pieces = list(zip(*(part.split(settings.images_at_once) for part in batch)))
    total = torch.zeros((), device=batch[0].device)
    for number, piece in enumerate(pieces, start=1):
        alone = number < len(pieces) and hasattr(network, "no_sync")  # processes agree once
        with network.no_sync() if alone else contextlib.nullcontext():
            with precision(piece[0].device):
                loss, features = network(*piece)
            loss = loss * (len(piece[0]) / len(batch[0]))
            loss.backward()
        total += loss.detach()
    return total, features


# %% The loop, for pre-training and fine-tuning alike; it knows no method, task or modality
def rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def this_device() -> torch.device:
    local = int(os.environ.get("LOCAL_RANK", 0))
    return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")


def precision(device: torch.device) -> torch.autocast:
    """Half the memory and twice the speed on GPUs that know bfloat16; losses stay in float32."""
    able = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=able)


def stopped(signals: list[int]) -> bool:
    """Whether any process was told to stop; all hear of it at the same step."""
    if rank_and_world()[1] == 1:
        return bool(signals)
    told = torch.tensor(len(signals), device=this_device())
    dist.all_reduce(told)
    return told.item() > 0


def save(content: object, file: Path) -> None:
    """Under a temporary name first, so that a crash never leaves half a file."""
    part = file.with_name(file.name + ".part")
    torch.save(content, part)
    os.replace(part, file)


def optimizer_of(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW; weight decay acts on weights, not on norms and biases."""
    learned = [p for p in network.parameters() if p.requires_grad]
    decayed = {"params": [p for p in learned if p.ndim > 1], "weight_decay": settings.weight_decay}
    plain = {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0}
    return torch.optim.AdamW([decayed, plain])


def health(features: torch.Tensor) -> tuple[float, float]:
    """Spread of normalised features (0: all alike, 1: even), and their effective rank."""
    rows = nn.functional.normalize(features.double(), dim=1)
    share = torch.linalg.svdvals(rows - rows.mean(0))
    share = (share / share.sum().clamp_min(1e-12)).clamp_min(1e-12)
    return rows.std(0, correction=0).norm().item(), math.exp(-(share * share.log()).sum().item())


class Watch:
    """Writes the history and stops a run that has gone wrong, with a word on what to do."""

    def __init__(self, file: Path, start: int, can_collapse: bool, settings: Settings):
        self.name, self.history, self.settings = file.stem, file.with_suffix(".csv"), settings
        self.can_collapse, self.collapsed, self.began = can_collapse, 0, time.monotonic()
        if rank_and_world()[0] > 0:
            return
        if start:  # forget what came after the checkpoint
            head, *lines = self.history.read_text().splitlines()
            kept = [line for line in lines if int(line.split(",")[0]) <= start]
            self.history.write_text("\n".join([head, *kept]) + "\n")
        else:
            self.history.write_text("step,loss,learning_rate,spread,effective_rank,seconds\n")

    def __call__(self, step: int, loss: float, rate: float, features: torch.Tensor) -> None:
        if not (math.isfinite(loss) and features.isfinite().all()):
            fail(
                f"{self.name}: the loss is not finite at step {step}; "
                f"lower the learning rate (now {rate:.2g}) or warm up for longer"
            )
        spread, effective_rank = health(features)
        alike = self.can_collapse and spread < self.settings.collapse_spread
        self.collapsed = self.collapsed + 1 if alike else 0
        if self.collapsed == 5:
            fail(
                f"{self.name}: all features are alike at step {step} (spread {spread:.0e}); "
                "lower the learning rate, enlarge the batch or choose another method"
            )
        if rank_and_world()[0] == 0:
            row = (step, loss, rate, spread, effective_rank, time.monotonic() - self.began)
            with self.history.open("a", newline="") as stream:
                csv.writer(stream, lineterminator="\n").writerow(f"{value:.6g}" for value in row)


def resumed(file: Path, network: nn.Module, optimizer: torch.optim.Optimizer, recipe: dict) -> int:
    """Loads the checkpoint, if there is one, and returns the step that it was written at."""
    if not file.exists():
        return 0
    state = torch.load(file, map_location=this_device(), weights_only=True)
    for name, value in recipe.items():
        if (before := state["recipe"].get(name)) != value:
            fail(f"{file} was made with {name} {before}, now it is {value}: choose another --out")
    network.load_state_dict(state["network"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def train(
    network: nn.Module, data, file: Path, schedule: Schedule, recipe: dict, settings: Settings
) -> nn.Module:
    """Trains `network`, whose forward returns (loss, features); continues where `file` stopped.

    Every step seeds itself, so a resumed run repeats exactly what an uninterrupted one does.
    """
    (rank, world), device = rank_and_world(), this_device()
    network = network.to(device, memory_format=MEMORY)
    optimizer = optimizer_of(network, settings)
    step = resumed(file, network, optimizer, recipe)
    if step >= schedule.steps:
        return network
    wrapped = DistributedDataParallel(network) if world > 1 else network
    loader = torch.utils.data.DataLoader(
        data,
        batch_sampler=Batches(len(data.cases), schedule, step, rank, world),
        num_workers=settings.workers,
        pin_memory=device.type == "cuda",
    )
    watch = Watch(file, step, getattr(network, "can_collapse", False), settings)
    total = torch.zeros((), device=device)
    signals: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    network.train()
    bar = tqdm(loader, file.stem, schedule.steps, initial=step, disable=rank > 0 or None)
    for batch in bar:
        torch.manual_seed((schedule.seed * 1_000_003 + step) * 1_009 + rank)
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate(step)
        batch = [part.to(device, non_blocking=True) for part in batch]
        optimizer.zero_grad(set_to_none=True)
        loss, features = backward(wrapped, batch, settings)
        nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        optimizer.step()
        step += 1
        if hasattr(network, "after_step"):
            network.after_step(step / schedule.steps)
        total += loss
        last = step == schedule.steps
        if step % settings.log_every == 0 or last:  # reading the loss waits for the device
            mean = total.item() / ((step - 1) % settings.log_every + 1)
            watch(step, mean, schedule.rate(step - 1), features)
            bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
            total.zero_()
        stop = stopped(signals)
        if rank == 0 and (step % settings.checkpoint_every == 0 or last or stop):
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            save({**state, "step": step, "recipe": recipe}, file)
        if stop:
            if rank == 0:
                print(f"stopped at step {step}; the same command continues here", file=sys.stderr)
            raise SystemExit(143)
    signal.signal(signal.SIGTERM, previous)
    return network


def pool(cases: list[Case], settings: Settings) -> Samples:
    """What pre-training draws from: every image by itself."""
    return Samples(cases, settings, targets=False)


# %% The encoder for use elsewhere; report.md shows how it is loaded
def export(given: dict[str, torch.Tensor], settings: Settings, out: Path) -> None:
    """encoder.safetensors: the encoder's tensors, with the settings that rebuild it."""
    encoder = {
        n.removeprefix("encoder."): v.detach().cpu().clone(memory_format=torch.contiguous_format)
        for n, v in given.items()
        if n.startswith("encoder.")
    }
    about = {"method": __doc__ or "", "settings": json.dumps(asdict(settings))}
    part = out / "encoder.safetensors.part"
    save_file(encoder, part, metadata=about)
    os.replace(part, out / "encoder.safetensors")


# %% Pre-training
def pretrain(cases: list[Case], settings: Settings, out: Path) -> None:
    """On every image of the training patients, labelled or not; writes encoder.pt."""
    method, data, schedule = learning(cases, settings)
    recipe = settings.recipe(True)
    method = train(method, data, out / "pretrain.pt", schedule, recipe, settings)
    if rank_and_world()[0] == 0:
        kept = {
            n: v for n, v in method.state_dict().items() if n.startswith(("encoder.", "decoder."))
        }
        save(kept, out / "encoder.pt")
        export(kept, settings, out)


def learning(cases: list[Case], settings: Settings) -> tuple[nn.Module, Dataset, Schedule]:
    """What learns, from what and for how long."""
    data = pool([c for c in cases if c.split == "train"], settings)
    rank, world = rank_and_world()
    batch = shared_evenly(min(settings.batch_size, len(data.cases)))
    if batch != settings.batch_size and rank == 0:
        why = f"{len(data.cases)} images, {world} processes"
        print(f"note: batches of {batch}, for there are {why}", file=sys.stderr)
    each = max(1, len(data.cases) // batch)
    steps, warmup = settings.epochs * each, settings.warmup_epochs * each
    schedule = Schedule(steps, batch, settings.learning_rate, warmup, settings.seed)
    torch.manual_seed(settings.seed)
    return Method(settings), data, schedule


def pretrained(settings: Settings, out: Path) -> dict[str, torch.Tensor]:
    """What pretrain wrote, if it was trained on images as they are read now."""
    file = out / "encoder.pt"
    if not file.exists():
        fail(f"{file} is missing: run pretrain first")
    known = torch.load(out / "pretrain.pt", mmap=True, weights_only=True)["recipe"]
    if changed := [n for n in READING if known.get(n) != asdict(settings).get(n)]:
        fail(f"{file} was trained on images of another {changed[0]}: {known[changed[0]]}")
    return torch.load(file, map_location="cpu", weights_only=True)


FIRST = {"pretrain": pretrain}  # stages before fine-tuning
HISTORIES = {"pretrain": "black"}  # their losses in curves.png


STARTS = {"pretrained": "tab:blue", "scratch": "tab:orange"}  # and their colours in curves.png


# %% Starts: from pre-trained weights and from scratch, all else alike
def first_model(start: str, seed: int, settings: Settings, out: Path) -> nn.Module:
    """The network before fine-tuning; what is new in it is the same for both starts."""
    torch.manual_seed(seed)
    model = Model(settings)
    if start == "pretrained":
        hand_over(model, pretrained(settings, out), out)
    return model


def hand_over(model: nn.Module, given: dict[str, torch.Tensor], out: Path) -> None:
    """Loads all pre-trained tensors that fit, reports which, and accepts no gap in the encoder."""
    own = model.state_dict()
    fits = {n: v for n, v in given.items() if n in own and own[n].shape == v.shape}
    for name in sorted({*given, *own} - fits.keys()):
        if name.startswith("encoder."):
            stage = next(iter(FIRST))
            fail(
                f"{out}/encoder.pt: {name} does not fit this network; "
                f"run {stage} again with these settings"
            )
    model.load_state_dict({**own, **fits})
    report = {"loaded": fits, "new": own.keys() - fits, "left": given.keys() - fits}
    text = json.dumps({kind: sorted(names) for kind, names in report.items()}, indent=1)
    (out / "hand_over.json").write_text(text)


def compare(cases: list[Case], fraction: float, scores: dict, settings: Settings) -> dict:
    """Paired: both starts see the same labels and seeds, and the same drawn patients."""
    pretrained, scratch = (np.stack(scores[start, fraction]) for start in STARTS)
    return {
        "label_fraction": fraction,
        "labelled_cases": len(labelled_part(cases, fraction, settings.seed)),
        "pretrained": interval(over_seeds(pretrained, settings)),
        "scratch": interval(over_seeds(scratch, settings)),
        "difference": interval(over_seeds(pretrained - scratch, settings)),
        "difference_per_seed": (pretrained - scratch)[:, 0].round(4).tolist(),
    }


def verdict(result: dict, patients: int, settings: Settings) -> str:
    """Did pre-training help, by how much, and how sure is that?"""
    gap, cases, seeds = result["difference"], result["labelled_cases"], settings.seeds
    unclear = "made no difference that these patients can show"
    found = "helped" if gap["low"] > 0 else "hurt" if gap["high"] < 0 else unclear
    return (
        f"With {cases} labelled case{'s' * (cases > 1)}, pre-training {found}: "
        f"{PRIMARY} {result['pretrained']['value']:.3f} against "
        f"{result['scratch']['value']:.3f} from scratch, difference {gap['value']:+.3f} "
        f"(95 % interval {gap['low']:+.3f} to {gap['high']:+.3f}; "
        f"{patients} test patients, {seeds} seed{'s' * (seeds > 1)})."
    )


LEARNED_FIRST = {"pretrain": learning}  # network, data and schedule of stages before fine-tuning


def pictures_for(
    cases: list[Case], settings: Settings, out: Path
) -> tuple[str, dict[str, torch.Tensor]]:
    """What the method is given and makes of it, with the weights that it has so far."""
    data, file = pool(cases, settings), out / "pretrain.pt"
    batch = [torch.stack(part) for part in zip(*(data[n, n] for n in range(len(data.cases))))]
    torch.manual_seed(settings.seed)
    method, title = Method(settings), "untrained weights"
    if file.exists():
        state = torch.load(file, map_location="cpu", weights_only=True)
        try:
            method.load_state_dict(state["network"])
        except RuntimeError:
            fail(f"{file} was made with other settings: choose another --out")
        title = f"weights of step {state['step']}"
    method = method.to(this_device()).eval()
    return title, {"as read": batch[0], **method.pictures(*(b.to(this_device()) for b in batch))}


ROWS, COLUMNS = 4, 10


# %% Preview: what the network is given, seen before hours are spent on it
def preview(cases: list[Case], settings: Settings, out: Path) -> None:
    """Writes preview.png: training images as they are read, and what becomes of them."""
    training = [replace(c, target="") for c in cases if c.split == "train"]
    read = readable(training, out / "cache", settings)
    title, pictures = pictures_for(read, settings, out)
    pictures = dict(list(pictures.items())[:COLUMNS])  # of many tiles the first
    draw_pictures(title, pictures, [case.path.name for case in read], out / "preview.png")
    print(f"{out / 'preview.png'}: {', '.join(pictures)}; {title}")


def readable(cases: list[Case], cache: Path, settings: Settings) -> list[Case]:
    """A few of these cases, decoded."""
    cache.mkdir(parents=True, exist_ok=True)
    read, problem = [], "there is no training image"
    for case in cases[:: max(1, len(cases) // ROWS)] + cases:
        if len(read) == ROWS:
            break
        try:
            found = decode(case, cache, settings)
        except ValueError as error:
            fail(str(error))
        if isinstance(found, str):
            problem = f"{case.path}: {found}"
        elif found not in read:
            read.append(found)
    if not read:
        fail(f"nothing to show: {problem}")
    return read


def draw_pictures(
    title: str, pictures: dict[str, Sequence[torch.Tensor]], names: list[str], file: Path
) -> None:
    """One row an image, one column a picture."""
    figure = Figure(figsize=(2 * len(pictures) + 0.3, 2 * len(names) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    axes = figure.subplots(len(names), len(pictures), squeeze=False)
    for column, (name, batch) in enumerate(pictures.items()):
        axes[0, column].set_title(name, fontsize=9)
        for row, picture in zip(axes, batch):
            row[column].imshow(plane(picture.float().cpu()), cmap="gray", vmin=0, vmax=1)
    for row, name in zip(axes, names):
        row[0].set_ylabel(name[-20:], fontsize=7)
        for axis in row:
            axis.set(xticks=[], yticks=[])
    part = file.with_suffix(".png.part")
    figure.savefig(part, dpi=120, format="png")
    os.replace(part, file)


def plane(picture: torch.Tensor) -> np.ndarray:
    """(C, H, W), or of (C, X, Y, Z) the middle axial slice with the front on top, for imshow."""
    if picture.ndim == 4:
        picture = picture[..., picture.shape[-1] // 2].mT.flip(1)
    shown = picture.permute(1, 2, 0) if len(picture) == 3 else picture[0]
    return shown.clamp(0, 1).numpy()


# %% Examples: where truth and prediction differ
def illustrate(predictions: dict, test: list[Case], settings: Settings, out: Path) -> dict:
    """Writes examples.png: the plane of each image with most of its truth."""
    start, fraction, seed, file = next(
        run for run in runs(settings, out) if run[1] == max(settings.label_fractions)
    )
    model, shown = trained(file, settings), {"image": [], "truth": [], "prediction": []}
    chosen = test[:: -(-len(test) // 4)]
    for case in chosen:
        truth = torch.from_numpy(np.load(case.target)).float()
        found = torch.from_numpy(found_mask(model, case, settings))[None].float()
        place = int((truth > 0).sum((0, 1, 2)).argmax()) if truth.ndim == 4 else 0
        images = (unpacked(np.load(case.array)), truth, found)
        for name, image, scale in zip(shown, images, (1, *[settings.classes - 1] * 2)):
            shown[name].append(
                image[..., place : place + 1] / scale if truth.ndim == 4 else image / scale
            )
    title = f"{start}, label fraction {fraction:g}, seed {seed}"
    draw_pictures(title, shown, [c.path.name for c in chosen], out / "examples.png")
    return {}


TRIED = 5  # steps, of which the first, slower one is not counted


# %% Dry run: what the whole run will take, from a few real steps
def estimate(cases: list[Case], settings: Settings, out: Path) -> None:
    """Prints size, memory, hours and disk; writes decoded copies of a few images only."""
    labelled = [c for c in cases if c.target and c.split == "train"]
    read = readable(labelled, out / "cache", settings)
    for start in range(0, len(cases), len(read)):  # the few images stand for all others
        for place, few in enumerate(read, start):
            if place < len(cases):
                target = few.target if cases[place].target else ""
                cases[place] = replace(cases[place], array=few.array, target=target)
    stages = {name: (prepared, 1) for name, prepared in LEARNED_FIRST.items()}
    stages["finetune"] = (most_labels, len(runs(settings, out)))
    for name, (prepared, times) in stages.items():
        network, data, schedule = prepared(cases, settings)
        try:
            seconds = rehearsed(network, data, schedule, settings)
        except torch.cuda.OutOfMemoryError:
            fail(f"{name} does not fit into the memory of this GPU: {lower(settings)}")
        whole, encoder = (
            sum(p.numel() for p in part.parameters()) / 1e6 for part in (network, network.encoder)
        )
        hours = seconds * schedule.steps * times / 3600
        print(
            f"{name}: {whole:.2f} million parameters, {encoder:.2f} of them the encoder's; "
            f"{memory()}; {seconds:.3g} s a step, {schedule.steps} steps"
            f"{f', {times} runs' * (times > 1)}: {hours:.2g} hours"
        )
    masks = [Path(c.target).stat().st_size for c in read if c.target.endswith(".npy")]
    disk = len(cases) * np.mean([c.array.stat().st_size for c in read])
    disk += sum(bool(c.target) for c in cases) * np.mean(masks or [0])
    print(f"decoded copies: {disk / 1e9:.3g} GB in {out / 'cache'} for {len(cases)} images")
    print(f"too much memory: {lower(settings)}; too many hours: {shorter(settings)}")


def most_labels(cases: list[Case], settings: Settings) -> tuple:
    fraction = max(settings.label_fractions)
    return fine_tuning(Model(settings), cases, fraction, settings.seed, settings)


def rehearsed(network: nn.Module, data, schedule: Schedule, settings: Settings) -> float:
    """Median seconds of a step of the loop, reading included."""
    device = this_device()
    network = network.to(device, memory_format=MEMORY).train()
    optimizer, ended = optimizer_of(network, settings), []
    few = Batches(len(data.cases), replace(schedule, steps=TRIED), 0, 0, 1)
    loader = torch.utils.data.DataLoader(data, batch_sampler=few, num_workers=settings.workers)
    for step, batch in enumerate(loader, start=1):
        optimizer.zero_grad(set_to_none=True)
        backward(network, [part.to(device) for part in batch], settings)
        nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        optimizer.step()
        if hasattr(network, "after_step"):
            network.after_step(min(1.0, step / schedule.steps))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ended.append(time.perf_counter())
    return float(np.median(np.diff(ended)))


def memory() -> str:
    """The most that was in use so far: of the GPU, or else of this process."""
    if (device := this_device()).type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / 1e9
        return f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f} of {total:.0f} GB on the GPU"
    try:
        import resource
    except ImportError:  # Windows keeps no such record
        return "memory unknown"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak * (1 if sys.platform == 'darwin' else 1024) / 1e9:.2f} GB at most (CPU)"


def lower(settings: Settings) -> str:
    if getattr(settings, "recompute", True) and getattr(settings, "images_at_once", 1) == 1:
        return "lower --batch-size, --finetune-batch-size or --size"
    ways = {"images_at_once": "lower --images-at-once", "recompute": "add --recompute 1"}
    known = [way for name, way in ways.items() if hasattr(settings, name)]
    return ", ".join([*known, "or lower --batch-size, --finetune-batch-size or --size"])


def shorter(settings: Settings) -> str:
    names = ("epochs", "finetune_steps", "seeds", "label_fractions")
    known = [f"--{n.replace('_', '-')}" for n in names if hasattr(settings, n)]
    return f"lower {', '.join(known)}"


LOADER = """
The encoder by itself, for images (B, C, size, ...) in [0, 1] as the script reads them:

```python
import json
import {script}  # the script of this run
from safetensors import safe_open

with safe_open("{file}", "pt") as file:
    known = json.loads(file.metadata()["settings"])
    tensors = dict((name, file.get_tensor(name)) for name in file.keys())
known = dict((n, tuple(v) if isinstance(v, list) else v) for n, v in known.items())
encoder = {script}.Encoder({script}.Settings(**known)).eval()
encoder.load_state_dict(tensors)
features = encoder.embed(images)
```
"""


# %% The report: what was found, shown and run, for people
def write_report(metrics: dict, settings: Settings, out: Path) -> None:
    """report.md, from what metrics.json holds."""
    table = [("labelled cases", "", metrics["metric"], "95 % interval"), ("---",) * 4]
    for result in metrics["results"]:
        for name, score in result.items():
            if isinstance(score, dict):
                value, low, high = (f"{score[k]:.3f}" for k in ("value", "low", "high"))
                table.append((result["labelled_cases"], name, value, f"{low} to {high}"))
    frozen = [
        f"- frozen features, {start}: {probe} {value:.3f}"
        for start, probes in metrics["frozen_features"].items()
        for probe, value in probes.items()
    ]
    calibration = [
        f"- expected calibration error, {start}, {fraction} of the labels: {value:.3f}"
        for start, errors in metrics.get("calibration_error", {}).items()
        for fraction, value in errors.items()
    ]
    pictures = ("curves.png", "calibration.png", "examples.png")
    changed = [
        f"`{f.name} = {getattr(settings, f.name)!r}`"
        for f in fields(settings)
        if getattr(settings, f.name) != f.default
    ]
    device = this_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    lines = [f"# {(__doc__ or '').strip()}", "", *metrics["verdict"], ""]
    lines += [f"| {' | '.join(map(str, row))} |" for row in table]
    lines += ["", *frozen, *calibration, ""]
    lines += [f"![{p}]({p})\n" for p in pictures if (out / p).exists()]
    lines += [
        f"{metrics['test_patients']} patients of the {metrics['split']} split; every prediction is "
        "in [predictions.csv](predictions.csv), every number in [metrics.json](metrics.json).",
        f"Settings other than the script's own: {', '.join(changed) or 'none'}.",
        f"torch {torch.__version__}, MONAI {monai.__version__}, {name}.",
    ]
    text = "\n".join(lines) + "\n"
    if FIRST:
        file = (out / "encoder.safetensors").as_posix()
        text += LOADER.format(script=Path(__file__).stem, file=file)
    part = out / "report.md.part"
    part.write_text(text, encoding="utf-8")
    os.replace(part, out / "report.md")


# %% The protocol: fine-tune from every start, evaluate on the test patients
def shared_evenly(batch: int) -> int:
    """The next smaller batch of which every process gets an equal part, at least one image."""
    _, world = rank_and_world()
    return max(1, batch // world) * world


def labelled_part(cases: list[Case], fraction: float, seed: int) -> list[Case]:
    """Labelled training cases of a share of the patients (up to 1) or of so many (above 1)."""
    labelled = [c for c in cases if c.target and c.split == "train"]
    patients = np.random.default_rng(seed).permutation(sorted({c.patient for c in labelled}))
    wanted = fraction if fraction > 1 else fraction * len(patients)
    chosen = set(patients[: max(1, round(wanted))])
    return [c for c in labelled if c.patient in chosen]


def runs(settings: Settings, out: Path) -> list[tuple[str, float, int, Path]]:
    """Every fine-tuning run: start, label fraction, seed and checkpoint."""
    return [
        (start, fraction, seed, out / "finetune" / f"{start}-{fraction:g}-{seed}.pt")
        for fraction in settings.label_fractions
        for seed in range(settings.seed, settings.seed + settings.seeds)
        for start in STARTS
    ]


def finetune(cases: list[Case], settings: Settings, out: Path) -> None:
    """One recipe, budget, choice of labels and order of batches; only the first weights differ."""
    (out / "finetune").mkdir(exist_ok=True)
    for start, fraction, seed, file in runs(settings, out):
        model = first_model(start, seed, settings, out)
        model, data, schedule = fine_tuning(model, cases, fraction, seed, settings)
        train(model, data, file, schedule, settings.recipe(False), settings)


def fine_tuning(
    model: nn.Module, cases: list[Case], fraction: float, seed: int, settings: Settings
) -> tuple[nn.Module, Dataset, Schedule]:
    """What learns, from what and for how long."""
    if settings.adaptation == "frozen":
        model.encoder.requires_grad_(False)
    data = Samples(labelled_part(cases, fraction, seed), settings, targets=True)
    steps, batch = settings.finetune_steps, shared_evenly(settings.finetune_batch_size)
    rate = settings.finetune_learning_rate
    return model, data, Schedule(steps, batch, rate, steps // 10, seed)


def trained(file: Path, settings: Settings) -> nn.Module:
    """The network of a finished run."""
    state = torch.load(file, map_location="cpu", weights_only=True) if file.exists() else {}
    if state.get("step", 0) < settings.finetune_steps:
        fail(f"{file} is missing or unfinished: run finetune, it continues where it stopped")
    model = Model(settings)
    model.load_state_dict(state["network"])
    return model.to(this_device()).eval()


def evaluate(cases: list[Case], settings: Settings, out: Path) -> None:
    """Writes metrics.json, predictions.csv, pictures and report.md, and says what was found."""
    if rank_and_world()[0] > 0:
        return
    test = [c for c in cases if c.target and c.split == settings.split]
    if not test:
        fail(f"no labelled case in the {settings.split} split")
    counts = drawn(test, settings)
    scores: dict[tuple[str, float], list[np.ndarray]] = {}
    rows, predictions = [], {}
    for start, fraction, seed, file in runs(settings, out):
        predicted = predict(trained(file, settings), test, settings)
        predictions.setdefault((start, fraction), []).append(predicted)
        scores.setdefault((start, fraction), []).append(Score(predicted, test, settings)(counts))
        values = zip(test, columns(predicted))
        rows += [(start, fraction, seed, c.path, c.patient, *v) for c, v in values]
    write_csv(out / "predictions.csv", [("start", "labels", "seed", "path", "patient"), *rows])
    results = [compare(cases, fraction, scores, settings) for fraction in settings.label_fractions]
    patients = len({c.patient for c in test})
    metrics = {
        "metric": PRIMARY,
        "split": settings.split,
        "test_patients": patients,
        "results": results,
        "frozen_features": frozen_features(cases, test, settings, out),
        "verdict": [verdict(result, patients, settings) for result in results],
        "settings": asdict(settings),
        **illustrate(predictions, test, settings, out),
    }
    part = out / "metrics.json.part"
    part.write_text(json.dumps(metrics, indent=1))
    os.replace(part, out / "metrics.json")
    draw_curves(results, settings, out)
    write_report(metrics, settings, out)
    print("\n".join(metrics["verdict"]))


def write_csv(file: Path, rows: list[tuple]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def drawn(cases: list[Case], settings: Settings) -> np.ndarray:
    """(samples + 1, cases) counts of patients drawn with replacement; row 0 takes all once."""
    names, index = np.unique([c.patient for c in cases], return_inverse=True)
    even = np.full(len(names), 1 / len(names))
    rng = np.random.default_rng(settings.seed)
    draws = rng.multinomial(len(names), even, settings.bootstrap_samples)
    return np.vstack([np.ones(len(cases)), draws[:, index]])


def interval(scores: np.ndarray) -> dict[str, float]:
    """The value on all patients, with the middle 95 % of the bootstrap."""
    low, high = np.nanpercentile(scores[1:], (2.5, 97.5))
    return {k: round(float(v), 4) for k, v in zip(("value", "low", "high"), (scores[0], low, high))}


def over_seeds(scores: np.ndarray, settings: Settings) -> np.ndarray:
    """(seeds, samples + 1) averaged over seeds drawn with replacement; column 0 takes all once."""
    count, samples = scores.shape
    rng = np.random.default_rng(settings.seed)  # the same draws for both starts
    weights = rng.multinomial(count, np.full(count, 1 / count), samples).T / count
    weights[:, 0] = 1 / count
    return (weights * scores).sum(0)


def frozen_features(cases: list[Case], test: list[Case], settings: Settings, out: Path) -> dict:
    """What each start's features are worth before any fine-tuning."""
    labelled, scores = [c for c in cases if c.target and c.split == "train"], {}
    for start in STARTS:
        encoder = first_model(start, settings.seed, settings, out).encoder
        scores[start] = probes(encoder.to(this_device()), labelled, test, settings)
    return scores


def draw_curves(results: list[dict], settings: Settings, out: Path) -> None:
    """curves.png: the losses, and the score against the number of labelled cases."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    files = {out / f"{name}.csv": colour for name, colour in HISTORIES.items()}
    files |= {run[3].with_suffix(".csv"): STARTS[run[0]] for run in runs(settings, out)}
    for file, colour in files.items():
        curve = np.genfromtxt(file, delimiter=",", names=True)
        left.plot(curve["step"], curve["loss"], color=colour, alpha=0.7)
    left.set(xlabel="step", ylabel="loss", yscale="log", title="training")
    for name, colour in {**HISTORIES, **STARTS}.items():
        left.plot([], [], color=colour, label=name)
    left.legend()
    for start, colour in STARTS.items():
        low, value, high = (
            np.array([r[start][k] for r in results]) for k in ("low", "value", "high")
        )
        spans = np.clip([value - low, high - value], 0, None)
        cases = [r["labelled_cases"] for r in results]
        right.errorbar(cases, value, spans, label=start, color=colour, marker="o", capsize=4)
    right.set(xlabel="labelled cases", ylabel=PRIMARY, title="test patients, 95 % intervals")
    right.legend()
    figure.savefig(out / "curves.png", dpi=120)


STAGES = {**FIRST, "finetune": finetune, "evaluate": evaluate}


def parse_arguments() -> tuple[argparse.Namespace, Settings]:
    """Every setting is an option; defaults and reasons stand in Settings above."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=["preview", *STAGES, "all"])
    parser.add_argument("--data", type=Path, required=True, help="the manifest, a CSV file")
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is written")
    parser.add_argument("--dry-run", action="store_true", help="say what it would take, and stop")
    for field in fields(Settings):
        many = isinstance(field.default, tuple)
        kind = type((field.default or (0,))[0] if many else field.default)
        option = f"--{field.name.replace('_', '-')}"
        shown = kind.__name__.upper()
        parser.add_argument(
            option, type=kind, nargs="*" if many else None, default=field.default, metavar=shown
        )
    arguments = parser.parse_args()
    values = {f.name: getattr(arguments, f.name) for f in fields(Settings)}
    return arguments, Settings(
        **{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()}
    )


def main() -> None:
    arguments, settings = parse_arguments()
    out = arguments.out
    if arguments.stage == "preview":
        return preview(read_manifest(arguments.data, settings), settings, out)
    if arguments.dry_run and "RANK" in os.environ:
        fail("--dry-run is for one process: start it with python, not torchrun")
    if arguments.dry_run:
        return estimate(read_manifest(arguments.data, settings), settings, out)
    if "RANK" in os.environ:  # started by torchrun
        if torch.cuda.is_available():
            torch.cuda.set_device(this_device())
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, world = rank_and_world()
    out.mkdir(parents=True, exist_ok=True)
    cases = read_manifest(arguments.data, settings) if rank == 0 else []
    cases = prepare(cases, settings, out)
    if rank == 0:
        splits = [(c.path, c.patient, c.split) for c in cases]
        write_csv(out / "splits.csv", [("path", "patient", "split"), *splits])
    for name, run in STAGES.items():
        if arguments.stage in (name, "all"):
            if world > 1:
                dist.barrier()  # what the stage before wrote is there
            run(cases, settings, out)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()


# Emitted by medssl from the words below; `medssl regenerate --check` compares, by part:
# {"profile": {"modality": "ct", "task": "segmentation", "dimensionality": "3d", "labeled": 40,
# "unlabeled": 3000}, "method": "mae", "parts": "settings 1 951c24dfcfaf, data/manifest 21
# 14ebdea39c32, data/window 1 b4f83be90c64, data/rescaled 1 fe8774b9a472, data/grid_spacing 2
# 6e1bc64b537d, data/array 3 3f3fb6727149, data/volume3d 8 dd1610579cb8, data/one_each 1
# 4a17dff2c808, views/geometry 3 595a0f7ff6a2, views/blurred 1 b2a87925f98f, views/spread 1
# a129bf2456de, views/tone 1 2a3b8d779790, views/grey 1 6380b0560663, networks/recomputed 1
# 557af4ccd22f, networks/vit 1 e75f45052957, networks/vit_decoder 1 b85ba351378b,
# methods/hiding_order 1 ab27764fc31d, methods/levels 1 b31c06efe6ad, methods/patches 2
# e62630ba5e67, methods/mae 1 146634e59a38, tasks/crops 2 d166e7a50f81, tasks/dice 3 739ac21de331,
# tasks/masks 1 e08e7308d18e, tasks/segmentation 9 911ee78fc0ad, loops/pieces 1 732906611b4d, loop
# 10 ffa790718673, data/pool 1 0365cecb7dd5, starts/exported 1 2e5b3f15a1c5, starts/pretrain 5
# b9001b11b089, starts/compared 5 507c61ff0b6d, preview_method 2 db9500013268, preview 5
# f4d6b8ff9b44, report_segmentation 1 46966869e3c9, estimate 7 127e2a55cfb6, report 2 f80621a37fdb,
# protocol 17 0e66e2b2a763"}
