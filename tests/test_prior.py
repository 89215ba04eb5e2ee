"""Pre-training that goes by the user's own maps: regions around them, masks on them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from emitted import options, pictures, run, script, settings, text, volumes, write_manifest
from PIL import Image
from test_focus import planned
from test_templates import clean

from advisor.beside.dry_run import estimate
from advisor.beside.pictures import preview
from advisor.plan import PlanError

CT = ("mae", "ct", "segmentation", "3d")
GUIDED = {"prior_share": "0.6", "mask_prior": "0.5"}
MAPS = {"data/prior", "data/prior_channel"}


def with_priors(manifest: Path, priors: dict[int, np.ndarray], **named: str) -> Path:
    """The manifest with a column `prior`: arrays that are saved like their images, or names."""
    rows = list(csv.DictReader(manifest.read_text().splitlines()))
    for n, row in enumerate(rows):
        path = manifest.parent / row["path"]
        row["prior"] = named.get(f"row{n}", "")
        if n in priors:
            row["prior"] = f"prior{n}{''.join(path.suffixes)}"
            if path.suffix == ".png":
                Image.fromarray(priors[n]).save(path.with_name(row["prior"]))
            else:
                image = nibabel.Nifti1Image(priors[n], nibabel.load(path).affine)
                nibabel.save(image, path.with_name(row["prior"]))
    return write_manifest(manifest, rows)


def box(shape: tuple[int, ...], height: float = 1.0) -> np.ndarray:
    """`height` in one corner, 0 elsewhere."""
    prior = np.zeros(shape, np.float32)
    prior[tuple(slice(side // 4) for side in shape)] = height
    return prior


def test_the_parts_stand_in_scripts_for_which_they_are_switched_on_and_in_no_other() -> None:
    off = planned(*CT, None)
    assert planned(*CT, None, prior_share="0", mask_prior="0") == off
    for wanted, parts in (
        ({"prior_share": "0.8"}, {"data/prior", "data/prior_regions"}),
        (GUIDED, {*MAPS, "data/prior_regions", "views/crop_both", "methods/prior_masks"}),
    ):
        chosen, values = planned(*CT, None, **wanted)
        assert chosen - off[0] == parts and wanted.keys() <= values.keys()
    chosen, _ = planned(*CT, "focal", **GUIDED)  # together with those that go by the image
    assert {"data/pool_focused", "methods/hiding_order_focused", *parts} <= chosen
    for method, unknown in (("simclr", "mask_prior"), ("dino", "prior_share")):  # small crops, too
        with pytest.raises(PlanError, match="no such setting"):
            planned(method, "xray", "classification", "2d", None, **{unknown: "0.5"})
    fundus = ("mae", "fundus", "classification", "2d", None)
    for wanted, parts in (
        ({"mask_prior": "0.5"}, {"views/crop_both", "methods/prior_masks"}),
        ({"prior_share": "0.5"}, {"views/crop_around"}),
        (GUIDED, {"views/crop_around", "methods/prior_masks"}),
    ):
        chosen, values = planned(*fundus, **wanted)
        assert chosen - planned(*fundus)[0] == {
            *MAPS,
            *parts,
            "data/paired",
            "data/frame_whole",
        }
        assert "lit_level" not in values  # a map lies on the whole picture


def test_a_folder_of_pictures_has_a_folder_of_priors(tmp_path: Path) -> None:
    module = script("mae", "fundus", "classification", "2d", mask_prior="0.5")
    for folder in ("eyes", "maps"):
        (tmp_path / folder).mkdir()
        for name in ("a.png", "b.png"):
            Image.fromarray(np.ones((8, 8), np.uint8)).save(tmp_path / folder / name)
    rows = [{"path": "eyes", "label": "0", "prior": "maps", "split": s} for s in ("train", "test")]
    rows[1] |= {"path": "maps", "prior": ""}
    manifest = write_manifest(tmp_path / "manifest.csv", rows)
    cases = module.read_manifest(manifest, settings(module))
    assert [(c.path.name, c.target, c.prior) for c in cases[:2]] == [
        ("a.png", "0", "maps/a.png"),
        ("b.png", "0", "maps/b.png"),
    ]


def test_guided_scripts_are_clean(tmp_path: Path) -> None:
    focal = {"foreground_share": "0.5", "mask_focus": "0.5"}
    for number, words in enumerate(
        (
            text(*CT, **GUIDED, **focal),
            text("spark", *CT[1:], mask_prior="1"),
            text("simclr", *CT[1:], prior_share="1"),
            text("simmim", "fundus", "classification", "2d", mask_prior="1"),
            text("mae", "fundus", "classification", "2d", **GUIDED),
            text("jigsaw", "ct", "classification", "3d", prior_share="1"),
        )
    ):
        (tmp_path / f"{number}.py").write_text(words, encoding="utf-8")
    clean(str(tmp_path))


def guided_case(module, folder: Path, image: np.ndarray, prior: np.ndarray | None):
    np.save(folder / "v.npy", image)
    if prior is not None:
        np.save(folder / "w.npy", prior)
    weights = None if prior is None else folder / "w.npy"
    array = folder / "v.npy"
    return module.Guided(folder, "", "p", "train", folder, array=array, weights=weights)


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_the_share_of_regions_around_the_prior_is_as_set(tmp_path: Path, share: float) -> None:
    module = script(*CT, prior_share="0.6")
    prior = np.zeros((1, 60, 60, 60), np.uint8)
    prior[0, 24:28, 24:36, 24:36] = 255
    prior[0, 30:34, 24:36, 24:36] = 51  # a fifth as important
    chosen = settings(module, prior_share=share)
    assert module.region(chosen) == 40
    # the image is the prior, so that the voxel in the middle says what a region is centred on
    case = guided_case(module, tmp_path, prior.astype(np.uint16) * 257, prior)
    data = module.pool([case], chosen)
    centres = [float(data[0, seed][0][0, 20, 20, 20]) for seed in range(400)]
    by_chance = 2 * 4 * 12 * 12 / 21**3
    inside = np.mean(np.array(centres) > 0)
    assert inside == pytest.approx(share + (1 - share) * by_chance, abs=0.07 * (share < 1))
    if share == 1:
        assert np.mean(np.array(centres) > 0.9) == pytest.approx(5 / 6, abs=0.06)
    assert torch.equal(data[0, 7][0], module.pool([case], chosen)[0, 7][0])  # the key decides


@pytest.mark.parametrize("focal", [{}, {"foreground_share": "0.7"}])
def test_without_a_prior_regions_are_drawn_as_in_other_scripts(tmp_path: Path, focal) -> None:
    volume = np.random.default_rng(0).integers(0, 65535, (1, 50, 50, 50), np.uint16)
    module, other = script(*CT, **GUIDED, **focal), script(*CT, **focal)
    case = guided_case(module, tmp_path, volume, None)
    guided = module.pool([case], settings(module, prior_share=1.0))
    plain = other.pool([case], settings(other))
    for seed in range(5):
        (both,), (image,) = guided[0, seed], plain[0, seed]
        assert torch.equal(both[:1], image) and not both[1].any()


def test_every_voxel_of_a_prior_is_drawn_by_its_weight(tmp_path: Path) -> None:
    module = script(*CT, prior_share="0.6")
    prior = np.zeros((1, 9, 9, 9), np.uint8)
    prior[0, 0, 0, 0], prior[0, 8, 8, 8], prior[0, 4, 5, 6] = 1, 3, 4
    np.save(tmp_path / "w.npy", prior)
    found, counts = np.unique(module.places_in(tmp_path / "w.npy"), axis=0, return_counts=True)
    assert found.tolist() == [[0, 0, 0], [4, 5, 6], [8, 8, 8]]
    assert counts.tolist() == [module.PLACES / 8, module.PLACES / 2, module.PLACES * 3 / 8]


@pytest.mark.parametrize("method", ["mae", "simmim", "spark"])
@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_image_and_prior_are_cut_and_cropped_alike(tmp_path: Path, method: str, task: str) -> None:
    module = script(method, "ct", task, "3d", mask_prior="0.5")
    chosen = settings(module)
    side = module.region(chosen) + 10 * (task == "segmentation")
    prior = np.random.default_rng(0).integers(0, 256, (1, side, side, side)).astype(np.uint8)
    case = guided_case(module, tmp_path, prior.astype(np.uint16) * 257, prior)
    batch = torch.stack([module.pool([case], chosen)[0, seed][0] for seed in range(3)])
    assert batch.shape[1] == 2 and torch.allclose(batch[:, :1], batch[:, 1:] * 257)
    images = module.crop(batch, chosen)
    assert images.shape == (3, 1, *[chosen.size] * 3)
    assert torch.allclose(images, images.prior * 257, atol=1e-5)


@pytest.mark.parametrize("dimensionality", ["2d", "3d"])
def test_crops_of_whole_images_are_centred_on_what_matters(dimensionality: str) -> None:
    module = script("simclr", "ct", "classification", dimensionality, prior_share="0.6")
    plain = script("simclr", "ct", "classification", dimensionality)
    cut = {"size": 32, "min_scale": 0.1, "rotate_degrees": 30.0, "flip_axes": (0,)}
    images = torch.rand(200, 2, *[32] * module.DIMS)
    images[:, 1] = 0
    places = torch.randint(10, 22, (200, module.DIMS))
    for image, place in zip(images[:150], places, strict=False):
        image[(1, *place)] = 1.0
    images[150:, 0] = 0.5  # without prior

    def cropped(share: float) -> torch.Tensor:
        torch.manual_seed(5)
        return module.crop(images, settings(module, prior_share=share, **cut))

    torch.manual_seed(5)
    elsewhere = plain.crop(images[:, :1], settings(plain, **cut))
    assert torch.equal(cropped(0.0), elsewhere)
    middle = (slice(None), 0, *[slice(14, 18)] * module.DIMS)
    shares = []
    for share in (0.0, 0.6, 1.0):
        crops = cropped(share)
        assert crops.shape == (200, 1, *[32] * module.DIMS)
        assert torch.equal(crops[150:], elsewhere[150:])
        near = crops.prior[middle].flatten(1).amax(1)[:150] > 0
        shares.append(float(near.float().mean()))
    never, rather, always = shares
    assert always > 3 * never  # crops wider than twice the way to an edge cannot be centred
    assert rather == pytest.approx(never + 0.6 * (always - never), abs=0.06)


def test_crops_go_by_weight_and_stay_inside() -> None:
    module = script("simclr", "xray", "classification", "2d", prior_share="1")
    images = torch.ones(400, 2, 40, 40)
    images[:, 1] = 0
    images[:, 1, 0, 0], images[:, 1, 39, 20] = 1.0, 3.0  # at the edges
    crops = module.crop(images, settings(module, size=40, min_scale=0.05, rotate_degrees=0.0))
    assert (crops > 0.2).all()  # nothing from outside but what corners are interpolated with
    top, bottom = (
        crops.prior[:, 0, rows].flatten(1).amax(1) > 0 for rows in (slice(9), slice(31, 40))
    )
    one = top ^ bottom  # the widest show both
    assert (top | bottom).all() and one.float().mean() > 0.7
    assert float(bottom[one].float().mean()) == pytest.approx(0.75, abs=0.07)


@pytest.mark.parametrize("focal", [{}, {"mask_focus": "0.5"}])
@pytest.mark.parametrize("dimensionality", ["2d", "3d"])
def test_patches_that_matter_are_hidden_more_often_and_as_many_as_before(
    dimensionality: str, focal: dict[str, str]
) -> None:
    module = script("mae", "ct", "segmentation", dimensionality, "vit", mask_prior="0.5", **focal)
    torch.manual_seed(3)
    images = torch.rand(64, 1, *[32] * module.DIMS)
    images.prior = torch.zeros_like(images)
    images.prior[:, :, 16:] = 0.2
    shares = []
    for focus in (0.0, 0.5, 1.0):
        network = module.Method(settings(module, mask_prior=focus, mask_ratio=0.5))
        visible, hidden = network.drawn(images)
        total = network.encoder.grid**module.DIMS
        assert hidden.shape == (64, total // 2, 1) == visible.shape
        both = torch.cat([visible, hidden], 1)[..., 0].sort(1)[0]
        assert torch.equal(both, torch.arange(total).expand(64, -1))
        shares.append(float((hidden >= total // 2).float().mean()))
    assert 0.45 < shares[0] < 0.55 and shares[0] + 0.05 < shares[1] < shares[2]
    assert shares[2] == 1  # where the prior is 0 there is no weight at all


@pytest.mark.parametrize("focal", [{}, {"mask_focus": "0.5"}])
def test_without_a_prior_patches_are_hidden_as_in_other_scripts(focal: dict[str, str]) -> None:
    problem = ("simmim", "ct", "segmentation", "2d")
    module, other = script(*problem, mask_prior="1.0", **focal), script(*problem, **focal)
    torch.manual_seed(3)
    images = torch.rand(8, 1, 32, 32)
    images.prior = torch.zeros_like(images)
    orders = []
    for each in (module, other):
        torch.manual_seed(0)
        orders.append(each.hiding_order(images, 4, 1, settings(each)))
    assert torch.equal(*orders)


def read_all(module, manifest: Path, out: Path) -> list:
    chosen = settings(module)
    return module.prepare(module.read_manifest(manifest, chosen), chosen, out)


def test_maps_of_any_scale_are_read_on_the_grid_of_their_image(tmp_path: Path) -> None:
    module, shape = script(*CT, prior_share="0.6"), (30, 36, 24)
    kinds = {0: box(shape, 0.7), 1: box(shape, 3000), 2: box(shape).astype(np.uint8), 3: box(shape)}
    kinds[2][0, 0, 0] = 200
    kinds[3][:] = 0
    manifest = with_priors(volumes(tmp_path), kinds)
    cases = read_all(module, manifest, tmp_path / "out")
    for n, case in enumerate(cases):
        assert (case.weights is not None) == (n < 3)  # a map that is all zero counts as none
        if case.weights:
            weights, image = np.load(case.weights), np.load(case.array)
            assert weights.dtype == np.uint8 and weights.shape == image.shape
            assert weights.max() == 255 and (n != 2 or weights[weights > 0].min() == 2)


def moved(shape: tuple[int, ...]) -> nibabel.Nifti1Image:
    affine = np.diag([1.5, 1.5, 1.5, 1])
    affine[0, 3] = 40
    return nibabel.Nifti1Image(box(shape), affine)


BAD = {
    "another size": (box((30, 36, 20)), "is 30 x 36 x 20, but its image is 30 x 36 x 24"),
    "negative": (box((30, 36, 24)) - 0.1, "holds negative values"),
    "NaN": (box((30, 36, 24), np.nan), "holds NaN"),
    "two": (np.zeros((30, 36, 24, 2), np.float32), "one volume with three axes is expected"),
}


@pytest.mark.parametrize("name", [*BAD, "elsewhere", "absent", "no column"])
def test_a_bad_prior_stops_with_one_line_that_names_its_row(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, manifest = script(*CT, prior_share="0.6"), volumes(tmp_path)
    array, words = BAD.get(name, (None, ""))
    if array is not None:
        with_priors(manifest, {3: array})
    elif name == "elsewhere":
        nibabel.save(moved((30, 36, 24)), tmp_path / "moved.nii.gz")
        with_priors(manifest, {}, row3="moved.nii.gz")
        words = "moved.nii.gz: lies elsewhere in space than its image"
    elif name == "absent":
        with_priors(manifest, {}, row3="lesions.nii.gz")
        words = "'lesions.nii.gz' does not exist beside the manifest"
    with pytest.raises(SystemExit) as stopped:
        read_all(module, manifest, tmp_path / "out")
    error = capsys.readouterr().err.strip().splitlines()[-1]
    place = "no column 'prior'" if name == "no column" else f"{manifest} line 5: prior: "
    assert stopped.value.code == 2 and error.startswith("error: ")
    assert place in error and words in error


def test_frames_and_tiles_have_priors_as_they_have_masks(tmp_path: Path) -> None:
    module = script("mae", "ultrasound", "segmentation", "video", mask_prior="0.5")
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(4):
        for name, kind in (("image", 255), ("mask", 2), ("prior", 256)):
            folder = tmp_path / f"{name}{patient}"
            folder.mkdir()
            for frame in range(2):
                pixels = rng.integers(0, kind, (40, 32)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{frame}.png")
        split = "test" if patient == 3 else "train"
        named = {name: f"{name}{patient}" for name in ("mask", "prior")}
        rows.append({"path": f"image{patient}", **named, "patient": patient, "split": split})
    cases = read_all(module, write_manifest(tmp_path / "m.csv", rows), tmp_path / "out")
    assert len(cases) == 8 and all(case.weights for case in cases)
    assert [case.prior for case in cases[:2]] == ["prior0/0.png", "prior0/1.png"]


def test_a_run_by_priors_from_files_repeats_itself_when_it_is_resumed(tmp_path: Path) -> None:
    shape, manifest = (30, 36, 24), volumes(tmp_path, count=8, labelled=6)
    with_priors(manifest, {n: box(shape) for n in range(0, 8, 2)})
    module = script(*CT, **GUIDED, foreground_share="0.5", mask_focus="0.5")
    small = {"size": 16, "epochs": 2, "batch_size": 2, "checkpoint_every": 1}
    preview(module, manifest, tmp_path / "all", options(module, **small))
    run(module, "all", manifest, tmp_path / "all", **small)
    assert (tmp_path / "all" / "preview.png").exists()
    assert json.loads((tmp_path / "all" / "metrics.json").read_text())["metric"] == "Dice"
    # stopped after the second of four steps
    saved, module_save = [], module.save

    def stop_after_two(content: dict, file: Path) -> None:
        module_save(content, file)
        saved.append(file)
        if len(saved) == 2:
            raise KeyboardInterrupt

    module.save = stop_after_two
    try:
        with pytest.raises(KeyboardInterrupt):
            run(module, "pretrain", manifest, tmp_path / "cut", **small)
    finally:
        module.save = module_save
    run(module, "pretrain", manifest, tmp_path / "cut", **small)
    whole, cut = (torch.load(tmp_path / out / "encoder.pt") for out in ("all", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[n], cut[n]) for n in whole)


def test_pictures_run_by_priors_from_files(tmp_path: Path, capsys, monkeypatch) -> None:
    manifest = pictures(tmp_path, target="label")
    with_priors(manifest, {n: box((40, 32), 255).astype(np.uint8) for n in range(0, 16, 3)})
    module = script("simmim", "fundus", "classification", "2d", mask_prior="0.8", prior_share="0.6")
    assert "visible" in preview(module, manifest, tmp_path / "out", options(module))
    run(module, "all", manifest, tmp_path / "out")
    assert (tmp_path / "out" / "metrics.json").exists()
    assert list(estimate(module, manifest, tmp_path / "dry", options(module)))
