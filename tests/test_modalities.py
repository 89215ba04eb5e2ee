"""What scripts do to the images of each modality: views by their physics, reading by its files."""

from __future__ import annotations

import csv
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import emitted
import nibabel
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid
from torch.utils._python_dispatch import TorchDispatchMode

from advisor import Knowledge, recommend
from advisor.beside.pictures import preview, shortened
from advisor.plan import PlanError, make_plan

MODALITIES = Knowledge.load().modalities
SHAPES = [
    (card.id, dimensionality)
    for card in MODALITIES.values()
    for dimensionality in card.dimensionality
]
STRENGTHS = ("gamma", "noise", "blur", "color", "bias_field", "ringing", "speckle", "stain")

MR = ("simclr", "mri", "classification", "2d")
MR_VOLUMES = ("simclr", "mri", "classification", "3d")
OCT = ("simclr", "oct", "classification", "2d")
SLIDES = ("simclr", "histopathology", "classification", "2d")
FUNDUS = ("simclr", "fundus", "classification", "2d")
MAMMOGRAMS = ("simclr", "mammography", "classification", "2d")
PET = ("simclr", "pet", "classification", "2d")
PET_VOLUMES = ("simclr", "pet", "classification", "3d")
MASKS = ("simclr", "endoscopy", "segmentation", "2d")
VIDEO = ("simclr", "endoscopy", "classification", "video")
VIDEO_MASKS = ("simclr", "endoscopy", "segmentation", "video")
CT_VOLUMES = ("models-genesis", "ct", "segmentation", "3d")
CELLS = ("simclr", "microscopy", "classification", "2d")


def only(module: ModuleType, **strengths: float) -> Any:
    """Its settings with all changes of intensity switched off but these."""
    chosen = emitted.settings(module)
    off = {name: 0.0 for name in STRENGTHS if hasattr(chosen, name)}
    return replace(chosen, **{**off, **strengths})


def distorted(what: tuple[str, ...], images: torch.Tensor, **strengths: float) -> torch.Tensor:
    module = emitted.script(*what)
    torch.manual_seed(0)
    return module.distort(images, only(module, **strengths))


# %% Views


@pytest.mark.parametrize(("modality", "dimensionality"), SHAPES)
def test_each_strength_changes_something_and_none_changes_nothing(
    modality: str, dimensionality: str
) -> None:
    module = emitted.script("simclr", modality, "classification", dimensionality)
    chosen = only(module)
    torch.manual_seed(0)
    images = torch.rand(4, chosen.channels, *[16] * module.DIMS) * 0.8 + 0.1
    torch.testing.assert_close(module.distort(images, chosen), images, atol=2e-3, rtol=0)
    for name in (name for name in STRENGTHS if hasattr(chosen, name)):
        found = module.distort(images, replace(chosen, **{name: 1.0}))
        assert found.shape == images.shape and found.isfinite().all()
        changes = (found - images).flatten(1).abs().mean(1)
        assert (changes > 1e-5).all() and changes.max() > 1e-2, name
        assert len(set(changes.tolist())) == 4, f"{name} is drawn for each image"


