# Strategy: SimCLR (simclr), contrastive; rank 12 of 30, score 1.50, moderate certainty
# Tied with: dino, moco-v2, moco-v3
# Problem: modality xray; task classification; dimensionality 2d; labeled 200; classes 14
# Unknown: unlabeled, multilabel, target_scale, multi_view, backbone, adaptation, batch_size,
#     image_size, gpus, gpu_memory_gb, hours, public_weights, domain_shift
# Knowledge: 2026.11, sha256 (of rules/)
#
# Why this method:
# - Telling every image from every other keeps what characterises a whole case, which is what a
#     decision on a whole case needs. [contrast-for-global-decisions: strong, moderate certainty]
#
# What speaks against it:
# - against contrast-for-global-decisions: yao-2024-evax-nih, haghighi-2022-dira-chestxray14-1pct,
#     taher-2021-btl-ssl14
"""SimCLR for xray classification in 2D."""

import argparse
import csv
import difflib
import hashlib
import json
import math
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import monai
import numpy as np
import pydicom
import torch
import torch.distributed as dist
import torch.nn.functional as F
from matplotlib.figure import Figure
from monai.networks.nets import resnet18
from PIL import Image
from pydicom.misc import is_dicom
from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from tqdm import tqdm

DIMS = 2


# %% Settings: every number of the run with its reason; each is a command-line option too
@dataclass(frozen=True)
class Settings:
    # Published runs on radiographs, slides, small images and 3-D crops used 0.5; 0.1 was tuned for
    # batches of 4096. [github.com/google-research/medical-ai-research-foundations]
    temperature: float = 0.5
    # The size of the projection head in the original code. [github.com/google-research/simclr]
    projection_dim: int = 128
    # Small in-domain runs with batches of 64 were published with 200 epochs. [arXiv:2303.02245]
    epochs: int = 200
    # A batch that fits one GPU and was published for small medical sets; more images give more
    # negatives. [arXiv:2303.02245]
    batch_size: int = 64
    # A common AdamW rate at a batch of 64; the published rates belong to LARS and SGD and do not
    # carry over. [choice; cf. arXiv:2303.02245]
    learning_rate: float = 0.0005
    # The decay of the published ImageNet command, kept although the optimiser is AdamW. [choice;
    # cf. github.com/google-research/simclr]
    weight_decay: float = 0.0001
    # The default of the original code. [github.com/google-research/simclr]
    warmup_epochs: int = 10
    # Fine texture carries the diagnosis, and the published recipe for these images left blurring
    # out. [rule no-blur-on-medical-images; azizi-2023-remedis;
    # github.com/google-research/medical-ai-research-foundations]
    blur: float = 0.0
    # The side at which the published 2-D recipes and nearly all public weights were trained.
    # [github.com/google-research/simclr]
    size: int = 224
    # Left-right mirroring forges dextrocardia and swaps the side of a finding, and nobody hangs a
    # film upside down; the published recipe did mirror left-right, so it may be switched on when
    # side does not matter. [choice; cf. arXiv:2010.05352]
    flip_axes: tuple[int, ...] = ()
    # Classes count from 0. [your answer]
    classes: int = 14
    # The whole network learns. [choice]
    adaptation: str = "finetune"
    # Choose settings on val, report on test. [choice]
    split: str = "test"
    # 1 and 10 % are the customary semi-supervised shares, and all labels show whether pre-training
    # still pays. [choice; cf. arXiv:2002.05709]
    label_fractions: tuple[float, ...] = (0.01, 0.1, 1.0)
    # Stored units differ between vendors, and burned-in markers and borders would set the range of
    # a plain minimum and maximum. [choice]
    intensity_low: float = 0.5
    # Stored units differ between vendors, and burned-in markers and borders would set the range of
    # a plain minimum and maximum. [choice]
    intensity_high: float = 99.5
    # A radiograph has one intensity channel. [choice]
    channels: int = 1
    # Published chest X-ray contrast used rotations up to 10 degrees, about what positioning varies
    # by. [arXiv:2010.05352]
    rotate_degrees: float = 10.0
    # Published masked pre-training on radiographs kept at least half of the area; smaller crops can
    # lose the finding. [github.com/lambert-x/medical_mae]
    min_scale: float = 0.5
    # Exposure and vendor post-processing change contrast by about this much without hiding faint
    # opacities. [choice]
    gamma: float = 0.2
    # Low-dose detector noise, well below the contrast of a nodule. [choice]
    noise: float = 0.02
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
    # A moderate neighbourhood keeps the k-NN probe stable with few labelled cases per class.
    # [choice]
    probe_neighbours: int = 20
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
    """To [0, 1] between two percentiles of this image, whose units are arbitrary."""
    image = image.astype(np.float32)
    low, high = np.percentile(image, (settings.intensity_low, settings.intensity_high))
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1)


