"""How fast are emitted scripts beside what people copy from: lightly's and MONAI's own examples?

    python benchmarks/throughput.py [--what simclr mae volumes] [--pairs 3]

Both sides read the same files, written for this, with the same threads, workers and batch. They run
in turn, each in a process of its own, so a busy spell touches both: compare ratios, not seconds.
SimCLR and MAE need `pip install lightly timm` (and torchvision); what is missing is said.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

WARM = 3  # steps before counting: workers start, and what they read ahead is used up
XRAY = {"modality": "xray", "task": "classification", "dimensionality": "2d"}
CT = {"modality": "ct", "task": "segmentation", "dimensionality": "3d"}
GENESIS = {**CT, "backbone": "cnn"}
DECODER = {"decoder_dim": "256", "decoder_depth": "4", "mask_ratio": "0.75"}


class Row(NamedTuple):
    """One comparison; `side` is that of the files that both read: pixels, or voxels."""

    what: str
    problem: dict[str, str]
    method: str
    settings: dict[str, str]
    other: str
    steps: int  # counted
    side: int = 512


def simclr(size: int, steps: int, side: int = 512) -> Row:
    settings = {"size": str(size), "batch_size": "64"}
    return Row("simclr", XRAY, "simclr", settings, "lightly", steps, side)


def mae(side: int = 512) -> Row:
    settings = {"size": "224", "batch_size": "16", **DECODER}
    return Row("mae", {**XRAY, "backbone": "vit"}, "mae", settings, "lightly", 5, side)


def volumes(size: int, steps: int, other: str) -> Row:
    settings = {"size": str(size), "batch_size": "2"}
    return Row("volumes", GENESIS, "models-genesis", settings, f"monai, {other}", steps, 160)


ROWS = {
    "simclr-64": simclr(64, 8),
    "simclr-64-of-1024": simclr(64, 8, 1024),  # as ChestX-ray14 is published
    "simclr-128": simclr(128, 4),
    "simclr-128-of-1024": simclr(128, 4, 1024),
    "mae-224": mae(),
    "mae-224-of-1024": mae(1024),
    "volumes-64": volumes(64, 4, "one view"),
    "volumes-64-two-views": volumes(64, 4, "two views"),
    "volumes-64-cached": volumes(64, 4, "one view, cached"),
    "volumes-96": volumes(96, 2, "one view"),
    "volumes-96-two-views": volumes(96, 2, "two views"),
}


def peak_mb() -> float:
    """The most memory that this process ever held; macOS counts bytes, Linux kilobytes."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


class Clock:
    """Hands on the batches of a loader and notes when each was asked for and how long it took."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.waited: list[float] = []

    def __call__(self, loader: Iterable[Any], *_: Any, **__: Any) -> Clock:
        self.loader = loader
        return self

    def __iter__(self) -> Iterator[Any]:
        self.before = peak_mb()
        batches = iter(self.loader)
        while True:
            self.asked.append(time.perf_counter())
            try:
                batch = next(batches)
            except StopIteration:
                return
            self.waited.append(time.perf_counter() - self.asked[-1])
            yield batch

    def set_postfix(self, **_: Any) -> None:
        """As a progress bar has it."""

    def result(self, batch: int, steps: int) -> dict[str, float]:
        seconds = self.asked[WARM + steps] - self.asked[WARM]
        return {
            "images_per_second": batch * steps / seconds,
            "waiting": sum(self.waited[WARM : WARM + steps]) / seconds,
            "peak_mb": peak_mb(),
            "step_mb": peak_mb() - self.before,
        }


# %% Files of a realistic size
def write_pictures(folder: Path, side: int, count: int = 256) -> None:
    """8-bit grey PNG files: soft shapes and noise, which compress about as radiographs do."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[:side, :side] / side
    for n in range(count):
        rng = np.random.default_rng(n)
        pixels = 90 + rng.normal(0, 4, (side, side))
        for _ in range(6):
            (a, b), width = rng.uniform(0.1, 0.9, 2), rng.uniform(0.05, 0.3)
            pixels += rng.uniform(-60, 90) * np.exp(-((x - a) ** 2 + (y - b) ** 2) / width**2)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"i{n}.png")


