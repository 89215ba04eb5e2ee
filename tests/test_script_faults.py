"""Emitted scripts stop on a mistake with one line that says what and where, before they train."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import emitted
import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.data import get_testdata_file

CLASSES = ("mae", "xray", "classification", "2d", "vit")
FINDINGS = ("mae", "xray", "classification", "2d", "vit", True)
MASKS = ("mae", "xray", "segmentation", "2d", "vit")
WEIGHTS = ("public-checkpoint", "xray", "classification", "2d")
VOLUMES = ("mae", "ct", "segmentation", "3d", "vit")
VOLUME_CLASSES = ("mae", "ct", "classification", "3d", "vit")

Fault = Callable[..., str]
Row = dict[str, Any]


@pytest.fixture
def fault(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Fault:
    """Runs a script that must stop; returns the one line that it says."""

    def stopped(
        what: tuple[Any, ...], manifest: Path, stage: str = "all", trained: int = 0, **changed: Any
    ) -> str:
        out = tmp_path / "run"
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            emitted.run(emitted.script(*what), stage, manifest, out, **changed)
        assert end.value.code == 2
        assert len(list(out.rglob("*.pt"))) == trained, "it trained before it stopped"
        said = capfd.readouterr()
        lines = said.err.splitlines()
        assert not said.out and len(lines) == 1 and lines[0].startswith("error: "), said
        return lines[0].removeprefix("error: ")

    return stopped


def changed(manifest: Path, line: int, **cells: Any) -> Path:
    """The manifest with some cells of a line (the header is line 1) replaced."""
    with manifest.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert cells.keys() <= rows[0].keys()
    rows[line - 2].update(cells)
    return emitted.write_manifest(manifest, rows)


# %% The manifest


def test_no_manifest(fault: Fault, tmp_path: Path) -> None:
    said = fault(CLASSES, tmp_path / "absent.csv")
    wanted = "write a CSV with the columns path,label,patient,split"
    assert said == f"{tmp_path}/absent.csv: no such file; {wanted}"
    assert fault(CLASSES, tmp_path) == f"{tmp_path}: is a folder; {wanted}"


def test_out_is_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest, out = emitted.pictures(tmp_path), tmp_path / "taken"
    out.write_text("a file")
    with pytest.raises(SystemExit) as end:
        emitted.run(emitted.script(*CLASSES), "all", manifest, out)
    said = capsys.readouterr().err
    assert end.value.code == 2 and out.read_text() == "a file"
    assert said == f"error: --out {out}: File exists; name a folder that can be written to\n"


def test_tables_with_gaps_write_classes_with_a_point(tmp_path: Path) -> None:
    manifest, module = emitted.pictures(tmp_path), emitted.script(*CLASSES)
    settings = emitted.settings(module)
    plain = module.truths(module.read_manifest(manifest, settings)[:8], settings)
    text = re.sub(",([01]),", r",\1.0,", manifest.read_text())
    assert text != manifest.read_text()
    manifest.write_text(text)
    assert torch.equal(module.truths(module.read_manifest(manifest, settings)[:8], settings), plain)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("path,labl,patient", "no column 'label'; is 'labl' meant?"),
        ("file,label", "no column 'path'; it has file, label"),
        ("Path,label", "no column 'path'; is 'Path' meant?"),
        ("path,labels", "no column 'label'; is 'labels' meant?"),
        (
            "path;label",
            "no column 'path'; its header is 'path;label': separate columns by commas",
        ),
        ("", "no column 'path'; it has none"),
        ("path,label,Patient", "is 'Patient' the column 'patient'? Then rename it so"),
        ("path,label,patient_id,split", "is 'patient_id' the column 'patient'? Then rename it so"),
        ("path,label,patient,SPLIT", "is 'SPLIT' the column 'split'? Then rename it so"),
        ("path,label,patient", "no rows below the header"),
    ],
)
def test_headers(header: str, said: str, fault: Fault, tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"{header}\n" if header else "")
    assert fault(CLASSES, manifest) == f"{manifest}: {said}"


def test_a_file_that_is_no_text(fault: Fault, tmp_path: Path) -> None:
    manifest = emitted.pictures(tmp_path)
    assert f"{manifest.parent}/i0.png: is no CSV file in UTF-8" in fault(
        CLASSES, tmp_path / "i0.png"
    )
    manifest.write_bytes("path,label\nMüller.png,0\n".encode("latin-1"))
    assert "is no CSV file in UTF-8" in fault(CLASSES, manifest)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"path": "gone.png"}, "path: 'gone.png' does not exist beside the manifest"),
        ({"path": ""}, "path: '' does not exist beside the manifest"),
        ({"path": "i1.png"}, "path: 'i1.png' is the file of line 3 again"),
        ({"path": "./i1.png"}, "path: './i1.png' is the file of line 3 again"),
        ({"split": "testing"}, "split: 'testing' is not one of train, val, test (or empty)"),
        ({"patient": "p0"}, "patient 'p0' is in both test and train"),
        ({"label": "benign"}, "label: 'benign' is not a class number; classes are 0 to 1"),
        ({"label": "0.5"}, "label: '0.5' is not a class number; classes are 0 to 1"),
        ({"label": "inf"}, "label: 'inf' is not a class number; classes are 0 to 1"),
        ({"label": "2"}, "label: class 2 is not one of 0 to 1"),
        ({"label": "-1"}, "label: class -1 is not one of 0 to 1"),
        ({"label": "0;1"}, "label: '0;1' is not a class number; classes are 0 to 1"),
    ],
)
def test_rows(cells: Row, said: str, fault: Fault, tmp_path: Path) -> None:
    manifest = changed(emitted.pictures(tmp_path), 9, **cells)
    assert fault(CLASSES, manifest) == f"{manifest} line 9: {said}"


def test_lines_are_counted_as_an_editor_does(fault: Fault, tmp_path: Path) -> None:
    manifest = emitted.pictures(tmp_path)
    head, *rows = manifest.read_text().splitlines()
    rows[5] = "gone.png,0,p,train"
    manifest.write_text("\n".join([head, "", "", *rows]))  # blank lines count, but say nothing
    assert "m.csv line 9: path".replace("m.csv", str(manifest)) in fault(CLASSES, manifest)


def test_a_comma_in_a_name(fault: Fault, tmp_path: Path) -> None:
    manifest = emitted.pictures(tmp_path)
    lines = manifest.read_text().splitlines()
    lines[4] = lines[4].replace(".png", ", left.png", 1)
    manifest.write_text("\n".join(lines))
    said = fault(CLASSES, manifest)
    assert said == f"{manifest} line 5: has more cells than the header; quote what holds commas"


def test_two_names_of_one_file_are_one_file(fault: Fault, tmp_path: Path) -> None:
    manifest = emitted.pictures(tmp_path)
    (tmp_path / "link.png").symlink_to(tmp_path / "i0.png")
    manifest = changed(manifest, 12, path="link.png")
    assert "path: 'link.png' is the file of line 2 again" in fault(CLASSES, manifest)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("0;2", "class 2 is not one of 0 to 1"),
        ("0,1", "'0,1' is not a class number"),
        ("0;;1", "'0;;1' is not a class number"),
        ("normal", "'normal' is not a class number"),
    ],
)
def test_findings(label: str, said: str, fault: Fault, tmp_path: Path) -> None:
    manifest = changed(emitted.pictures(tmp_path, target="labels"), 8, labels=label)
    assert f"{manifest} line 8: labels: {said}" in fault(FINDINGS, manifest)


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_labelled_case(split: str, fault: Fault, tmp_path: Path) -> None:
    manifest = emitted.pictures(tmp_path)
    with manifest.open(newline="") as stream:
        rows = [r for r in csv.DictReader(stream) if not (r["label"] and r["split"] == split)]
    emitted.write_manifest(manifest, rows)
    assert f"no labelled case in the {split} split: label more patients" in fault(CLASSES, manifest)


def test_one_labelled_patient_cannot_be_trained_and_tested_on(fault: Fault, tmp_path: Path) -> None:
    emitted.pictures(tmp_path)
    rows = [{"path": f"i{n}.png", "label": "" if n else 0, "patient": n} for n in range(9)]
    manifest = emitted.write_manifest(tmp_path / "m.csv", rows)
    assert "no labelled case in the train split" in fault(CLASSES, manifest)


# %% Masks


def test_a_missing_mask(fault: Fault, tmp_path: Path) -> None:
    manifest = changed(emitted.pictures(tmp_path, target="mask"), 7, mask="gone.png")
    said = fault(MASKS, manifest)
    assert said == f"{manifest} line 7: mask: 'gone.png' does not exist beside the manifest"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([0, 255], "holds 0, 255, but classes are 0 to 1: divide the mask by 255"),
        ([0, 1, 2], "holds 0, 1, 2, but classes are 0 to 1: set --classes 3"),
        (
            [0, 127, 254],
            "holds 0, 127, 254, but classes are 0 to 1: "
            "number the classes from 0 without gaps, or set --classes",
        ),
        (
            list(range(0, 240, 8)),
            "holds 0, 8, 16, 24, 32, 40, 48, 56, 64, ..., but classes are 0 to 1: set --classes; "
            "if these are shades of a JPEG file, save masks as PNG",
        ),
    ],
)
def test_classes_that_are_too_high(
    values: list[int], said: str, fault: Fault, tmp_path: Path
) -> None:
    manifest = emitted.pictures(tmp_path, target="mask")
    mask = np.resize(np.array(values, np.uint8).repeat(40), (40, 32))
    for name in ("m5.png", "m6.png", "m7.png"):  # still one line
        Image.fromarray(mask).save(tmp_path / name)
    assert fault(MASKS, manifest) == f"m5.png: {said}"


def test_masks_of_another_size_or_colour_or_broken(fault: Fault, tmp_path: Path) -> None:
    manifest, mask = emitted.pictures(tmp_path, target="mask"), tmp_path / "m5.png"
    stored = mask.read_bytes()
    with Image.open(mask) as image:
        image.resize((40, 40)).save(mask)
    said = fault(MASKS, manifest)
    assert said == f"m5.png: is 40 x 40, but its image is 40 x 32: {tmp_path}/i5.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (40, 32, 3), np.uint8)).save(mask)
    assert fault(MASKS, manifest).startswith(
        "m5.png: cannot be used as a mask: is a colour picture"
    )
    mask.write_bytes(stored[: len(stored) // 2])
    assert fault(MASKS, manifest).startswith("m5.png: cannot be used as a mask: ")
    mask.write_text("not a picture")
    assert "cannot identify image file" in fault(MASKS, manifest)


def test_volume_masks_elsewhere_in_space(fault: Fault, tmp_path: Path) -> None:
    manifest, mask = emitted.volumes(tmp_path), tmp_path / "m5.nii.gz"
    array = np.asarray(nibabel.load(mask).dataobj)
    affine = np.diag([1.5, 1.5, 1.5, 1])
    moved = affine.copy()
    moved[0, 3] = 4
    elsewhere = f"m5.nii.gz: lies elsewhere in space than its image: {tmp_path}/i5.nii.gz"
    for wrong in (np.eye(4), moved, affine * [[-1], [1], [1], [1]]):
        nibabel.save(nibabel.Nifti1Image(array, wrong), mask)
        assert fault(VOLUMES, manifest) == elsewhere
    nibabel.save(nibabel.Nifti1Image(array[1:], affine), mask)
    assert "m5.nii.gz: is 29 x 36 x 24, but its image is 30 x 36 x 24" in fault(VOLUMES, manifest)
    near = affine + 1e-5  # headers round
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(array, near))
    nibabel.save(turned.as_reoriented(np.array([[2, -1], [0, 1], [1, 1]])), mask)
    module = emitted.script(*VOLUMES)
    settings = emitted.settings(module)
    cases = module.prepare(module.read_manifest(manifest, settings), settings, tmp_path / "run")
    assert len(cases) == 10  # stored in another order, in the same place


@pytest.mark.parametrize("wrong", [0.5, -1, 256, np.nan])
def test_volume_masks_with_other_numbers(wrong: float, fault: Fault, tmp_path: Path) -> None:
    manifest, mask = emitted.volumes(tmp_path), tmp_path / "m5.nii.gz"
    image = nibabel.load(mask)
    array = np.asarray(image.dataobj).astype(np.float32)
    array[3, 3, 3] = wrong
    nibabel.save(nibabel.Nifti1Image(array, image.affine), mask)
    why = "NaN or infinite" if np.isnan(wrong) else "no class numbers (whole, from 0 to 255)"
    assert why in fault(VOLUMES, manifest)


def test_cases_may_share_a_mask(tmp_path: Path) -> None:
    manifest = emitted.pictures(tmp_path, count=40, labelled=40, target="mask")
    for line in range(2, 42):
        changed(manifest, line, mask="m0.png")
    module = emitted.script(*MASKS)
    settings = emitted.settings(module)
    cases = module.prepare(module.read_manifest(manifest, settings), settings, tmp_path / "run")
    assert len(cases) == 40 and len({c.target for c in cases}) == 1


# %% Unreadable images


def broken_png(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def broken_dicom(path: Path) -> None:
    path.write_bytes(Path(get_testdata_file("CT_small.dcm")).read_bytes()[:20_000])


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def broken_gzip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def broken_nifti(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:2000]))


def not_a_number(path: Path) -> None:
    array = np.zeros((30, 36, 24), np.float32)
    array[3, 4, 5] = np.nan
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def infinite(path: Path) -> None:
    array = np.zeros((30, 36, 24), np.float32)
    array[3, 4, 5] = np.inf
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)


def no_series(path: Path) -> None:
    path.unlink()
    path.mkdir()


BREAKS = [
    (CLASSES, broken_png, "truncated"),
    (CLASSES, broken_dicom, "less than expected"),
    (CLASSES, empty_file, "cannot identify image file"),
    (CLASSES, no_series, "Is a directory"),
    (VOLUME_CLASSES, broken_gzip, "end-of-stream"),
    (VOLUME_CLASSES, broken_nifti, "Expected 51840 bytes, got 1648 bytes"),
    (VOLUME_CLASSES, empty_file, "Empty file"),
    (VOLUME_CLASSES, not_a_number, "holds NaN or infinite values"),
    (VOLUME_CLASSES, infinite, "holds NaN or infinite values"),
    (VOLUME_CLASSES, no_series, "is no folder with the slices of one DICOM series"),
]


@pytest.mark.parametrize(
    ("what", "breaks", "why"), BREAKS, ids=[f"{b[1].__name__}-{b[0][3]}" for b in BREAKS]
)
def test_broken_files_are_skipped_if_few_and_stop_if_many(
    what: tuple[Any, ...],
    breaks: Callable[[Path], None],
    why: str,
    fault: Fault,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if what == CLASSES:
        manifest, ending = emitted.pictures(tmp_path, 20), "png"
    else:
        manifest, ending = emitted.volumes(tmp_path, 20, 12, "label", (30, 36, 24)), "nii.gz"
    bad = tmp_path / f"i15.{ending}"
    breaks(bad)
    module, out = emitted.script(*what), tmp_path / "run"
    settings = emitted.settings(module)
    cases = module.prepare(module.read_manifest(manifest, settings), settings, out)  # 1 of 20
    assert len(cases) == 19 and bad not in [c.path for c in cases]
    assert capfd.readouterr().err == (
        f"note: 1 unreadable files skipped, listed in {out}/unreadable.csv\n"
    )
    with (out / "unreadable.csv").open(newline="") as stream:
        ((path, listed),) = [row.values() for row in csv.DictReader(stream)]
    assert path == str(bad) and why in listed
    bad = tmp_path / f"i12.{ending}"
    breaks(bad)  # 2 of 20
    said = fault(what, manifest)
    assert said.startswith(f"2 of 20 files cannot be read (see {out}/unreadable.csv)")
    assert f"the first is {bad}: " in said and why in said


def test_losing_the_only_labelled_test_case_stops_the_run(fault: Fault, tmp_path: Path) -> None:
    emitted.pictures(tmp_path, 20)
    rows = [
        {"path": f"i{n}.png", "label": n % 2, "patient": n, "split": "train" if n else "test"}
        for n in range(20)
    ]
    manifest = emitted.write_manifest(tmp_path / "manifest.csv", rows)
    broken_png(tmp_path / "i0.png")
    module = emitted.script(*CLASSES)
    settings = emitted.settings(module)
    with pytest.raises(SystemExit):
        module.prepare(module.read_manifest(manifest, settings), settings, tmp_path / "run")
    with (tmp_path / "run" / "unreadable.csv").open() as stream:
        assert len(stream.readlines()) == 2


# %% Settings


@pytest.mark.parametrize(
    ("what", "changed", "said"),
    [
        (CLASSES, {"mask_ratio": 1.5}, "--mask-ratio 1.5: must be above 0 and below 1"),
        (CLASSES, {"epochs": -1}, "--epochs -1: must be 1 or more"),
        (CLASSES, {"seeds": 0}, "--seeds 0: must be 1 or more"),
        (CLASSES, {"batch_size": 0}, "--batch-size 0: must be 1 or more"),
        (CLASSES, {"learning_rate": "nan"}, "--learning-rate nan: must be above 0 and at most 1"),
        (CLASSES, {"clip_norm": "inf"}, "--clip-norm inf: must be above 0"),
        (CLASSES, {"label_fractions": (-1.0, 0.0)}, "--label-fractions -1.0 0.0: must be above 0"),
        (CLASSES, {"adaptation": "linear"}, "--adaptation linear: must be finetune or frozen"),
        (CLASSES, {"split": "train"}, "--split train: must be val or test"),
        (CLASSES, {"flip_axes": (0, 2)}, "--flip-axes 0 2: must be 0 or 1"),
        (VOLUMES, {"flip_axes": (3,)}, "--flip-axes 3: must be 0, 1 or 2"),
        (CLASSES, {"network_width": 32}, "--network-width 32: must be a multiple of 64"),
        (CLASSES, {"network_depth": 2}, "--network-depth 2: must be 3 or more"),
        (
            CLASSES,
            {"intensity_low": 99.0, "intensity_high": 1.0},
            "--intensity-low 99.0: must be at least 0 and below intensity_high",
        ),
        (
            VOLUMES,
            {"intensity_low": 99.0, "intensity_high": 1.0},
            "--intensity-low 99.0: must be below intensity_high",
        ),
    ],
)
def test_a_setting_out_of_range(
    fault: Fault, tmp_path: Path, what: tuple[str, ...], changed: dict[str, Any], said: str
) -> None:
    assert fault(what, tmp_path / "none.csv", **changed) == said
    assert not (tmp_path / "run").exists()


def test_options_tell_what_they_may_be_and_their_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = emitted.script(*CLASSES)
    given = ["all", "--data", "m.csv", "--out", "runs"]
    assert module.parse_arguments([*given, "--flip-axes"])[1].flip_axes == ()
    for words in ([*given, "--label-fractions"], [*given, "--epochs", "many"]):
        with pytest.raises(SystemExit):
            module.parse_arguments(words)
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 2 and said[1].startswith(f"{said[0].split()[1]}: error: argument --")
    with pytest.raises(SystemExit):
        module.parse_arguments(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    ratio = module.Settings.mask_ratio
    assert f"--mask-ratio float above 0 and below 1; default: {ratio}" in said
    assert "--split str val or test; default: test" in said


@pytest.mark.parametrize(
    ("what", "stage", "changed", "said"),
    [
        (CLASSES, "all", {"size": 36}, "size: 36 is no multiple of the patch size, 8"),
        (MASKS, "evaluate", {"patch_size": 12, "size": 24}, "patch_size: 12 is no power of 2"),
        (
            ("jigsaw", "xray", "classification", "2d"),
            "pretrain",
            {"grid": 2, "permutations": 25},
            "permutations: there are only 24 orders of 4 tiles",
        ),
        (WEIGHTS, "convert", {"weights": "none.pth"}, "none.pth: no such file"),
        (WEIGHTS, "all", {}, "weights: name the downloaded checkpoint, --weights FILE"),
    ],
)
def test_what_does_not_fit_together_is_told_before_images_are_decoded(
    fault: Fault,
    tmp_path: Path,
    what: tuple[str, ...],
    stage: str,
    changed: dict[str, Any],
    said: str,
) -> None:
    target = "mask" if "segmentation" in what else "label"
    assert fault(what, emitted.pictures(tmp_path, target=target), stage, **changed).startswith(said)
    assert not (tmp_path / "run" / "cache").exists()


def test_weights_of_another_layout_are_told_before_images_are_decoded(
    fault: Fault, tmp_path: Path
) -> None:
    torch.save({"some.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    weights = str(tmp_path / "other.pth")
    said = fault(WEIGHTS, emitted.pictures(tmp_path), "all", weights=weights)
    assert said.startswith(f"{weights}: none of ") and "is among its 1 tensors" in said
    assert not (tmp_path / "run" / "cache").exists()


def test_fractions_that_choose_the_same_patients_are_trained_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module, run = emitted.script("scratch", "xray", "classification", "2d"), tmp_path / "run"
    manifest = emitted.pictures(tmp_path)  # 8 labelled patients for training
    emitted.run(module, "all", manifest, run, label_fractions=(1000.0, 1.0, 0.1), finetune_steps=1)
    said = capfd.readouterr().err.splitlines()
    assert "note: label fraction 1 is left out: the 8 patients of 1000 again" in said
    assert "note: label fraction 0.1: all cases have one label with seed 0" in said  # 1 patient
    assert sorted(p.name for p in (run / "finetune").glob("*.pt")) == [
        "scratch-0.1-0.pt",
        "scratch-1000-0.pt",
    ]
    results = json.loads((run / "metrics.json").read_text())["results"]
    assert [r["labelled_cases"] for r in results] == [8, 1]


# %% Stages and what lies in the folder from before


def test_stages_out_of_order(fault: Fault, tmp_path: Path) -> None:
    manifest, run = emitted.pictures(tmp_path), tmp_path / "run"
    assert (
        fault(CLASSES, manifest, "finetune") == f"{run}/encoder.pt is missing: run pretrain first"
    )
    said = fault(CLASSES, manifest, "evaluate")
    assert said.startswith(
        f"{run}/finetune/pretrained-1-0.pt is missing or unfinished: run finetune"
    )


def test_other_settings_do_not_continue_an_old_checkpoint(fault: Fault, tmp_path: Path) -> None:
    manifest, module = emitted.pictures(tmp_path), emitted.script(*CLASSES)
    emitted.run(module, "pretrain", manifest, tmp_path / "run")
    kept = (tmp_path / "run" / "pretrain.pt").read_bytes()
    said = fault(CLASSES, manifest, "pretrain", trained=2, epochs=3)
    assert said == (
        f"{tmp_path}/run/pretrain.pt was made with epochs 1, now it is 3: choose another --out"
    )
    said = fault(CLASSES, manifest, "finetune", trained=2, size=48)
    assert "encoder.pt was trained on images of another size: 32" in said
    assert (tmp_path / "run" / "pretrain.pt").read_bytes() == kept


def test_patients_that_were_trained_on_are_not_tested_on(fault: Fault, tmp_path: Path) -> None:
    manifest = emitted.pictures(tmp_path)
    emitted.run(emitted.script(*CLASSES), "pretrain", manifest, tmp_path / "run")
    changed(manifest, 14, label=0, split="test")  # p12 was part of the unlabelled pool
    said = fault(CLASSES, manifest, "finetune", trained=2)
    assert said.startswith(f"patient 'p12' is in test now, but {tmp_path}/run was trained on it")
    assert f"as {tmp_path}/run/splits.csv has them" in said
    changed(manifest, 14, label=0, split="train")  # more labels for training are welcome
    emitted.run(emitted.script(*CLASSES), "finetune", manifest, tmp_path / "run")


def copies(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*.npy")}


def test_the_cache_follows_settings_and_files(tmp_path: Path) -> None:
    module, cache = emitted.script(*VOLUME_CLASSES), tmp_path / "cache"
    manifest = emitted.volumes(tmp_path, 6, 6, "label")

    def read(**settings: Any) -> list[Any]:
        chosen = emitted.settings(module, **settings)
        return module.prepare(module.read_manifest(manifest, chosen), chosen, tmp_path)

    first = read()
    before = copies(cache)
    written = [c.array.stat().st_mtime_ns for c in first]
    assert len(before) == 6
    assert [c.array for c in read(epochs=7, finetune_steps=3)] == [c.array for c in first]
    assert [c.array.stat().st_mtime_ns for c in first] == written and copies(cache) == before
    larger, windowed = read(size=48), read(intensity_low=-200.0)
    assert np.load(larger[0].array).shape == (1, 48, 48, 48)
    assert not np.array_equal(np.load(windowed[0].array), np.load(first[0].array))
    assert len(copies(cache)) == 18
    shutil.copy(tmp_path / "i1.nii.gz", tmp_path / "i0.nii.gz")
    os.utime(tmp_path / "i2.nii.gz", (1, 1))  # touched: read again, though nothing changed
    again = read()
    assert np.array_equal(np.load(again[0].array), np.load(first[1].array))
    same = [a.array == b.array for a, b in zip(again, first, strict=True)]
    assert same == [False, True, False, True, True, True]


def test_a_copy_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    module, manifest = emitted.script(*CLASSES), emitted.pictures(tmp_path)
    settings = emitted.settings(module)
    cases = module.prepare(module.read_manifest(manifest, settings), settings, tmp_path)
    whole = np.load(cases[0].array)
    cases[0].array.with_suffix(".json").unlink()  # the process died between the two files
    cases[0].array.write_bytes(b"half")
    module.prepare(module.read_manifest(manifest, settings), settings, tmp_path)
    np.testing.assert_array_equal(np.load(cases[0].array), whole)
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name.count(".") > 1]


# %% What is no mistake


def test_names_with_spaces_and_letters_of_the_world(tmp_path: Path) -> None:
    folder = tmp_path / "Klinik für Radiologie, 2. Stock" / "画像"
    manifest = emitted.pictures(folder)
    with manifest.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for n, row in enumerate(rows):
        name = f"Brust, „links“ {n} é.png"
        os.rename(folder / row["path"], folder / name)
        row["path"], row["patient"] = name, f"Müller {n}"
    emitted.write_manifest(manifest, rows)
    module, out = emitted.script(*CLASSES), tmp_path / "Läufe 1"
    emitted.run(module, "pretrain", manifest, out)
    with (out / "splits.csv").open(newline="", encoding="utf-8") as stream:
        assert [r["patient"] for r in csv.DictReader(stream)] == [r["patient"] for r in rows]


@pytest.mark.parametrize("ends", ["\r\n", "\n", "\r"])
@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b""])
def test_manifests_as_windows_and_spreadsheets_write_them(
    ends: str, mark: bytes, tmp_path: Path
) -> None:
    manifest, module = emitted.pictures(tmp_path), emitted.script(*CLASSES)
    settings = emitted.settings(module)
    plain = module.read_manifest(manifest, settings)
    text = manifest.read_text().replace(",", ", ")
    manifest.write_bytes(mark + ends.join(text.splitlines()).encode())
    assert module.read_manifest(manifest, settings) == plain


def test_paths_are_relative_to_the_manifest_or_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, module = tmp_path / "data", emitted.script(*MASKS)
    emitted.pictures(folder / "images", target="mask")
    with (folder / "images" / "manifest.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    for n, row in enumerate(rows):
        before = Path("images") if n % 2 else folder / "images"
        row["path"] = str(before / row["path"])
        row["mask"] = row["mask"] and str(before / row["mask"])
    emitted.write_manifest(folder / "manifest.csv", rows)
    monkeypatch.chdir(tmp_path)
    emitted.run(module, "pretrain", Path("data/manifest.csv"), Path("run"))
    monkeypatch.chdir(folder)
    settings = emitted.settings(module)
    cases = module.read_manifest(Path("manifest.csv"), settings)
    before = copies(tmp_path / "run" / "cache")
    cases = module.prepare(cases, settings, tmp_path / "run")
    assert len(cases) == 16 and copies(tmp_path / "run" / "cache") == before  # nothing read twice


def test_without_patients_every_file_is_one(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    emitted.pictures(tmp_path)
    rows = [{"path": f"i{n}.png", "label": n % 2} for n in range(16)]
    manifest, module = emitted.write_manifest(tmp_path / "m.csv", rows), emitted.script(*CLASSES)
    cases = module.read_manifest(manifest, emitted.settings(module))
    assert len({c.patient for c in cases}) == 16 and sum(c.split == "test" for c in cases) == 3
    assert capfd.readouterr().err.startswith("note: no patient column")


def test_normal_cases_count_as_labelled(tmp_path: Path) -> None:
    manifest, module = emitted.pictures(tmp_path, target="labels"), emitted.script(*FINDINGS)
    cases = module.read_manifest(manifest, emitted.settings(module))
    assert sum(bool(c.target) for c in cases) == 12
    hot = module.truths(cases[:4], emitted.settings(module)).tolist()
    assert hot == [[0, 0], [1, 0], [0, 1], [1, 1]]


def test_a_run_keeps_to_the_images_and_labels_that_it_was_made_from(
    fault: Fault, tmp_path: Path
) -> None:
    manifest, module = emitted.pictures(tmp_path), emitted.script(*CLASSES)
    text, run = manifest.read_text(), tmp_path / "run"
    emitted.run(module, "all", manifest, run)
    before = (run / "metrics.json").read_bytes()
    manifest.write_text(text.replace("i9.png,1,", "i9.png,0,"))  # another label for training
    said = fault(CLASSES, manifest, "all", trained=4)
    wanted = f"remove {run}/finetune to train on these"
    assert said == f"the labels are not those of {run}/splits.csv: {wanted}"
    manifest.write_text(text.replace("i15.png,,p15,\n", ""))  # one unlabelled image less
    said = fault(CLASSES, manifest, "evaluate", trained=4)
    assert said == f"the training images are not those of {run}/splits.csv: choose another --out"
    manifest.write_text(text)
    said = fault(CLASSES, manifest, "evaluate", trained=4, gamma=0.9)
    assert "was made with gamma" in said
    assert (run / "metrics.json").read_bytes() == before
    # new labels need no new pre-training
    weights = (run / "encoder.pt").read_bytes()
    manifest.write_text(text.replace("i9.png,1,", "i9.png,0,"))
    shutil.rmtree(run / "finetune")
    emitted.run(module, "all", manifest, run)
    assert (run / "encoder.pt").read_bytes() == weights


def test_data_may_be_moved_before_a_run_goes_on(tmp_path: Path) -> None:
    manifest, module = emitted.pictures(tmp_path / "here"), emitted.script(*CLASSES)
    emitted.run(module, "pretrain", manifest, tmp_path / "run")
    (tmp_path / "here").rename(tmp_path / "there")
    emitted.run(module, "all", tmp_path / "there" / "manifest.csv", tmp_path / "run")
    assert (tmp_path / "run" / "metrics.json").exists()