def quantity(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """DICOM pixels in the units of their rescale: in CT Hounsfield units."""
    rescaled = apply_modality_lut(stored, dataset)
    return rescaled if (rescaled != stored).any() else stored  # integers stay integers


def framed(image: np.ndarray, settings: Settings) -> np.ndarray:
    return image  # (C, H, W): all of it


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


VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".wmv", ".mpg", ".m4v", ".webm")
MEMORY = torch.channels_last  # the layout that convolutions prefer


def region(settings: Settings) -> int:
    """The side of what is read: the whole image."""
    return settings.size


def opened(file: Path) -> Image.Image:
    if file.suffix.lower() in VIDEOS:
        raise ValueError(
            "is a video, which is not read: make it a folder of frames "
            "(ffmpeg -i FILE FOLDER/%05d.png) and name the folder"
        )
    try:
        return Image.open(file)
    except Image.DecompressionBombError:
        raise ValueError(
            "is too large for one picture: tile it (vips dzsave FILE FOLDER --depth one "
            "--tile-size 512 --skip-blanks 5) and name the folder"
        ) from None


def frames(file: Path, settings: Settings) -> int:
    """How many pictures the file holds."""
    if file.suffix in ARRAYS:
        return len(frames_in(file, settings.channels))
    if is_dicom(file):
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["NumberOfFrames"])
        return int(dataset.get("NumberOfFrames") or 1)
    with opened(file) as image:
        return getattr(image, "n_frames", 1)


def pixels(path: Path, kind: str, settings: Settings) -> np.ndarray:
    """(H, W) or (H, W, C) in stored units; 16 bits stay 16 bits."""
    file, frame = located(path)
    count = frames(file, settings)
    if count > 1 and frame is None:
        raise ValueError(
            f"has several frames: name one ({file.name}#0 to #{count - 1}), write a folder "
            "of frames or tiles, or describe the data as video"
        )
    frame = frame or 0
    if frame >= count:
        raise ValueError(f"has no frame {frame}; the last is {count - 1}")
    if file.suffix in ARRAYS:
        return frames_in(file, settings.channels)[frame]
    if is_dicom(file):
        return dicom_pixels(file, frame, kind)
    with opened(file) as image:
        image.seek(frame)
        if kind == "mask" and image.mode in ("1", "P"):
            return np.asarray(image)  # class numbers; the palette is only for showing them
        grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")
        plain = {"1": "L", "LA": "L"}.get(image.mode, image.mode) if grey else "RGB"
        return np.asarray(image.convert(plain))


def dicom_pixels(file: Path, frame: int, kind: str) -> np.ndarray:
    dataset = pydicom.dcmread(file)
    stored, meaning = pixel_array(dataset, index=frame), dataset.PhotometricInterpretation
    if meaning == "PALETTE COLOR" and kind == "image":
        return apply_color_lut(stored, dataset)
    if meaning.startswith("MONOCHROME") and kind == "image":
        stored = quantity(stored, dataset)
    return stored.max() - stored if meaning == "MONOCHROME1" and kind == "image" else stored


def read(path: Path, kind: str, settings: Settings) -> tuple[np.ndarray, list[int]]:
    """(C, size, size), longer side resized and shorter padded; and the stored (H, W)."""
    stored = finite(pixels(path, kind, settings))
    grid = list(stored.shape[:2])
    if kind == "mask":
        plane = stored if stored.ndim == 2 else stored[..., 0]
        if stored.ndim == 3 and (stored != plane[..., None]).any():
            raise ValueError("is a colour picture; a mask holds one class number a pixel")
        return square(plane[None], settings.size, "nearest-exact"), grid
    image = channels_of(stored, settings)
    return square(framed(image, settings), settings.size, "bilinear"), grid