def write_volumes(folder: Path, side: int, count: int = 8) -> None:
    """Compressed NIfTI files of 1.5 mm voxels: a body of balls in air, in Hounsfield units."""
    import nibabel
    import numpy as np

    axes = np.meshgrid(*[np.arange(side) / side] * 3, indexing="ij", sparse=True)
    for n in range(count):
        rng = np.random.default_rng(n)
        voxels = np.full((side,) * 3, -1000.0)
        for ball in range(9):
            radius, value = (rng.uniform(0.05, 0.2), rng.normal(0, 200)) if ball else (0.45, 40)
            x, y, z = rng.uniform(0.3, 0.7, 3) if ball else (0.5, 0.5, 0.5)
            away = (axes[0] - x) ** 2 + (axes[1] - y) ** 2 + (axes[2] - z) ** 2
            voxels[away < radius**2] = value
        voxels += rng.normal(0, 20, voxels.shape)
        image = nibabel.Nifti1Image(voxels.astype(np.int16), np.diag([1.5, 1.5, 1.5, 1]))
        nibabel.save(image, folder / f"i{n}.nii.gz")
        nibabel.save(
            nibabel.Nifti1Image((voxels > 0).astype(np.uint8), image.affine),
            folder / f"m{n}.nii.gz",
        )


def write_manifest(folder: Path, volumes: bool) -> None:
    """Two labelled cases, as every script wants; the rest is what pre-training reads."""
    files = sorted(folder.glob("i*"))
    column = "mask" if volumes else "label"
    lines = [f"path,{column},patient,split"]
    for n, file in enumerate(files):
        split = {0: "train", 1: "test"}.get(n, "")
        target = "" if not split else file.name.replace("i", "m", 1) if volumes else n % 2
        lines.append(f"{file.name},{target},p{n},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")


# %% The emitted script
def emit(name: str, file: Path) -> None:
    from advisor import recommend
    from advisor.plan import make_plan
    from advisor.render import render

    wanted = ROWS[name]
    plan = make_plan(recommend(wanted.problem), wanted.method, wanted.settings)
    file.write_text(render(plan), encoding="utf-8")


