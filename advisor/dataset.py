"""A manifest from a folder of images, for the layouts that people have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm")
VOLUMES = (".nii", ".nii.gz")
MASK_FOLDERS = ("labels", "masks", "labelsTr")
IMAGE_FOLDERS = ("images", "imagesTr")


class DatasetError(ValueError):
    """The folder has no layout that is known; the text says which are."""


class Found(NamedTuple):
    """What a folder holds.

    Attributes:
        task: "classification" or "segmentation".
        dimensionality: "2d" or "3d".
        classes: class names by number; for masks the background is the first.
        rows: (path, target, patient, split); an empty target means unlabelled, an empty split that
            the script shall choose.
    """

    task: str
    dimensionality: str
    classes: tuple[str, ...]
    rows: tuple[tuple[str, str, str, str], ...]


def from_folder(folder: Path) -> Found:
    """Lists the images of a folder with their targets.

    Understood are the Medical Segmentation Decathlon (dataset.json), `images/` beside `labels/` or
    `masks/` with equal file names, and one folder of images per class.

    Args:
        folder: The folder; paths in the result are absolute.

    Raises:
        DatasetError: If it is none of these.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise DatasetError(f"{folder}: no such folder")
    if (folder / "dataset.json").is_file():
        return _decathlon(folder)
    images = next((folder / n for n in IMAGE_FOLDERS if (folder / n).is_dir()), None)
    masks = next((folder / n for n in MASK_FOLDERS if (folder / n).is_dir()), None)
    if images and masks:
        return _pairs(images, masks)
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and any(_listed(p)))
    if len(classes) > 1:
        return _classes(classes)
    raise DatasetError(
        f"{folder}: none of the known layouts: dataset.json of the Decathlon, images/ beside "
        "labels/ or masks/ with equal file names, or one folder of images per class"
    )


def _ending(path: Path) -> str:
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix.lower()


def _listed(folder: Path) -> Iterator[Path]:
    known = (*IMAGES, *VOLUMES)
    return (p for p in sorted(folder.iterdir()) if p.is_file() and _ending(p) in known)


def _stem(path: Path) -> str:
    return path.name[: -len(_ending(path))]


def _dimensionality(paths: list[Path], folder: Path) -> str:
    kinds = {_ending(p) in VOLUMES for p in paths}
    if len(kinds) != 1:
        what = "volumes and flat images together" if kinds else "no images"
        raise DatasetError(f"{folder}: holds {what}")
    return "3d" if kinds.pop() else "2d"


def _decathlon(folder: Path) -> Found:
    try:
        content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        pairs = [(folder / c["image"], folder / c["label"]) for c in content["training"]]
        names = tuple(content["labels"][str(n)] for n in range(len(content["labels"])))
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{folder / 'dataset.json'}: not of the Decathlon: {error!r}") from None
    rows = tuple((str(image), str(mask), _stem(image), "") for image, mask in pairs)
    return Found("segmentation", _dimensionality([p for p, _ in pairs], folder), names, rows)


def _pairs(images: Path, masks: Path) -> Found:
    found = list(_listed(images))
    mask_of = {_stem(p): p for p in _listed(masks)}
    rows = tuple((str(p), str(mask_of.get(_stem(p), "")), _stem(p), "") for p in found)
    if not any(row[1] for row in rows):
        raise DatasetError(f"{masks}: no file is named like one in {images}")
    highest = max(map(_highest, mask_of.values()))
    names = ("background", *(f"class {n}" for n in range(1, highest + 1)))
    return Found("segmentation", _dimensionality(found, images), names, rows)


def _highest(mask: Path) -> int:
    """The highest class number in a mask."""
    import numpy as np

    if _ending(mask) in VOLUMES:
        import nibabel

        return int(np.asarray(nibabel.load(mask).dataobj).max())  # type: ignore[attr-defined]
    from PIL import Image

    with Image.open(mask) as image:
        return int(np.asarray(image).max())


def _classes(folders: list[Path]) -> Found:
    found = [(p, number) for number, folder in enumerate(folders) for p in _listed(folder)]
    rows = tuple((str(p), str(n), f"{p.parent.name}/{_stem(p)}", "") for p, n in found)
    dimensionality = _dimensionality([p for p, _ in found], folders[0].parent)
    return Found("classification", dimensionality, tuple(f.name for f in folders), rows)