def channels_of(stored: np.ndarray, settings: Settings) -> np.ndarray:
    """(C, H, W) in [0, 1]; what has more channels than a colour picture scales each by itself."""
    planes = stored[None] if stored.ndim == 2 else np.moveaxis(stored, 2, 0)
    if settings.channels > 3 and len(planes) == settings.channels:
        return np.stack([normalise(plane, settings) for plane in planes])
    image = normalise(planes[:3], settings)
    if len(image) != settings.channels:  # radiographs are often saved as RGB, colour images as grey
        image = np.repeat(image.mean(0, keepdims=True), settings.channels, axis=0)
    return image


def square(image: np.ndarray, size: int, mode: str) -> np.ndarray:
    """Keeps the aspect ratio: (C, H, W) -> (C, size, size) with zeros around."""
    height, width = (max(1, round(side * size / max(image.shape[1:]))) for side in image.shape[1:])
    pixels = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32))[None]
    pixels = F.interpolate(pixels, (height, width), mode=mode, antialias=mode == "bilinear")[0]
    top, left = (size - height) // 2, (size - width) // 2
    return F.pad(pixels, (left, size - width - left, top, size - height - top)).numpy()


def pictures_of(path: Path, settings: Settings) -> list[Path]:
    """A folder stands for all files below it, such as the tiles of a slide."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and file.name[0] != ".")
    return found or [path]


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


class Summed(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx, x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batch of all processes, on any device (torch's own needs GPUs)."""

    def _check_input_dim(self, x: torch.Tensor) -> None:
        pass  # any number of dimensions

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        kind, x = x.dtype, x.float()
        axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
        count = Summed.apply(x.new_tensor(x.numel() / x.shape[1]))  # processes may differ
        mean = Summed.apply(x.sum(axes)) / count
        centred = x - mean.view(shape)
        variance = Summed.apply(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale.view(shape) + self.bias.view(shape)).to(kind)


def synced(module: nn.Module) -> nn.Module:
    """Lets every batch norm inside `module` see the batch of all processes."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.__class__ = SyncedBatchNorm
    return module


# %% Network
class Encoder(nn.Module):
    """ResNet-18 (arXiv:1512.03385) with the strides of its paper, which are not MONAI's."""

    def __init__(self, settings: Settings):
        super().__init__()
        net = resnet18(
            spatial_dims=DIMS,
            n_input_channels=settings.channels,
            conv1_t_stride=2,
            bias_downsample=False,
            feed_forward=False,
        )
        self.net, self.width = synced(net), 512
        self.widths = [64, 64, 128, 256, 512]  # of the maps

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(B, C, size, ...) -> five maps from size/2 to size/32."""
        net = self.net
        maps = [net.act(net.bn1(net.conv1(images)))]
        x = net.maxpool(maps[0])
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = stage(x)
            maps.append(x)
        return maps

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, size, ...) -> (B, width)"""
        return self(images)[-1].flatten(2).mean(2)


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers; between them batch norm over the batch of all processes, and ReLU."""
    *inner, last = pairwise(widths)
    layers = []
    for inputs, outputs in inner:
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)]
        layers.append(nn.ReLU(inplace=True))
    return synced(nn.Sequential(*layers, nn.Linear(*last)))


def gather(rows: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, with gradients: negatives come from the whole batch."""
    if not dist.is_initialized():
        return rows
    mine, none = dist.get_rank(), torch.zeros_like(rows)
    placed = [rows if rank == mine else none for rank in range(dist.get_world_size())]
    return Summed.apply(torch.cat(placed))


def nt_xent(z: torch.Tensor, temperature: float) -> torch.Tensor:
    """NT-Xent (arXiv:2002.05709) of normalised features (2B, D): first views, then second ones."""
    first, second = map(gather, z.chunk(2))  # of all processes: (N, D) each
    every = torch.cat([first, second])
    # l(i, j) = -log( exp(sim(z_i, z_j) / t) / sum_{k != i} exp(sim(z_i, z_k) / t) )
    similarity = every @ every.T / temperature  # (2N, 2N)
    itself = torch.eye(len(every), dtype=torch.bool, device=z.device)
    similarity = similarity.masked_fill(itself, -torch.inf)
    partner = torch.arange(len(every), device=z.device).roll(len(first))
    return F.cross_entropy(similarity, partner)