def imported(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("emitted", file)
    assert spec and spec.loader
    module = sys.modules["emitted"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ours(name: str, folder: Path, work: Path, workers: int) -> dict[str, float]:
    """The script's own data, method and loop; only its progress bar is replaced by the clock."""
    module, steps = imported(work / f"{name}.py"), ROWS[name].steps
    settings = module.Settings(workers=workers)
    started = time.perf_counter()
    cases = module.prepare(module.read_manifest(folder / "manifest.csv", settings), settings, work)
    reading = (time.perf_counter() - started) / len(cases)
    data = module.pool([case for case in cases if case.split == "train"], settings)
    schedule = module.Schedule(WARM + steps + 1, settings.batch_size, 1e-4, 1e-4, 1, 0)
    module.tqdm = clock = Clock()
    checkpoint = work / f"{name}.pt"
    checkpoint.unlink(missing_ok=True)
    module.train(module.Method(settings), data, checkpoint, schedule, {}, settings)
    return {**clock.result(settings.batch_size, steps), "reading": reading}


# %% The other side, written from the public documentation of each library
def sampler(data: Any, count: int) -> Any:
    """In random order, again and again: epochs of so few files would restart the workers."""
    import torch

    return torch.utils.data.RandomSampler(data, num_samples=count)


def fitted(
    network: Any, loader: Any, optimizer: Any, loss_of: Callable[[Any], Any], clock: Clock
) -> None:
    network.train()
    for batch in clock(loader):
        loss = loss_of(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def lightly_loader(folder: Path, transform: Any, batch: int, steps: int, workers: int) -> Any:
    import torch
    from lightly.data import LightlyDataset

    data = LightlyDataset(str(folder), transform=transform)
    wanted = sampler(data, batch * (WARM + steps + 1))
    return torch.utils.data.DataLoader(data, batch, sampler=wanted, num_workers=workers)


def lightly_simclr(name: str, folder: Path, workers: int) -> dict[str, float]:
    import torch
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from torchvision.models import resnet18

    settings, steps = ROWS[name].settings, ROWS[name].steps
    size, batch = int(settings["size"]), int(settings["batch_size"])
    encoder = resnet18()
    encoder.fc = torch.nn.Identity()
    network = torch.nn.Sequential(encoder, SimCLRProjectionHead(512, 512, 128))
    criterion, clock = NTXentLoss(), Clock()

    def loss_of(batch: Any) -> Any:
        first, second = batch[0]
        return criterion(network(first), network(second))

    loader = lightly_loader(folder, SimCLRTransform(input_size=size), batch, steps, workers)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)  # ours: the same step
    fitted(network, loader, optimizer, loss_of, clock)
    return clock.result(batch, steps)


def lightly_mae(name: str, folder: Path, workers: int) -> dict[str, float]:
    import torch
    from lightly.models import utils
    from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
    from lightly.transforms import MAETransform
    from timm.models.vision_transformer import vit_small_patch16_224

    settings, steps = ROWS[name].settings, ROWS[name].steps
    batch, width = int(settings["batch_size"]), int(settings["decoder_dim"])
    vit = vit_small_patch16_224()
    encoder = MaskedVisionTransformerTIMM(vit=vit)
    decoder = MAEDecoderTIMM(
        num_patches=vit.patch_embed.num_patches,
        patch_size=16,
        embed_dim=vit.embed_dim,
        decoder_embed_dim=width,
        decoder_depth=int(settings["decoder_depth"]),
        decoder_num_heads=width // 32,
    )
    network, clock = torch.nn.ModuleList([encoder, decoder]), Clock()

    def loss_of(batch: Any) -> Any:
        images = batch[0][0]
        shape = (len(images), encoder.sequence_length)
        kept, hidden = utils.random_token_mask(shape, float(settings["mask_ratio"]))
        visible = decoder.embed(encoder.encode(images=images, idx_keep=kept))
        tokens = utils.set_at_index(utils.repeat_token(decoder.mask_token, shape), kept, visible)
        rebuilt = decoder.predict(utils.get_at_index(decoder.decode(tokens), hidden))
        target = utils.get_at_index(utils.patchify(images, 16), hidden - 1)
        return torch.nn.functional.mse_loss(rebuilt, target)

    loader = lightly_loader(folder, MAETransform(), batch, steps, workers)
    fitted(network, loader, torch.optim.AdamW(network.parameters(), lr=1.5e-4), loss_of, clock)
    return clock.result(batch, steps)


def monai_transforms(size: int, views: list[str]) -> Any:
    """The self-supervised tutorial's chain: two crops a volume, holes and shuffled blocks."""
    from monai import transforms as t

    keys = ["image"]
    chain = [
        t.LoadImaged(keys),
        t.EnsureChannelFirstd(keys),
        t.Spacingd(keys, pixdim=(1.5, 1.5, 1.5), mode="bilinear"),
        t.ScaleIntensityRanged(keys, a_min=-1000, a_max=1000, b_min=0, b_max=1, clip=True),
        t.CropForegroundd(keys, source_key="image"),
        t.SpatialPadd(keys, spatial_size=(size,) * 3),
        t.RandSpatialCropSamplesd(keys, roi_size=(size,) * 3, random_size=False, num_samples=2),
        t.CopyItemsd(keys, times=len(views), names=["clean", *views[1:]]),
    ]
    for view in views:
        small = t.RandCoarseDropoutd(
            view, prob=1.0, holes=6, spatial_size=5, dropout_holes=True, max_spatial_size=32
        )
        large = t.RandCoarseDropoutd(
            view, prob=1.0, holes=6, spatial_size=20, dropout_holes=False, max_spatial_size=64
        )
        chain += [t.OneOf([small, large])]
        chain += [t.RandCoarseShuffled(view, prob=0.8, holes=10, spatial_size=8)]
    return t.Compose(chain)


def monai_volumes(name: str, folder: Path, workers: int) -> dict[str, float]:
    import torch
    from monai.data import CacheDataset, DataLoader, Dataset
    from monai.losses import ContrastiveLoss
    from monai.networks.nets import SegResNet

    settings, other, steps = ROWS[name].settings, ROWS[name].other, ROWS[name].steps
    size, batch = int(settings["size"]), int(settings["batch_size"])
    views = ["image", "image_2"] if "two views" in other else ["image"]
    files = [{"image": str(file)} for file in sorted(folder.glob("i*"))]
    chain = monai_transforms(size, views)
    cached = "cached" in other
    data = CacheDataset(files, chain, progress=False) if cached else Dataset(files, chain)
    wanted = sampler(data, batch // 2 * (WARM + steps + 1))
    loader = DataLoader(data, batch_size=batch // 2, sampler=wanted, num_workers=workers)
    network = SegResNet(3, 16, 1, 1, blocks_down=(1, 2, 2, 4), upsample_mode="deconv")
    restoring, contrasting, clock = torch.nn.L1Loss(), ContrastiveLoss(temperature=0.05), Clock()

    def loss_of(batch: Any) -> Any:
        restored = [network(batch[view]) for view in views]
        loss = restoring(restored[0], batch["clean"])
        if len(restored) == 2:
            loss = loss * (1 + contrasting(*(each.flatten(1) for each in restored)))
        return loss

    fitted(network, loader, torch.optim.Adam(network.parameters(), lr=1e-4), loss_of, clock)
    return clock.result(batch, steps)


THEIRS = {"simclr": lightly_simclr, "mae": lightly_mae, "volumes": monai_volumes}


# %% In turn, each in a process of its own
def one(side: str, name: str, folder: Path, work: Path, threads: int, workers: int) -> None:
    import torch

    torch.set_num_threads(threads)
    what = ROWS[name].what
    run = ours(name, folder, work, workers) if side == "ours" else None
    print("RESULT", json.dumps(run or THEIRS[what](name, folder, workers)))


def started(side: str, name: str, *rest: object) -> dict[str, float]:
    words = [sys.executable, __file__, "--one", side, name, *map(str, rest)]
    done = subprocess.run(words, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    raise SystemExit(f"error: {side} of {name} ended with:\n{done.stderr[-2000:]}")


def missing(what: str) -> list[str]:
    needed = ("monai",) if what == "volumes" else ("lightly", "timm", "torchvision")
    return [library for library in needed if importlib.util.find_spec(library) is None]


def row(name: str, pairs: list[tuple[dict[str, float], dict[str, float]]]) -> str:
    def middle(of: Callable[[dict[str, float], dict[str, float]], float]) -> float:
        return statistics.median(of(a, b) for a, b in pairs)

    ratios = [a["images_per_second"] / b["images_per_second"] for a, b in pairs]
    return (
        f"| {name} | {ROWS[name].other} | {middle(lambda a, b: a['images_per_second']):.2f} "
        f"| {middle(lambda a, b: b['images_per_second']):.2f} "
        f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
        f"| {middle(lambda a, b: a['waiting']):.1%} | {middle(lambda a, b: b['waiting']):.1%} "
        f"| {middle(lambda a, b: a['peak_mb']):.0f} | {middle(lambda a, b: b['peak_mb']):.0f} "
        f"| {middle(lambda a, b: a['peak_mb'] / b['peak_mb']):.2f} "
        f"| {middle(lambda a, b: a['step_mb'] / b['step_mb']):.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--what", nargs="+", choices=sorted(THEIRS), default=list(THEIRS))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), help="only these")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        side, name, folder, work, threads, workers = given.one
        return one(side, name, Path(folder), Path(work), int(threads), int(workers))
    heads = "what,against,ours /s,theirs /s,ratio,waits,theirs,peak MB,theirs,ratio,of the steps"
    print(f"| {heads.replace(',', ' | ')} |\n{'|---' * 11}|", flush=True)
    names = given.rows or [name for name in ROWS if ROWS[name].what in given.what]
    for lacking in filter(None, (missing(ROWS[name].what) for name in names)):
        raise SystemExit(f"error: this needs more: pip install {' '.join(lacking)}")
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            side, volumes = ROWS[name].side, ROWS[name].what == "volumes"
            folder, work = Path(temporary) / f"files-{side}", Path(temporary) / name
            if not folder.exists():
                folder.mkdir()
                (write_volumes if volumes else write_pictures)(folder, side)
                write_manifest(folder, volumes)
            work.mkdir()
            emit(name, work / f"{name}.py")
            rest = (folder, work, given.threads, given.workers)
            reading = started("ours", name, *rest)["reading"]  # the later runs find it done
            pairs = [
                (started("ours", name, *rest), started("theirs", name, *rest))
                for _ in range(given.pairs)
            ]
            print(row(name, pairs), f" read once: {1000 * reading:.0f} ms a file", flush=True)


if __name__ == "__main__":
    main()