class Draws(TorchDispatchMode):
    """Notes the shape of everything that is drawn at random."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.shapes.append(found.shape)
        return found


@pytest.mark.parametrize(("modality", "dimensionality"), SHAPES)
def test_every_number_is_drawn_for_one_image(modality: str, dimensionality: str) -> None:
    """So that an image meets the same view whichever process it is on."""
    module = emitted.script("simclr", modality, "classification", dimensionality)
    chosen = emitted.settings(module)
    images = torch.rand(7, chosen.channels, *[16] * module.DIMS)
    with Draws() as draws:
        module.distort(images, chosen)
    assert len(draws.shapes) > 3
    assert all(shape[0] == 7 and 7 not in shape[1:] for shape in draws.shapes), draws.shapes


def test_views_keep_their_precision_beside_half_precision() -> None:
    for what in (MR, OCT, SLIDES, FUNDUS):
        module = emitted.script(*what)
        chosen = emitted.settings(module, blur=0.5)
        images = torch.rand(2, chosen.channels, 24, 24)
        torch.manual_seed(0)
        plain = module.distort(images, chosen)
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            half = module.distort(images, chosen)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, plain, atol=1e-6, rtol=0)


@pytest.mark.parametrize("what", [MR, MR_VOLUMES])
def test_a_bias_field_multiplies_and_is_smooth(what: tuple[str, ...]) -> None:
    module = emitted.script(*what)
    sides = [40] * module.DIMS
    images = torch.rand(6, 1, *sides) + 0.5
    chosen = only(module, bias_field=0.4)

    def fields(of: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(3)
        return module.bias_field(of, chosen) / of

    field = fields(images)
    torch.testing.assert_close(fields(3 * images), field)  # whatever it is multiplied with
    torch.testing.assert_close(fields(torch.ones_like(images)), field)
    assert 1 / 1.4 - 1e-5 <= field.min() and field.max() <= 1.4 + 1e-5
    assert field.flatten(1).std(1).min() > 0.001 and field.flatten(1).max() > 1.15
    for axis in range(2, 2 + module.DIMS):  # neighbours differ little
        assert field.diff(dim=axis).abs().max() < 0.08
    assert not torch.allclose(field[0], field[1], atol=1e-3)


def test_ringing_appears_at_edges_and_keeps_what_is_smooth() -> None:
    module = emitted.script(*MR)
    chosen = only(module, ringing=0.6)
    edge = torch.zeros(8, 1, 64, 64)
    edge[..., 20:44] = 1
    torch.manual_seed(0)
    rung = module.ringing(edge, chosen)
    strongest = rung[rung.amax((1, 2, 3)).argmax(), 0, 32]
    # an ideal edge overshoots by 9 % of its height on either side (Gibbs)
    assert 0.05 < strongest.max() - 1 < 0.15 and -0.15 < strongest.min() < -0.05
    beside = strongest[24:40].diff().sign()
    assert (beside[1:] != beside[:-1]).sum() > 3  # it swings
    assert (strongest[:8].abs() < 0.05).all()  # far away hardly
    torch.testing.assert_close(rung.mean((1, 2, 3)), edge.mean((1, 2, 3)))
    ramp = torch.linspace(0, 1, 64).expand(8, 1, 64, 64)  # its ends differ, and do not ring
    assert (module.ringing(ramp, chosen) - ramp).abs().max() < 0.02
    assert torch.allclose(module.ringing(edge, replace(chosen, ringing=0.0)), edge, atol=1e-6)


def test_noise_of_a_magnitude_image_is_rician() -> None:
    module = emitted.script(*MR)
    chosen = only(module, noise=0.2)
    torch.manual_seed(0)
    air = module.distort(torch.zeros(16, 1, 64, 64), chosen)
    assert air.min() >= 0
    ratio = air.mean((1, 2, 3)) / air.std((1, 2, 3))
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1.913), atol=0.06, rtol=0)  # Rayleigh
    tissue = module.distort(torch.full((16, 1, 64, 64), 5.0), chosen)
    assert (tissue.mean((1, 2, 3)) - 5).abs().max() < 0.02  # where signal is strong: none


@pytest.mark.parametrize("modality", ["ultrasound", "oct"])
def test_the_variance_of_speckle_grows_with_the_signal(modality: str) -> None:
    bands = torch.tensor([0.0, 0.2, 0.4, 0.8]).repeat_interleave(16)
    images = bands.expand(8, 1, 64, 64)
    found = distorted(("simclr", modality, "classification", "2d"), images, speckle=0.5)
    spread = found.unflatten(3, (4, 16)).std((1, 2, 4))  # (images, bands)
    assert (spread[:, 0] == 0).all()  # no signal, no speckle
    shares = spread[:, 1:] / torch.tensor([0.2, 0.4, 0.8])
    torch.testing.assert_close(shares, shares.mean(1, keepdim=True).expand(8, 3), rtol=0.1, atol=0)


def test_stain_jitter_leaves_white_white_and_changes_the_density_of_a_stain() -> None:
    white = torch.ones(6, 3, 16, 16)
    assert torch.equal(distorted(SLIDES, white, stain=0.5), white)
    module = emitted.script(*SLIDES)
    stains = torch.tensor(module.STAINS)
    for n in range(3):  # pure stain of three densities stays that stain
        amounts = torch.tensor([0.2, 0.5, 1.0])
        images = torch.exp(-stains[n][:, None] * amounts)[None, :, None].expand(6, 3, 4, 3)
        density = -distorted(SLIDES, images, stain=0.3).log()
        factor = density / -images.log()
        torch.testing.assert_close(factor, factor[:, :1, :1, :1].expand_as(factor))
        assert factor.min() >= 0.7 - 1e-4 and factor.max() <= 1.3 + 1e-4
        assert factor[:, 0, 0, 0].std() > 0.05


def test_the_card_alone_decides_and_a_wrong_name_is_told() -> None:
    answer = recommend({"modality": "xray", "task": "classification"}, engine="reference")
    assert "views/grey" in make_plan(answer, "simclr").parts
    other = answer.common["distort"].model_copy(update={"value": "speckle"})
    speckle = answer.common["distort"].model_copy(update={"value": 0.1})
    changed = answer.model_copy(
        update={"common": {**answer.common, "distort": other, "speckle": speckle}}
    )
    plan = make_plan(changed, "simclr")
    assert "views/speckle" in plan.parts and "speckle" in {s.name for s in plan.settings}
    odd = other.model_copy(update={"value": "no-such"})
    changed = answer.model_copy(update={"common": {**answer.common, "distort": odd}})
    with pytest.raises(PlanError, match="xray: its card names templates/views/no-such"):
        make_plan(changed, "simclr")
    less = {n: c for n, c in answer.common.items()} | {"distort": other}
    with pytest.raises(PlanError, match=r"'speckle'.*physics of rules/modalities/xray\.yaml"):
        make_plan(answer.model_copy(update={"common": less}), "simclr")


# %% Fields of view


def read(what: tuple[Any, ...], path: Path, kind: str = "image", **changed: Any) -> np.ndarray:
    module = emitted.script(*what)
    array, _ = module.read(path, kind, emitted.settings(module, **changed))
    packed = module.packed(array, kind)
    return module.unpacked(packed).numpy() if kind == "image" else packed


def disc(sides: tuple[int, int], centre: tuple[int, int], radius: int) -> np.ndarray:
    y, x = np.indices(sides)
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2


def test_the_disc_of_a_fundus_fills_the_picture_wherever_it_was(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    found = []
    for n, (sides, centre) in enumerate([((200, 300), (100, 150)), ((240, 400), (130, 110))]):
        inside = disc(sides, centre, 90)
        pixels = rng.uniform(0, 8, (*sides, 3))  # compression noise around the disc
        pixels[inside] = (180, 90, 40)
        pixels[5:15, -40:-10] = 250  # a date, written in the margin
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{n}.png")
        found.append(read(FUNDUS, tmp_path / f"{n}.png", size=180))
    assert found[0].shape == (3, 180, 180)
    lit = [image.max(0) > 0.1 for image in found]
    assert (lit[0] == lit[1]).mean() > 0.99
    share = disc((180, 180), (90, 90), 90).mean()
    assert abs(lit[0].mean() - share) < 0.02


def test_the_breast_is_kept_and_the_marker_is_not(tmp_path: Path) -> None:
    pixels = np.zeros((300, 240), np.uint16)
    breast = disc((300, 240), (170, 0), 110)
    pixels[breast] = 2000 + np.random.default_rng(0).integers(0, 500, breast.sum())
    pixels[10:30, 190:230] = 4000  # R MLO
    Image.fromarray(pixels).save(tmp_path / "m.png")
    image = read(MAMMOGRAMS, tmp_path / "m.png", size=220)[0]
    rows, columns = (np.flatnonzero((image > 0.05).any(axis)) for axis in (1, 0))
    assert np.ptp(rows) + 1 > 215 and 105 < np.ptp(columns) + 1 < 115
    inside = image[(image > 0.05)]
    assert inside.mean() < 0.75  # the marker would be 1


def test_masks_keep_the_whole_picture_so_that_they_fit(tmp_path: Path) -> None:
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[20:40, 30:60] = 200
    Image.fromarray(pixels).save(tmp_path / "i.png")
    Image.fromarray((pixels[..., 0] > 0).astype(np.uint8)).save(tmp_path / "m.png")
    image, mask = (
        read(MASKS, tmp_path / f"{n}.png", k) for n, k in (("i", "image"), ("m", "mask"))
    )
    assert ((image[0] > 0.4) == (mask[0] > 0)).mean() > 0.97
    cut = read(FUNDUS, tmp_path / "i.png")
    assert (cut > 0.4).mean() > 2 * (image > 0.4).mean()
    black = np.zeros((30, 30, 3), np.uint8)
    Image.fromarray(black).save(tmp_path / "b.png")
    assert (read(FUNDUS, tmp_path / "b.png") == 0).all()  # nothing to cut to, no error


# %% PET


def pet_slice(z: int, stored: np.ndarray, **changed: Any) -> pydicom.Dataset:
    """One slice in Bq/ml: 70 kg, 350 MBq of fluorine-18 an hour before the scan."""
    scan = datetime(2020, 5, 4, 10, 30)
    tracer = pydicom.Dataset()
    tracer.RadionuclideTotalDose = "350000000"
    tracer.RadionuclideHalfLife = "6586.2"
    tracer.RadiopharmaceuticalStartTime = (scan - timedelta(hours=1)).strftime("%H%M%S")
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = PositronEmissionTomographyImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    values = {
        "SOPClassUID": PositronEmissionTomographyImageStorage,
        "SOPInstanceUID": dataset.file_meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": "1.2.3",
        "Modality": "PT",
        "Units": "BQML",
        "CorrectedImage": ["DECY", "ATTN", "SCAT"],
        "DecayCorrection": "START",
        "SeriesDate": scan.strftime("%Y%m%d"),
        "SeriesTime": scan.strftime("%H%M%S"),
        "AcquisitionDate": scan.strftime("%Y%m%d"),
        "AcquisitionTime": (scan + timedelta(minutes=5)).strftime("%H%M%S.00"),
        "PatientWeight": "70",
        "RadiopharmaceuticalInformationSequence": [tracer],
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "PixelSpacing": [2, 2],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [0, 0, 2 * z],
        "RescaleSlope": 2 + z,  # another in every slice, as some scanners store them
        "RescaleIntercept": 0,
        **changed,
    }
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.PixelData = stored.astype(np.uint16).tobytes()
    return dataset


def suv(activity: np.ndarray, weight: float = 70, dose: float = 350e6, hours: float = 1):
    return activity * weight * 1000 / (dose * 0.5 ** (hours * 3600 / 6586.2))


@pytest.fixture
def counts() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 30000, (32, 32))


def saved(path: Path, dataset: pydicom.Dataset) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def test_uptake_is_divided_by_the_dose_that_is_left(counts: np.ndarray, tmp_path: Path) -> None:
    image = read(PET, saved(tmp_path / "a.dcm", pet_slice(0, counts)))[0]
    expected = suv(2.0 * counts)
    assert 10 < expected.max() < 20
    np.testing.assert_allclose(20 * image, expected, atol=2e-3)
    heavier = read(PET, saved(tmp_path / "b.dcm", pet_slice(0, counts // 2, PatientWeight="140")))
    np.testing.assert_allclose(20 * heavier[0], suv(2.0 * (counts // 2), 140), atol=2e-3)
    ready = pet_slice(0, counts // 2000, Units="GML", PatientWeight=None)
    image = read(PET, saved(tmp_path / "c.dcm", ready))[0]
    np.testing.assert_allclose(20 * image, np.clip(2.0 * (counts // 2000), 0, 20), atol=2e-3)
    admin = pet_slice(0, counts, DecayCorrection="ADMIN")  # decay is taken back already
    image = read(PET, saved(tmp_path / "d.dcm", admin))[0]
    np.testing.assert_allclose(20 * image, suv(2.0 * counts, hours=0), atol=2e-3)


def test_a_dose_before_midnight_and_a_full_date_are_understood(
    counts: np.ndarray, tmp_path: Path
) -> None:
    late = {"SeriesTime": "003000", "AcquisitionTime": "003500"}
    dataset = pet_slice(0, counts, **late)
    dataset.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartTime = "233000"
    image = read(PET, saved(tmp_path / "a.dcm", dataset))[0]
    np.testing.assert_allclose(20 * image, suv(2.0 * counts), atol=2e-3)
    tracer = dataset.RadiopharmaceuticalInformationSequence[0]
    tracer.RadiopharmaceuticalStartDateTime = "20200503223000.00"
    image = read(PET, saved(tmp_path / "b.dcm", dataset))[0]
    np.testing.assert_allclose(20 * image, np.clip(suv(2.0 * counts, hours=2), 0, 20), atol=2e-3)


def test_a_series_of_slices_with_their_own_slopes(counts: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    planes = np.stack([np.roll(counts, 5 * z, 0) // (2 + z) for z in range(32)], 2)  # rows first
    for z in range(32):
        saved(folder / f"{31 - z}.dcm", pet_slice(z, planes[:, :, z]))
    image = read(PET_VOLUMES, folder, size=32)[0]  # 64 mm a side: not resampled
    activity = planes * (2.0 + np.arange(32))
    upright = activity.transpose(1, 0, 2)[::-1, ::-1]  # LPS to RAS
    np.testing.assert_allclose(20 * image, suv(upright), atol=2e-3)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"PatientWeight": None}, "PatientWeight"),
        ({"Units": "CNTS"}, "Units BQML"),
        ({"CorrectedImage": ["ATTN"]}, "CorrectedImage with ATTN and DECY"),
        ({"RadiopharmaceuticalInformationSequence": None}, "RadionuclideTotalDose"),
        ({"DecayCorrection": "NONE"}, "corrected when the scan began"),
        ({"SeriesTime": "113000"}, "corrected when the scan began"),  # a series made later
    ],
)
def test_what_cannot_become_suv_is_unreadable_with_a_reason(
    changed: dict[str, Any], why: str, counts: np.ndarray, tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.dcm", pet_slice(0, counts, **changed))
    assert why in unreadable(PET, path, tmp_path)


def unreadable(what: tuple[Any, ...], path: Path, cache: Path) -> str:
    module = emitted.script(*what)
    case = module.Case(path, "", "", "", path.parent)
    result = module.decode(case, cache, emitted.settings(module))
    assert isinstance(result, str) and "\n" not in result
    return result


def test_other_files_must_hold_suv(tmp_path: Path) -> None:
    array = np.linspace(0, 15, 32**3, dtype=np.float32).reshape(32, 32, 32)
    affine = np.diag([2.0, 2, 2, 1])
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "suv.nii.gz")
    np.testing.assert_allclose(read(PET_VOLUMES, tmp_path / "suv.nii.gz")[0] * 20, array, atol=2e-3)
    nibabel.save(nibabel.Nifti1Image(array * 5000, affine), tmp_path / "bq.nii.gz")
    assert "are no SUV" in unreadable(PET_VOLUMES, tmp_path / "bq.nii.gz", tmp_path)
    Image.fromarray(np.full((32, 32), 90, np.uint8)).save(tmp_path / "screen.png")
    assert "are no SUV" in unreadable(PET, tmp_path / "screen.png", tmp_path)


# %% Arrays, frames, folders


def test_arrays_are_read_as_they_are(tmp_path: Path) -> None:
    ramp = (30000 + np.arange(32 * 32, dtype=np.uint16)).reshape(32, 32)
    np.save(tmp_path / "a.npy", ramp)
    np.savez(tmp_path / "b.npz", image=ramp)
    low, high = np.percentile(ramp, (1, 99))
    for name in ("a.npy", "b.npz"):
        image = read(CELLS, tmp_path / name)
        np.testing.assert_allclose(image[0], ((ramp - low) / (high - low)).clip(0, 1), atol=2e-5)
        assert len(np.unique(image)) > 900  # 16 bits are kept
    colours = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    np.save(tmp_path / "last.npy", colours)
    np.save(tmp_path / "first.npy", colours.transpose(2, 0, 1))
    for name in ("last.npy", "first.npy"):
        image = read(("simclr", "dermoscopy", "classification", "2d"), tmp_path / name)
        np.testing.assert_allclose(image, colours.transpose(2, 0, 1) / 255, atol=2e-5)
    np.savez(tmp_path / "two.npz", a=ramp, b=ramp)
    assert "holds the arrays a, b" in unreadable(CELLS, tmp_path / "two.npz", tmp_path)
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    assert "allow_pickle" in unreadable(CELLS, tmp_path / "objects.npy", tmp_path)


def test_many_channels_are_scaled_each_by_itself(tmp_path: Path) -> None:
    scales = np.array([10, 1000, 100, 60000, 5])
    cells = np.random.default_rng(0).random((32, 32, 5)) * scales
    np.save(tmp_path / "cells.npy", cells)
    image = read(CELLS, tmp_path / "cells.npy", channels=5)
    assert image.shape == (5, 32, 32)
    low, high = np.percentile(cells, (1, 99), axis=(0, 1))
    expected = ((cells - low) / (high - low)).clip(0, 1).transpose(2, 0, 1)
    np.testing.assert_allclose(image, expected, atol=2e-5)
    module = emitted.script(*CELLS)
    chosen = emitted.settings(module, channels=5)
    view = module.distort(module.crop(torch.from_numpy(image)[None], chosen), chosen)
    assert module.Encoder(chosen).eval().embed(view).shape == (1, 512)


def test_a_volume_may_be_an_array_with_its_spacing(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(-900, 900, (40, 40, 20)).astype(np.int16)
    np.savez(tmp_path / "v.npz", volume=array, spacing=[1.5, 1.5, 3.0])
    affine = np.diag([1.5, 1.5, 3.0, 1])
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(
        read(CT_VOLUMES, tmp_path / "v.npz"), read(CT_VOLUMES, tmp_path / "v.nii.gz")
    )
    np.save(tmp_path / "flat.npy", array[0])
    assert "three axes" in unreadable(CT_VOLUMES, tmp_path / "flat.npy", tmp_path)


def enhanced(array: np.ndarray, spacing: tuple[float, float, float]) -> pydicom.Dataset:
    """An enhanced CT file of an LPS volume, with its frames in another order than their places."""
    order = np.random.default_rng(0).permutation(array.shape[2])
    dataset = pet_slice(0, np.zeros(array.shape[1::-1]))
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope"):
        delattr(dataset, name)
    shared, orientation, measures, units = (pydicom.Dataset() for _ in range(4))
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing = [spacing[1], spacing[0]]
    units.RescaleSlope, units.RescaleIntercept, units.RescaleType = 1, -1024, "HU"
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelMeasuresSequence = [measures]
    shared.PixelValueTransformationSequence = [units]
    frames = []
    for z in order:
        frame, position = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = [0, 0, float(z * spacing[2])]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    dataset.NumberOfFrames = len(order)
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = frames
    planes = [array[:, :, z].T + 1024 for z in order]
    dataset.PixelData = np.stack(planes).astype(np.uint16).tobytes()
    return dataset


def test_an_enhanced_dicom_file_equals_the_nifti_file_of_its_volume(tmp_path: Path) -> None:
    array = np.random.default_rng(1).integers(-900, 900, (24, 30, 8)).astype(np.int16)
    path = saved(tmp_path / "ct.dcm", enhanced(array, (1.5, 1.5, 3.0)))
    affine = np.diag([-1.5, -1.5, 3.0, 1])
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / "ct.nii.gz")
    np.testing.assert_allclose(
        read(CT_VOLUMES, path), read(CT_VOLUMES, tmp_path / "ct.nii.gz"), atol=2e-5
    )
    single = saved(tmp_path / "one.dcm", pet_slice(0, np.zeros((8, 8))))
    assert "name the folder" in unreadable(CT_VOLUMES, single, tmp_path)


def clip(path: Path, brightness: list[int]) -> Path:
    """An animated picture of evenly bright frames with a dark corner."""
    frames = [np.full((24, 24), value, np.uint8) for value in brightness]
    for frame in frames:
        frame[:2, :2] = 60
    pictures = [Image.fromarray(frame) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    return path


def brightness(image: np.ndarray) -> int:
    return round(float(np.median(image)) * 255)


FRAMES = [80, 110, 140, 170, 200, 230]


@pytest.mark.parametrize("ending", ["gif", "tif", "png", "webp", "npy", "dcm"])
def test_one_frame_of_several_is_named_by_its_number(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{ending}"
    stack = np.stack([np.full((24, 24), value, np.uint8) for value in FRAMES])
    if ending == "npy":
        np.save(path, stack)
    elif ending == "dcm":
        bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "RescaleSlope": 1}
        dataset = pet_slice(0, stack[0], NumberOfFrames=len(stack), **bits)
        dataset.PixelData = stack.tobytes()
        saved(path, dataset)
    else:
        clip(path, FRAMES)
    for n, value in enumerate(FRAMES):
        image = read(MASKS, tmp_path / f"{path.name}#{n}")
        assert abs(brightness(image) - value) <= 2
    assert "clip." in (why := unreadable(MASKS, path, tmp_path)) and "several frames" in why
    assert "no frame 6; the last is 5" in unreadable(MASKS, tmp_path / f"{path.name}#6", tmp_path)


def rows_read(module: ModuleType, manifest: Path, **changed: Any) -> list[Any]:
    return module.read_manifest(manifest, emitted.settings(module, **changed))


def test_clips_become_evenly_spread_frames_of_one_patient(tmp_path: Path) -> None:
    module = emitted.script(*VIDEO)
    rows = []
    for n in range(4):
        clip(tmp_path / f"{n}.gif", list(range(70, 170, 10)))
        rows.append({"path": f"{n}.gif", "label": n % 2, "split": ["train", "test"][n // 2]})
    (tmp_path / "still").mkdir()
    for n in range(3):
        Image.fromarray(np.full((24, 24), 100 + n, np.uint8)).save(tmp_path / "still" / f"{n}.png")
    Image.fromarray(np.full((24, 24), 90, np.uint8)).save(tmp_path / "single.png")
    rows += [{"path": name, "label": "", "split": "train"} for name in ("still", "single.png")]
    rows.append({"path": "0.gif#4", "label": "", "split": "train"})
    manifest = emitted.write_manifest(tmp_path / "manifest.csv", rows)
    with pytest.raises(SystemExit):  # frame 4 is not among the thinned, so this is the clip's own
        rows_read(module, manifest, frames_per_clip=10)
    cases = rows_read(module, manifest, frames_per_clip=4)
    of_clip = [c for c in cases if c.path.name.startswith("1.gif")]
    assert [c.path.name for c in of_clip] == ["1.gif#0", "1.gif#3", "1.gif#6", "1.gif#9"]
    assert {c.target for c in of_clip} == {"1"} and {c.split for c in of_clip} == {"train"}
    assert {c.patient for c in of_clip} == {"1.gif"}
    assert {c.patient for c in cases if c.path.name.startswith("0.gif")} == {"0.gif"}
    assert sum(c.patient == "still" for c in cases) == 3
    decoded = module.prepare(cases, emitted.settings(module, frames_per_clip=4), tmp_path / "run")
    assert len(decoded) == len(cases) == 4 * 4 + 3 + 1 + 1
    shown = [brightness(np.load(c.array) / 65535) for c in decoded if c.patient == "1.gif"]
    assert np.allclose(shown, [70, 100, 130, 160], atol=2)


def test_masks_of_clips_and_folders_go_frame_by_frame(tmp_path: Path) -> None:
    module = emitted.script(*VIDEO_MASKS)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for n in range(3):
        mask = np.zeros((24, 24), np.uint8)
        mask[: 4 * n + 2] = 1
        Image.fromarray(80 + 60 * mask).save(tmp_path / "images" / f"{n}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{n}.png")
    masks = np.stack([np.full((24, 24), n % 2, np.uint8) for n in range(5)])
    np.save(tmp_path / "m.npy", masks)
    np.save(tmp_path / "i.npy", masks * 50 + 100)
    rows = [
        {"path": "images", "mask": "masks", "split": "train"},
        {"path": "i.npy", "mask": "m.npy", "split": "test"},
    ]
    manifest = emitted.write_manifest(tmp_path / "manifest.csv", rows)
    cases = module.prepare(rows_read(module, manifest), emitted.settings(module), tmp_path / "run")
    assert len(cases) == 8
    for case in cases:
        image, mask = np.load(case.array)[0] / 65535 * 255, np.load(case.target)[0]
        low, high = (80, 140) if case.patient == "images" else (100, 150)
        np.testing.assert_allclose(image[8:], np.where(mask, high, low)[8:], atol=35)
        assert (mask > 0).any() == (image.max() > low + 25)


def test_a_folder_of_tiles_is_a_case_a_tile(tmp_path: Path) -> None:
    module = emitted.script(*SLIDES)
    rows = []
    for n in range(4):
        tiles = tmp_path / f"slide{n}_files" / "0"
        tiles.mkdir(parents=True)
        for x in range(3):
            Image.fromarray(np.full((20, 20, 3), 60 * x + n, np.uint8)).save(tiles / f"{x}_0.png")
        (tiles / ".DS_Store").write_bytes(b"")
        rows.append({"path": tiles.parent.name, "label": n % 2, "patient": f"p{n}"})
    manifest = emitted.write_manifest(tmp_path / "manifest.csv", rows)
    cases = rows_read(module, manifest)
    assert len(cases) == 12 and len({c.path for c in cases}) == 12
    assert all(len({c.split for c in cases if c.patient == f"p{n}"}) == 1 for n in range(4))
    (tmp_path / "none").mkdir()
    assert "Is a directory" in unreadable(SLIDES, tmp_path / "none", tmp_path)
    rows.append({"path": "none", "label": "", "patient": "p9"})
    cases = rows_read(module, emitted.write_manifest(manifest, rows))
    assert [c.path.name for c in cases if c.patient == "p9"] == ["none"]


def test_what_is_no_picture_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42" + bytes(200))
    assert "ffmpeg -i" in unreadable(FUNDUS, tmp_path / "clip.mp4", tmp_path)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "slide.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "vips dzsave" in unreadable(SLIDES, tmp_path / "slide.tif", tmp_path)


# %% Every modality


@pytest.mark.parametrize(("modality", "dimensionality"), SHAPES)
def test_scripts_of_every_modality_read_and_distort(
    modality: str, dimensionality: str, tmp_path: Path
) -> None:
    module = emitted.script("simclr", modality, "classification", dimensionality)
    chosen = emitted.settings(module)
    if dimensionality == "3d":
        manifest = emitted.volumes(tmp_path, 4, 4, "label", (20, 24, 16))
        if MODALITIES[modality].intensity.mode in ("suv", "unit"):  # not in Hounsfield units
            for file in tmp_path.glob("i*.nii.gz"):
                image = nibabel.load(file)
                values = (np.asarray(image.dataobj) + 700).clip(0) / (
                    5 if modality != "pet" else 100
                )
                nibabel.save(nibabel.Nifti1Image(values, image.affine), file)
    else:
        manifest = emitted.pictures(tmp_path, 4, 4)
        if modality == "pet":
            for file in tmp_path.glob("i*.png"):
                np.save(file, np.asarray(Image.open(file)) / 20)
                file.with_suffix(".png.npy").rename(file.with_suffix(".npy"))
            manifest.write_text(manifest.read_text().replace(".png", ".npy"))
    with manifest.open() as stream:
        rows = list(csv.DictReader(stream))
    for n, row in enumerate(rows):
        row["split"] = "test" if n < 2 else "train"
    cases = module.prepare(
        rows_read(module, emitted.write_manifest(manifest, rows)), chosen, tmp_path / "run"
    )
    assert len(cases) == 4
    data = module.Samples(cases, chosen, targets=False)
    images = torch.stack([data[n, n][0] for n in range(4)])
    assert images.shape == (4, chosen.channels, *[chosen.size] * module.DIMS)
    assert images.std() > 0.05 and 0 <= images.min() and images.max() <= 1
    views = [module.distort(module.crop(images, chosen), chosen) for _ in range(2)]
    assert views[0].shape == images.shape and not torch.allclose(*views)


# %% Preview


@pytest.mark.parametrize(
    ("method", "modality", "task", "dimensionality", "columns"),
    [
        ("simclr", "histopathology", "classification", "2d", 3),
        ("mae", "mri", "classification", "3d", 4),
        ("models-genesis", "ct", "segmentation", "3d", 4),
        ("scratch", "fundus", "classification", "2d", 3),
    ],
)
def test_preview_shows_different_rows_and_then_what_was_learned(
    method: str,
    modality: str,
    task: str,
    dimensionality: str,
    columns: int,
    tmp_path: Path,
) -> None:
    module = emitted.script(method, modality, task, dimensionality)
    target = "mask" if task == "segmentation" else "label"
    write = emitted.pictures if dimensionality == "2d" else emitted.volumes
    manifest, out = write(tmp_path / "data", target=target), tmp_path / "run"
    said = preview(module, manifest, out, emitted.options(module))
    assert said.count(",") == columns - 1 and "as read" in said
    with Image.open(out / "preview.png") as picture:
        before = np.asarray(picture.convert("L")).astype(float)
    high, wide = before.shape
    cells = [
        before[int((r + 0.35) * high / 4) : int((r + 0.85) * high / 4)][
            :, int((c + 0.3) * wide / columns) : int((c + 0.8) * wide / columns)
        ]
        for r in range(4)
        for c in range(columns)
    ]
    side = (min(len(c) for c in cells), min(c.shape[1] for c in cells))
    cells = [cell[: side[0], : side[1]] for cell in cells]
    for one in range(4 * columns):
        for other in range(one):
            assert np.abs(cells[one] - cells[other]).mean() > 1, (one, other)
    assert not (out / "preview.png.part").exists() and not (out / "splits.csv").exists()
    preview(module, manifest, out, emitted.options(module))
    with Image.open(out / "preview.png") as picture:
        again = np.asarray(picture.convert("L")).astype(float)
    np.testing.assert_array_equal(again, before)  # the seed decides
    if method == "mae":
        emitted.run(module, "pretrain", manifest, out, epochs=2)
        assert "weights of step" in preview(module, manifest, out, emitted.options(module))
        with Image.open(out / "preview.png") as picture:
            after = np.asarray(picture.convert("L")).astype(float)
        assert np.abs(after - before).max() > 10


def test_names_beside_rows_keep_both_ends() -> None:
    assert shortened("hippocampus_050.nii.gz") == "hippocampus_050.nii.gz"
    assert (
        shortened("sub-01_ses-02_acq-x_T1w.nii.gz")
        == "sub-01_s…q-x_T1w.nii.gz"[:9] + ("sub-01_ses-02_acq-x_T1w.nii.gz"[-13:])
    )


def test_preview_without_a_readable_image_says_why(tmp_path: Path, capsys: Any) -> None:
    module = emitted.script(*MR)
    manifest = emitted.pictures(tmp_path / "data", 8, 8)
    for file in (tmp_path / "data").glob("*.png"):
        file.write_bytes(b"nothing")
    with pytest.raises(SystemExit) as caught:
        preview(module, manifest, tmp_path / "run", emitted.options(module))
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "nothing to show" in error and "cannot identify image file" in error