# %% Method
class Method(nn.Module):
    """SimCLR (arXiv:2002.05709): two views of one image attract, all other images repel."""

    can_collapse = True  # equal features for all images are a failure that must be noticed

    def __init__(self, settings: Settings):
        super().__init__()
        self.settings = settings
        self.encoder = Encoder(settings)
        width = self.encoder.width
        self.head = mlp(width, width, settings.projection_dim)

    def views(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [distort(crop(images, self.settings), self.settings) for _ in range(2)]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        views = torch.cat(self.views(images))
        z = F.normalize(self.head(self.encoder.embed(views)).float(), dim=1)  # (2B, D)
        return nt_xent(z, self.settings.temperature), z.detach()

    @torch.no_grad()
    def pictures(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return dict(zip(("first view", "second view"), self.views(images)))


TARGET = "label"


# %% Task: one class a case
def parse(target: str) -> set[int]:
    return {int(target)}


def task_loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Cross-entropy; logits (B, classes), truth one-hot (B, classes)."""
    return F.cross_entropy(logits.float(), truth)


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    return logits.float().softmax(1)


def certainty(predicted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the likeliest class of each case, and whether it is the true one."""
    best = predicted.argmax(1)[:, None]
    return tuple(np.take_along_axis(rows, best, 1)[:, 0] for rows in (predicted, truth))


# %% Whole images, in training, in evaluation and for what their frozen features are worth
class Samples(torch.utils.data.Dataset):
    """Whole images (C, size, ...); for fine-tuning with their rows of `truths`."""

    def __init__(self, cases: list[Case], settings: Settings, targets: bool):
        self.cases = cases
        self.truths = truths(cases, settings) if targets else None

    def __getitem__(self, key: tuple[int, int]):
        image = unpacked(np.load(self.cases[key[0]].array))
        return (image,) if self.truths is None else (image, self.truths[key[0]])


@torch.inference_mode()
def on_all(compute: Callable, cases: list[Case], settings: Settings) -> torch.Tensor:
    """compute(images) -> (B, ...) for all cases, on the CPU."""
    images, rows = Samples(cases, settings, targets=False), []
    for start in range(0, len(cases), 64):
        batch = [images[i, 0][0] for i in range(start, min(start + 64, len(cases)))]
        rows.append(compute(torch.stack(batch).to(this_device())).float().cpu())
    return torch.cat(rows)


def standardised(
    encoder: nn.Module, train: list[Case], test: list[Case], settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Frozen features (cases, width) of both, on the scale of those for training."""
    encoder.eval()
    x, query = (on_all(encoder.embed, cases, settings) for cases in (train, test))
    mean, spread = x.mean(0), x.std(0, correction=0) + 1e-6
    return (x - mean) / spread, (query - mean) / spread


def neighbours(
    x: torch.Tensor, y: torch.Tensor, query: torch.Tensor, settings: Settings
) -> torch.Tensor:
    """The mean of y (cases, n) over the cases nearest to each query, the nearer the heavier."""
    similarity = F.normalize(query, dim=1) @ F.normalize(x, dim=1).T
    near = similarity.topk(min(settings.probe_neighbours, len(x)), dim=1)
    weights = (near.values / 0.07).softmax(1)  # arXiv:1805.01978
    return torch.einsum("qk,qkn->qn", weights, y[near.indices])


PRIMARY = "AUROC"


def problem_with(target: str, folder: Path, settings: Settings) -> str | None:
    """Why this entry of the manifest cannot be used."""
    try:
        wrong = [c for c in parse(target) if not 0 <= c < settings.classes]
    except ValueError:
        return f"{target!r} is not a class number; classes are 0 to {settings.classes - 1}"
    return f"class {wrong[0]} is not one of 0 to {settings.classes - 1}" if wrong else None


def decode_target(case: Case, grid: list[float], cache: Path, settings: Settings) -> str:
    return case.target  # class numbers need no decoding


def truths(cases: list[Case], settings: Settings) -> torch.Tensor:
    """(cases, classes), 1 where a case belongs to a class."""
    truth = torch.zeros(len(cases), settings.classes)
    for row, case in zip(truth, cases):
        row[list(parse(case.target))] = 1
    return truth


class Model(nn.Module):
    """The encoder with a linear layer on its features."""

    def __init__(self, settings: Settings):
        super().__init__()
        self.settings = settings
        self.encoder = Encoder(settings)
        self.head = nn.Linear(self.encoder.width, settings.classes)

    def forward(
        self, images: torch.Tensor, truth: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        affine = random_affine(images, self.settings.finetune_min_scale, self.settings)
        views = distort(sample(images, affine, self.settings.size), self.settings)
        features = self.encoder.embed(views)
        return task_loss(self.head(features), truth), features.detach().float()

    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, size, ...) -> probabilities (B, classes)"""
        return probabilities(self.head(self.encoder.embed(images)))


def predict(model: Model, cases: list[Case], settings: Settings) -> np.ndarray:
    """Probabilities (cases, classes)."""
    return on_all(model.predict, cases, settings).numpy()


class Score:
    """Macro AUROC (one against the rest) of bootstrap samples, from counts of the cases drawn."""

    def __init__(self, predicted: np.ndarray, cases: list[Case], settings: Settings):
        truth = truths(cases, settings).numpy() > 0
        self.pairs = []
        for positive, score in zip(truth.T, predicted.T):
            if positive.any() and not positive.all():
                # a pair counts 1 if the positive case scores higher, 1/2 if they tie (Mann-Whitney)
                above = np.sign(score[positive][:, None] - score[~positive][None]) / 2 + 0.5
                self.pairs.append((positive, above))
        if not self.pairs:
            fail("the test cases hold one class only, so AUROC is not defined; name other splits")

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """counts (samples, cases) -> scores (samples,); NaN where a class was not drawn."""
        values = []
        for positive, above in self.pairs:
            p, n = counts[:, positive], counts[:, ~positive]
            wins = np.einsum("sp,pn,sn->s", p, above, n, optimize=True)
            values.append(wins / np.where(drawn := p.sum(1) * n.sum(1), drawn, np.nan))
        known = np.isfinite(values)
        with np.errstate(invalid="ignore"):
            return np.where(known, values, 0).sum(0) / known.sum(0)


def columns(predicted: np.ndarray) -> list[list[float]]:
    """What predictions.csv holds per case: the probability of each class."""
    return predicted.round(5).tolist()


def probes(
    encoder: nn.Module, train: list[Case], test: list[Case], settings: Settings
) -> dict[str, float]:
    """AUROC of a weighted nearest-neighbour vote and of a linear probe on frozen features."""
    (x, query), y = standardised(encoder, train, test, settings), truths(train, settings)
    linear = nn.Linear(x.shape[1], settings.classes)
    nn.init.zeros_(linear.weight)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = task_loss(linear(x), y) + 1e-2 * linear.weight.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    found = {
        "kNN": neighbours(x, y, query, settings),
        "linear probe": probabilities(linear(query)).detach(),
    }
    everyone = np.ones((1, len(test)))
    return {name: float(Score(p.numpy(), test, settings)(everyone)[0]) for name, p in found.items()}


def backward(
    network: nn.Module, batch: list[torch.Tensor], settings: Settings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the whole batch at once: its images are compared, or normalised, together."""
    with precision(batch[0].device):
        loss, features = network(*batch)
    loss.backward()
    return loss.detach(), features


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


BINS = 10


# %% How far probabilities can be believed, and examples
def illustrate(predictions: dict, test: list[Case], settings: Settings, out: Path) -> dict:
    """Writes calibration.png and examples.png; returns calibration errors, means over seeds."""
    truth, errors = truths(test, settings).numpy(), {}
    figure = Figure(figsize=(4 * len(settings.label_fractions), 4.6), layout="constrained")
    axes = figure.subplots(1, len(settings.label_fractions), squeeze=False)[0]
    for axis, fraction in zip(axes, settings.label_fractions):
        axis.plot((0, 1), (0, 1), color="grey", linestyle=":")
        for start, colour in STARTS.items():
            pairs = [certainty(p, truth) for p in predictions[start, fraction]]
            error = np.mean([calibration_error(*pair) for pair in pairs])
            errors.setdefault(start, {})[f"{fraction:g}"] = round(float(error), 4)
            confidence, right, _ = reliability(*map(np.concatenate, zip(*pairs)))
            label = f"{start}: error {error:.3f}"
            axis.plot(confidence, right, color=colour, marker="o", label=label)
        axis.set(xlabel="predicted probability", ylabel="share that is right", aspect="equal")
        axis.set_title(f"label fraction {fraction:g}")
        axis.legend()
    figure.savefig(out / "calibration.png", dpi=120)
    draw_examples(predictions, test, settings, out)
    return {"calibration_error": errors}


def reliability(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(3, bins in use): mean confidence, share right and share of all, in bins of equal width."""
    place = np.ceil(confidence * BINS).clip(1, BINS).astype(int) - 1
    counts, sure, good = (
        np.bincount(place, weights, BINS) for weights in (None, confidence, right)
    )
    used = counts > 0
    return np.array(
        [sure[used] / counts[used], good[used] / counts[used], counts[used] / len(right)]
    )


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error (arXiv:1706.04599): the mean gap, bins weighted by cases."""
    sure, good, share = reliability(confidence, right)
    return float((share * np.abs(sure - good)).sum())


def draw_examples(predictions: dict, test: list[Case], settings: Settings, out: Path) -> None:
    """examples.png: test images with their truth and the most probable classes."""
    start, fraction = next(iter(STARTS)), max(settings.label_fractions)
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    figure.suptitle(f"{start}, label fraction {fraction:g}, first seed")
    for axis, place in zip(figure.subplots(2, 4).flat, few(len(test), 8)):
        row = predictions[start, fraction][0][place]
        guesses = ", ".join(f"{c}: {row[c]:.2f}" for c in np.argsort(-row)[:2])
        axis.imshow(plane(unpacked(np.load(test[place].array))), cmap="gray", vmin=0, vmax=1)
        axis.set_title(f"class {test[place].target}\n{guesses}", fontsize=9)
    for axis in figure.axes:
        axis.axis("off")
    figure.savefig(out / "examples.png", dpi=120)


def few(count: int, wanted: int) -> list[int]:
    """Places spread over all."""
    return sorted(set(np.linspace(0, count - 1, wanted).round().astype(int).tolist()))


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
# {"profile": {"modality": "xray", "task": "classification", "dimensionality": "2d", "labeled": 200,
# "classes": 14}, "method": "simclr", "parts": "settings 1 9a904d485f5b, data/manifest 21
# 14ebdea39c32, data/percentile 1 33bf83375f8f, data/rescaled 1 fe8774b9a472, data/frame_whole 1
# cb960b0e1e35, data/array 3 3f3fb6727149, data/image2d 10 2531b26987aa, data/folder 1 5bc30bfe7c10,
# views/geometry 3 595a0f7ff6a2, views/blurred 1 b2a87925f98f, views/spread 1 a129bf2456de,
# views/tone 1 2a3b8d779790, views/grey 1 6380b0560663, networks/summed 1 0f62c1389cba,
# networks/synced 2 d09fce4d19c3, networks/resnet 1 a0c847e84f29, methods/mlp 1 a093e2d1b9fe,
# networks/gather 1 b6b51890a301, methods/nt_xent 1 93c7ad5c1e53, methods/simclr 1 cd65f27d2990,
# tasks/single_label 5 0cabf2229ad5, tasks/whole 4 fafec6659857, tasks/classification 9
# e635fedb2798, loops/whole 1 ef0c63a8a0b0, loop 10 ffa790718673, data/pool 1 0365cecb7dd5,
# starts/exported 1 2e5b3f15a1c5, starts/pretrain 5 b9001b11b089, starts/compared 5 507c61ff0b6d,
# preview_method 2 db9500013268, preview 5 f4d6b8ff9b44, report_classification 6 0a5fb7c922b7,
# estimate 7 127e2a55cfb6, report 2 f80621a37fdb, protocol 17 0e66e2b2a763"}
