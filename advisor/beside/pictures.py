"""What the network is given, seen before hours are spent on it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from .script import readable, settings_of, without_target

COLUMNS = 10
LONGEST = 22  # characters of a name beside a row


def preview(module: ModuleType, data: Path, out: Path, options: Sequence[str]) -> str:
    """Writes preview.png: training images as they are read, and what becomes of them.

    Args:
        module: The script.
        data: The manifest.
        out: The folder of the run, whose weights are used if there are any.
        options: Settings, as on the script's command line.

    Returns:
        What is shown.
    """
    settings = settings_of(module, data, out, options, "preview")
    cases = without_target(module.read_manifest(data, settings))
    read = readable(module, cases, out / "cache", settings)
    seen = _by_method if hasattr(module, "Method") else _by_fine_tuning
    title, pictures = seen(module, read, settings, out)
    pictures = dict(list(pictures.items())[:COLUMNS])  # of many tiles the first
    draw(title, pictures, [case.path.name for case in read], out / "preview.png")
    return f"{out / 'preview.png'}: {', '.join(pictures)}; {title}"


def _by_method(
    module: ModuleType, cases: list[Any], settings: Any, out: Path
) -> tuple[str, dict[str, torch.Tensor]]:
    """What the method is given and makes of it, with the weights that it has so far."""
    data, file = module.pool(cases, settings), out / "pretrain.pt"
    drawn = [data[n, n] for n in range(len(data.cases))]
    batch = [torch.stack(part) for part in zip(*drawn, strict=True)]
    torch.manual_seed(settings.seed)
    method, title = module.Method(settings), "untrained weights"
    if file.exists():
        state = torch.load(file, map_location="cpu", weights_only=True)
        try:
            method.load_state_dict(state["network"])
        except RuntimeError:
            module.fail(f"{file} was made with other settings: choose another --out")
        title = f"weights of step {state['step']}"
    device = module.this_device()
    pictures = method.to(device).eval().pictures(*(part.to(device) for part in batch))
    return title, {"as read": batch[0], **pictures}


def _by_fine_tuning(
    module: ModuleType, cases: list[Any], settings: Any, _: Path
) -> tuple[str, dict[str, torch.Tensor]]:
    """What fine-tuning is given, where nothing is pre-trained."""
    data = module.Samples(cases, settings, targets=False)
    images = torch.stack([data[n, n][0] for n in range(len(cases))])
    torch.manual_seed(settings.seed)
    views = []
    for _view in range(2):
        affine = module.random_affine(images, settings.finetune_min_scale, settings)
        views.append(module.distort(module.sample(images, affine, settings.size), settings))
    first, second = views
    return "views for fine-tuning", {"as read": images, "first view": first, "second view": second}


def draw(
    title: str, pictures: Mapping[str, Iterable[torch.Tensor]], names: Sequence[str], file: Path
) -> None:
    """One row an image, one column a picture.

    Args:
        title: Stands above.
        pictures: Batches (B, C, size, ...) in [0, 1] by the title of their column.
        names: Of the B images.
        file: A PNG file.
    """
    figure = Figure(figsize=(2 * len(pictures) + 0.3, 2 * len(names) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    axes = figure.subplots(len(names), len(pictures), squeeze=False)
    for column, (name, batch) in enumerate(pictures.items()):
        axes[0, column].set_title(name, fontsize=9)
        for row, picture in zip(axes, batch, strict=True):
            row[column].imshow(plane(picture.float().cpu()), cmap="gray", vmin=0, vmax=1)
    for row, name in zip(axes, names, strict=True):
        row[0].set_ylabel(shortened(name), fontsize=7)
        for axis in row:
            axis.set(xticks=[], yticks=[])
    save(figure, file)


def shortened(name: str) -> str:
    """A name that fits beside a picture: both ends tell, the middle is left out.

    Args:
        name: Of a file or class.
    """
    return name if len(name) <= LONGEST else f"{name[:8]}…{name[9 - LONGEST :]}"


def save(figure: Figure, file: Path) -> None:
    """A figure, whole or not at all.

    Args:
        figure: Of matplotlib.
        file: A PNG file.
    """
    part = file.with_suffix(".png.part")
    figure.savefig(part, dpi=120, format="png")
    os.replace(part, file)


def plane(picture: torch.Tensor) -> np.ndarray:
    """What imshow takes: of a volume the middle axial slice with the front on top.

    Args:
        picture: (C, H, W) or (C, X, Y, Z) in [0, 1].
    """
    if picture.ndim == 4:
        picture = picture[..., picture.shape[-1] // 2].mT.flip(1)
    shown = picture.permute(1, 2, 0) if len(picture) == 3 else picture[0]
    return np.asarray(shown.clamp(0, 1))
