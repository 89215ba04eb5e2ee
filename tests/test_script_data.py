"""What emitted scripts read from files, real ones and made ones, is what the files mean."""

from __future__ import annotations

import csv
import shutil
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import emitted
import nibabel
import numpy as np
import pydicom
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # on quirks of its files

GREY = ("simclr", "xray", "classification", "2d")  # percentiles, 1 channel
ULTRASOUND = ("simclr", "ultrasound", "segmentation", "2d")  # range of the integers, uncropped
ULTRASOUND_VOLUMES = ("models-genesis", "ultrasound", "segmentation", "3d")
COLOUR = ("simclr", "dermoscopy", "classification", "2d")  # range of the integers, 3 channels
CT_SLICES = ("simclr", "ct", "classification", "2d")  # Hounsfield window
SLICES = ("mae", "mri", "segmentation", "2d", "vit")
CT = ("models-genesis", "ct", "segmentation", "3d")  # Hounsfield window, 1.5 mm
MR = ("models-genesis", "mri", "segmentation", "3d")  # percentiles, 1 mm
WHOLE = ("mae", "ct", "classification", "3d", "vit")


def read(what: tuple[Any, ...], path: Path, kind: str = "image", **changed: Any) -> np.ndarray:
    """The decoded file as the script's training sees it, without padding and cache."""
    module = emitted.script(*what)
    array, _ = module.read(path, kind, emitted.settings(module, **changed))
    packed = module.packed(array, kind)
    return module.unpacked(packed).numpy() if kind == "image" else packed


def shipped(name: str) -> Path:
    """A real file that comes with pydicom itself, never downloaded."""
    path = get_testdata_file(name, download=False)
    assert path
    return Path(path)


def saved(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


# %% DICOM pictures


@pytest.mark.parametrize("name", ["CT_small.dcm", "693_J2KI.dcm"])
def test_a_ct_slice_is_windowed_in_hounsfield_units(name: str) -> None:
    dataset = pydicom.dcmread(shipped(name))
    hounsfield = (
        pixel_array(dataset).astype(float) * dataset.RescaleSlope + dataset.RescaleIntercept
    )
    assert hounsfield.min() < -800 and hounsfield.max() > 800
    image = read(CT_SLICES, shipped(name), size=max(hounsfield.shape))
    np.testing.assert_allclose(image[0], (hounsfield.clip(-1000, 1000) + 1000) / 2000, atol=2e-5)


@pytest.mark.parametrize("kind", ["RLE", "implicit", "bigendian", "expb", "padded", "jp2klossless"])
def test_the_encoding_of_a_file_changes_nothing(kind: str) -> None:
    plain = read(GREY, shipped("MR_small.dcm"), size=64)
    assert len(np.unique(plain)) > 300  # more than 8 bits are left
    np.testing.assert_array_equal(read(GREY, shipped(f"MR_small_{kind}.dcm"), size=64), plain)


def test_monochrome1_is_turned_so_that_bright_stays_bright(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(shipped("MR_small.dcm"))
    stored = dataset.pixel_array
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.PixelData = (stored.max() - stored).astype(np.int16).tobytes()
    dataset.save_as(tmp_path / "film.dcm")
    upright = read(GREY, shipped("MR_small.dcm"), size=64)
    np.testing.assert_allclose(read(GREY, tmp_path / "film.dcm", size=64), upright, atol=2e-5)


def test_a_palette_is_looked_up() -> None:
    dataset = pydicom.dcmread(shipped("examples_palette.dcm"))
    colours = apply_color_lut(pixel_array(dataset), dataset) / 65535
    image = read(COLOUR, shipped("examples_palette.dcm"), size=800)
    assert (image.std(0) > 0.1).any()
    np.testing.assert_allclose(image[:, 225:575], colours.transpose(2, 0, 1), atol=2e-5)


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_rle.dcm",
        "SC_rgb_dcmtk_+eb+cy+n1.dcm",  # YBR_FULL
        "SC_ybr_full_422_uncompressed.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_rle_16bit.dcm",
    ],
)
def test_colour_encodings_give_red_where_red_is(name: str) -> None:
    image = read(COLOUR, shipped(name), size=100)
    assert image.shape == (3, 100, 100)
    red, green, blue = image[:, 5, 50], image[:, 25, 50], image[:, 45, 50]
    assert [red.argmax(), green.argmax(), blue.argmax()] == [0, 1, 2]
    assert min(red[0], green[1], blue[2]) > 0.95


def test_8_bit_dicom_is_scaled_by_255(tmp_path: Path) -> None:
    path = shipped("image_dfl.dcm")
    stored = pydicom.dcmread(path).pixel_array
    np.testing.assert_allclose(read(ULTRASOUND, path, size=512)[0], stored / 255, atol=1e-5)
    dataset = pydicom.dcmread(path)
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "0"  # common, and no reason for decimals
    dataset.save_as(tmp_path / "rescaled.dcm")
    again = read(ULTRASOUND, tmp_path / "rescaled.dcm", size=512)
    np.testing.assert_allclose(again[0], stored / 255, atol=1e-5)


def test_dicom_is_known_by_its_content_not_by_its_name(tmp_path: Path) -> None:
    for name in ("IM-0001", "1.2.840.113619.2", "slice.ima"):
        shutil.copy(shipped("MR_small.dcm"), tmp_path / name)
        image = read(GREY, tmp_path / name, size=64)
        np.testing.assert_array_equal(image, read(GREY, shipped("MR_small.dcm"), size=64))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("SC_rgb_rle_2frame.dcm", "several frames"),
        ("rtdose.dcm", "several frames"),
        ("rtplan.dcm", "no 'Pixel Data'"),
        ("MR_truncated.dcm", "less than expected"),
        ("badVR.dcm", "invalid literal"),
    ],
)
def test_what_holds_no_single_picture_is_unreadable_with_a_reason(
    name: str, why: str, tmp_path: Path
) -> None:
    assert why in unreadable(GREY, shipped(name), tmp_path)


@pytest.mark.parametrize("name", ["MR_small_jpeg_ls_lossless.dcm", "JPEGLSNearLossless_16.dcm"])
def test_a_missing_decoder_is_named(name: str, tmp_path: Path) -> None:
    module = emitted.script(*GREY)
    result = module.decode(module.Case(shipped(name), "", "", "", Path()), tmp_path, settings(GREY))
    assert isinstance(result, module.Case) or "plugins are missing" in result


def settings(what: tuple[Any, ...], **changed: Any) -> Any:
    return emitted.settings(emitted.script(*what), **changed)


def unreadable(what: tuple[Any, ...], path: Path, cache: Path) -> str:
    """Why the script skips this file."""
    module = emitted.script(*what)
    result = module.decode(module.Case(path, "", "", "", path.parent), cache, settings(what))
    assert isinstance(result, str) and "\n" not in result
    return result


# %% PNG, JPEG, TIFF


def test_16_bits_are_kept(tmp_path: Path) -> None:
    ramp = (30000 + np.arange(32 * 32, dtype=np.uint16)).reshape(32, 32)
    for name in ("ramp.png", "ramp.tif"):
        image = read(ULTRASOUND, saved(tmp_path / name, ramp))
        np.testing.assert_allclose(image[0] * 65535, ramp, atol=0.01)
        assert len(np.unique(image)) == ramp.size  # neighbouring values stay apart
        assert len(np.unique(read(GREY, tmp_path / name))) > 1000


def test_the_copy_in_the_cache_keeps_them_too(tmp_path: Path) -> None:
    ramp = (30000 + np.arange(32 * 32, dtype=np.uint16)).reshape(32, 32)
    module, path = emitted.script(*ULTRASOUND), saved(tmp_path / "ramp.png", ramp)
    case = module.decode(module.Case(path, "", "", "", tmp_path), tmp_path, settings(ULTRASOUND))
    (image,) = module.Samples([case], settings(ULTRASOUND), targets=False)[0, 0]
    np.testing.assert_allclose(image[0] * 65535, ramp, atol=0.01)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "YCbCr"])
def test_colour_pictures_of_every_mode(mode: str, tmp_path: Path) -> None:
    colours = np.zeros((32, 32, 3), np.uint8)
    colours[:16], colours[16:] = (250, 20, 20), (20, 20, 250)
    picture = Image.fromarray(colours)
    picture = picture.quantize(2) if mode == "P" else picture.convert(mode)
    path = tmp_path / ("p.tif" if mode in ("CMYK", "YCbCr") else "p.png")
    picture.save(path)
    image = read(COLOUR, path)
    np.testing.assert_allclose(image, colours.transpose(2, 0, 1) / 255, atol=0.02)
    grey = read(ULTRASOUND, path)  # one channel: the mean
    np.testing.assert_allclose(grey[0], colours.mean(2) / 255, atol=0.02)


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_pictures_of_every_mode(mode: str, tmp_path: Path) -> None:
    half = np.zeros((32, 32), np.uint8)
    half[:, :10] = 255
    Image.fromarray(half).convert(mode).save(tmp_path / "p.png")
    np.testing.assert_array_equal(read(ULTRASOUND, tmp_path / "p.png")[0], half / 255)
    assert (read(COLOUR, tmp_path / "p.png") == half / 255).all()  # three equal channels


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "float32"])
def test_8_bits_may_be_kept_in_a_wider_type(kind: str, tmp_path: Path) -> None:
    ramp = np.arange(32 * 32).reshape(32, 32) % 256
    if kind != "int16":  # which Pillow does not write
        path = saved(tmp_path / "p.tif", ramp.astype(kind))
        np.testing.assert_allclose(read(ULTRASOUND, path)[0], ramp / 255, atol=1e-5)
    array = np.repeat(ramp[..., None], 32, axis=2).astype(kind)
    file = nifti(tmp_path / "v.nii.gz", array, np.diag([1, 1, 1, 1]))
    image = read(ULTRASOUND_VOLUMES, file, size=24)  # its region is 30, so nothing is padded
    np.testing.assert_allclose(image[0], array / 255, atol=1e-5)


def test_decimals_up_to_one_stay(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).random((32, 32), np.float32)
    image = read(ULTRASOUND, saved(tmp_path / "p.tif", pixels))
    np.testing.assert_allclose(image[0], pixels, atol=1e-5)


def test_a_tiff_of_several_pages_is_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((8, 8), n, np.uint8)) for n in range(3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    assert "several frames" in unreadable(GREY, tmp_path / "stack.tif", tmp_path)


@pytest.mark.parametrize("sides", [(20, 60), (60, 20), (200, 100), (7, 11), (1, 500)])
def test_the_aspect_ratio_is_kept(sides: tuple[int, int], tmp_path: Path) -> None:
    path = saved(tmp_path / "p.png", np.full(sides, 255, np.uint8))
    image = read(ULTRASOUND, path, size=48)[0]
    assert image.shape == (48, 48)
    filled = [int((image > 0.99).any(1 - axis).sum()) for axis in (0, 1)]
    assert filled == [max(1, round(side * 48 / max(sides))) for side in sides]
    mask = read(SLICES, saved(tmp_path / "m.png", np.ones(sides, np.uint8)), "mask", size=48)
    np.testing.assert_array_equal(mask[0] == 1, image > 0.99)  # masks lie on the same grid


def test_a_large_picture_is_averaged_not_picked(tmp_path: Path) -> None:
    dots = np.zeros((320, 320), np.uint8)
    dots[::5, ::5] = 250
    image = read(ULTRASOUND, saved(tmp_path / "p.png", dots))
    assert abs(image[0, 2:-2, 2:-2] - 250 / 255 / 25).max() < 0.01


def test_palette_masks_hold_their_indices(tmp_path: Path) -> None:
    classes = np.arange(32 * 32).reshape(32, 32) % 3
    picture = Image.fromarray(classes.astype(np.uint8))
    picture.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    picture.save(tmp_path / "m.png")
    with Image.open(tmp_path / "m.png") as stored:
        assert stored.mode == "P"
    np.testing.assert_array_equal(read(SLICES, tmp_path / "m.png", "mask")[0], classes)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA"])
def test_grey_masks_of_every_mode(mode: str, tmp_path: Path) -> None:
    classes = np.zeros((32, 32), np.uint8)
    classes[4:9, 5:20] = 255 if mode == "1" else 1
    Image.fromarray(classes).convert(mode).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read(SLICES, tmp_path / "m.png", "mask")[0], classes > 0)


# %% Volumes


def volume(sides: tuple[int, int, int] = (20, 24, 16)) -> np.ndarray:
    """Hounsfield-like numbers, different along every axis."""
    x, y, z = np.meshgrid(*(np.linspace(0, 1, n) for n in sides), indexing="ij")
    return (900 * x - 500 * y + 90 * z**2).astype(np.int16)


def nifti(path: Path, array: np.ndarray, affine: Any) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def turned(array: np.ndarray, affine: np.ndarray, axes: str) -> tuple[np.ndarray, np.ndarray]:
    """The same volume with its axes stored in another order and direction."""
    image = nibabel.Nifti1Image(array, affine)
    change = ornt_transform(nibabel.io_orientation(affine), axcodes2ornt(axes))
    other = image.as_reoriented(change)
    assert np.allclose(other.affine, affine @ inv_ornt_aff(change, array.shape))
    return np.asarray(other.dataobj), other.affine


def test_the_window_is_exact(tmp_path: Path) -> None:
    array = volume((40, 40, 40))
    array.flat[:7] = -3000, -1000, -500, 0, 250, 1000, 3000
    image = read(CT, nifti(tmp_path / "v.nii.gz", array, np.diag([1.5, 1.5, 1.5, 1])))
    assert image.shape == (1, 40, 40, 40)  # the region for crops of 32
    np.testing.assert_allclose(image.flat[:7], [0, 0, 0.25, 0.5, 0.625, 1, 1], atol=1e-5)
    np.testing.assert_allclose(image[0], (array.clip(-1000, 1000) + 1000) / 2000, atol=1e-5)


def test_scale_factors_of_the_header_apply(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(volume((40, 40, 40)), np.diag([1.5, 1.5, 1.5, 1]))
    image.header.set_slope_inter(2.0, -1000.0)
    nibabel.save(image, tmp_path / "v.nii")
    shown = nibabel.load(tmp_path / "v.nii").get_fdata()
    expected = (shown.clip(-1000, 1000) + 1000) / 2000
    np.testing.assert_allclose(read(CT, tmp_path / "v.nii")[0], expected, atol=2e-5)


def test_percentiles_of_mr_ignore_units_and_single_bright_voxels(tmp_path: Path) -> None:
    array = volume((40, 40, 40)).astype(float) + 500
    plain = read(MR, nifti(tmp_path / "a.nii", array, np.eye(4)))
    low, high = np.percentile(array, (0.5, 99.5))
    np.testing.assert_allclose(plain[0], ((array - low) / (high - low)).clip(0, 1), atol=2e-5)
    scaled = read(MR, nifti(tmp_path / "b.nii", 0.01 * array - 3, np.eye(4)))
    np.testing.assert_allclose(scaled, plain, atol=2e-5)
    array[0, 0, 0] = 1e6
    bright = read(MR, nifti(tmp_path / "c.nii", array, np.eye(4)))
    np.testing.assert_allclose(bright.mean(), plain.mean(), atol=1e-3)


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PIR", "SAL", "ASL"])
def test_the_stored_orientation_changes_nothing(axes: str, tmp_path: Path) -> None:
    affine = np.diag([1.5, 1.5, 1.5, 1.0])
    upright = read(CT, nifti(tmp_path / "a.nii.gz", volume(), affine))
    other = read(CT, nifti(tmp_path / "b.nii.gz", *turned(volume(), affine, axes)))
    np.testing.assert_allclose(other, upright, atol=2e-5)
    inside = upright[0, 10:30, 8:32, 12:28]  # padded evenly from 20 x 24 x 16 to 40
    np.testing.assert_allclose(inside, (volume() + 1000.0) / 2000, atol=2e-5)


@pytest.mark.parametrize("axes", ["RAS", "LIP"])
@pytest.mark.parametrize("spacing", [(0.7, 0.7, 3.0), (2.5, 1.0, 0.25), (3.0, 3.0, 3.0)])
def test_mask_and_image_stay_on_one_grid(
    axes: str, spacing: tuple[float, float, float], tmp_path: Path
) -> None:
    sides = tuple(round(90 / mm) for mm in spacing)
    places = np.indices(sides) * np.reshape(spacing, (3, 1, 1, 1))
    inside = np.square(places - 40).sum(0) < 25**2  # a ball of 25 mm
    affine = np.diag([*spacing, 1.0])
    image = nifti(tmp_path / "i.nii.gz", *turned(inside * np.int16(500), affine, axes))
    mask = nifti(tmp_path / "m.nii.gz", *turned(inside.astype(np.uint8), affine, axes))
    image, found = read(CT, image)[0], read(CT, mask, "mask")[0]
    assert image.shape == found.shape
    litres = found.sum() * 1.5**3 / (inside.sum() * np.prod(spacing))
    assert abs(litres - 1) < 0.03
    bright = image > 0.625  # halfway between 0 and 500 HU
    assert 2 * (bright & found).sum() / (bright.sum() + found.sum()) > 0.95
    centres = [np.argwhere(part).mean(0) for part in (bright, found)]
    np.testing.assert_allclose(*centres, atol=0.15)


def test_headers_that_differ_by_rounding_give_one_grid(tmp_path: Path) -> None:
    array = np.ones((84, 82, 80), np.int16)  # of 0.75 mm: 41.5 steps of 1.5 mm, a tie
    sizes = set()
    for mm in (0.75 - 1e-6, 0.75, 0.75 + 1e-6):
        file = nifti(tmp_path / "v.nii", array, np.diag([mm, mm, mm, 1]))
        sizes.add(read(CT, file).shape)
    assert len(sizes) == 1


def test_thin_slices_are_averaged_not_dropped(tmp_path: Path) -> None:
    stripes = np.zeros((30, 30, 240), np.int16)
    stripes[:, :, ::2] = 1000
    image = read(CT, nifti(tmp_path / "v.nii.gz", stripes, np.diag([1.5, 1.5, 0.25, 1])))[0]
    assert abs(image[5:-5, 5:-5, 2:-2] - 0.75).max() < 0.01


def test_oblique_volumes_keep_their_size(tmp_path: Path) -> None:
    angle = np.deg2rad(20)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    mask = np.zeros((60, 60, 60), np.uint8)
    mask[10:50, 20:40, 30:50] = 1
    found = read(CT, nifti(tmp_path / "m.nii.gz", mask, affine), "mask")
    assert abs(found.sum() * 1.5**3 / mask.sum() - 1) < 0.05


@pytest.mark.parametrize("sides", [(5, 60, 33), (100, 20, 4), (33, 33, 33), (1, 70, 70)])
def test_whole_volumes_fit_the_network_in_their_proportions(
    sides: tuple[int, int, int], tmp_path: Path
) -> None:
    array = np.full(sides, 1000, np.int16)
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    image = read(WHOLE, nifti(tmp_path / "v.nii.gz", array, affine))[0]
    assert image.shape == (32, 32, 32)
    filled = [(image > 0.9).any(tuple({0, 1, 2} - {axis})).sum() for axis in range(3)]
    millimetres = np.array(sides) * [2, 1, 1]
    assert np.abs(np.array(filled) - 32 * millimetres / millimetres.max()).max() <= 1.1


def test_a_volume_smaller_than_the_crop_is_padded(tmp_path: Path) -> None:
    emitted.volumes(tmp_path, count=6, labelled=6, sides=(9, 5, 12))
    module = emitted.script(*CT)
    cases = module.prepare(
        module.read_manifest(tmp_path / "manifest.csv", settings(CT)), settings(CT), tmp_path
    )
    image, mask = module.Samples(cases, settings(CT), targets=True)[0, 3]
    (region,) = module.Samples(cases, settings(CT), targets=False)[0, 3]
    assert image.shape == mask.shape == (1, 32, 32, 32) and region.shape == (1, 40, 40, 40)
    assert mask.sum() == np.asarray(nibabel.load(tmp_path / "m0.nii.gz").dataobj).sum()


def test_a_series_of_volumes_is_refused(tmp_path: Path) -> None:
    data = Path(str(resources.files("nibabel.tests") / "data"))
    why = unreadable(MR, data / "example4d.nii.gz", tmp_path)
    assert "(128, 96, 24, 2)" in why and "one volume" in why
    image = read(MR, data / "anatomical.nii")  # a real head
    assert image.ndim == 4 and 0 <= image.min() < image.mean() < image.max() <= 1
    single = nifti(tmp_path / "v.nii", volume((40, 40, 40))[..., None], np.eye(4))
    assert read(MR, single).shape == (1, 40, 40, 40)  # one time point is a volume
    flat = nifti(tmp_path / "flat.nii", volume()[..., 0], np.eye(4))
    assert "three axes" in unreadable(MR, flat, tmp_path)


# %% DICOM series


def series(folder: Path, array: np.ndarray, spacing: tuple[float, float, float]) -> Path:
    """An axial CT series of an LPS volume; names and numbers say nothing about the order."""
    folder.mkdir()
    order = np.random.default_rng(0).permutation(array.shape[2])
    one = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
    for z in range(array.shape[2]):
        slice_ = pydicom.Dataset()
        slice_.file_meta = pydicom.dataset.FileMetaDataset()
        slice_.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_.file_meta.MediaStorageSOPClassUID = slice_.SOPClassUID = CTImageStorage
        slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID = generate_uid()
        slice_.update(
            {
                "Modality": "CT",
                "InstanceNumber": int(order[z]) + 1,
                "PhotometricInterpretation": "MONOCHROME2",
                "SamplesPerPixel": 1,
                "BitsAllocated": 16,
                "BitsStored": 16,
                "HighBit": 15,
                "PixelRepresentation": 0,
                "Rows": array.shape[1],
                "Columns": array.shape[0],
                "PixelSpacing": [spacing[1], spacing[0]],  # between rows, between columns
                "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
                "ImagePositionPatient": [-30, 10, -50 + z * spacing[2]],
                "RescaleSlope": 2,
                "RescaleIntercept": -1024,
            }
        )
        for keyword, value in one.items():
            setattr(slice_, keyword, value)
        slice_.PixelData = ((array[:, :, z].T + 1024) // 2).astype(np.uint16).tobytes()
        slice_.save_as(folder / f"{order[z]:03}.dcm", enforce_file_format=True)
    return folder


@pytest.fixture
def lps() -> np.ndarray:
    return volume() // 2 * 2  # the slope of the series is 2


SPACING = (1.0, 1.5, 2.5)


def test_a_series_equals_the_nifti_file_of_its_volume(lps: np.ndarray, tmp_path: Path) -> None:
    folder = series(tmp_path / "series", lps, SPACING)
    affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1])  # LPS to RAS
    affine[:3, 3] = 30, -10, -50
    file = nifti(tmp_path / "v.nii.gz", lps, affine)
    for what in (CT, WHOLE):
        np.testing.assert_allclose(read(what, folder), read(what, file), atol=2e-5)
    module = emitted.script(*CT)
    grids = [module.read(path, "image", settings(CT))[1] for path in (folder, file)]
    np.testing.assert_allclose(*grids, atol=1e-3)


def test_other_files_beside_the_slices_do_no_harm(lps: np.ndarray, tmp_path: Path) -> None:
    folder = series(tmp_path / "series", lps, SPACING)
    alone = read(CT, folder)
    (folder / "Thumbs.db").write_bytes(b"\0" * 200)
    shutil.copy(shipped("rtplan.dcm"), folder)  # DICOM without a picture
    np.testing.assert_array_equal(read(CT, folder), alone)


def test_a_series_with_a_hole_or_a_guest_is_refused(lps: np.ndarray, tmp_path: Path) -> None:
    folder = series(tmp_path / "series", lps, SPACING)
    shutil.copy(shipped("CT_small.dcm"), folder)
    assert "one DICOM series" in unreadable(CT, folder, tmp_path)
    (folder / "CT_small.dcm").unlink()
    first = min(folder.iterdir(), key=lambda f: pydicom.dcmread(f).ImagePositionPatient[2])
    shutil.copy(first, folder / "again.dcm")
    assert "lacks or doubles slices: they are 0.00 to 2.50 mm" in unreadable(CT, folder, tmp_path)
    (folder / "again.dcm").unlink()
    middle = [f for f in folder.iterdir() if pydicom.dcmread(f).ImagePositionPatient[2] == -30]
    middle[0].unlink()
    assert "2.50 to 5.00 mm apart" in unreadable(CT, folder, tmp_path)
    (tmp_path / "empty").mkdir()
    assert "one DICOM series" in unreadable(CT, tmp_path / "empty", tmp_path)


def test_a_changed_slice_is_read_anew(lps: np.ndarray, tmp_path: Path) -> None:
    folder = series(tmp_path / "series", lps, SPACING)
    module = emitted.script(*CT)
    first, _ = module.cached(folder, "image", tmp_path, settings(CT))
    assert module.cached(folder, "image", tmp_path, settings(CT))[0] == first
    file = folder / "003.dcm"
    slice_ = pydicom.dcmread(file)
    slice_.PatientComments = "changed"
    slice_.save_as(file)
    assert module.cached(folder, "image", tmp_path, settings(CT))[0] != first


# %% Real volumes


@pytest.fixture(scope="session")
def hippocampus() -> Path:
    if not emitted.HIPPOCAMPUS.is_dir():
        pytest.skip("the Decathlon's hippocampus images are not beside the checkout")
    return emitted.HIPPOCAMPUS


def test_the_hippocampus_keeps_its_volume(hippocampus: Path) -> None:
    for path in sorted((hippocampus / "labels").glob("*.nii.gz"))[:5]:
        truth = np.asarray(nibabel.load(path).dataobj).astype(int)
        found = read(MR, path, "mask")
        np.testing.assert_array_equal(
            np.bincount(found.ravel())[1:], np.bincount(truth.ravel())[1:]
        )
        image = read(MR, hippocampus / "images" / path.name)
        assert image.shape == found.shape and image.std() > 0.05
        twice = read(MR, path, "mask", spacing_mm=2.0)  # an eighth of the voxels
        assert abs((twice > 0).sum() * 8 / (truth > 0).sum() - 1) < 0.15


def test_the_average_brain_is_read_upright() -> None:
    data = pytest.importorskip("nilearn.datasets", reason="nilearn ships the brain").__file__
    name = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    image = read(MR, Path(data).parent / "data" / name)[0]
    left, right = image[: image.shape[0] // 2].sum(), image[image.shape[0] // 2 :].sum()
    assert abs(left / right - 1) < 0.02  # x runs from left to right
    top, bottom = image[:, :, -10:].mean(), image[:, :, 10:40].mean()
    assert top < bottom  # z runs upwards: air above the head, neck below


# %% Splits and pools


def prepared(module: ModuleType, manifest: Path, out: Path, **changed: Any) -> list[Any]:
    chosen = emitted.settings(module, **changed)
    return module.prepare(module.read_manifest(manifest, chosen), chosen, out)


def test_no_patient_is_in_two_splits_and_the_seed_decides(tmp_path: Path) -> None:
    module = emitted.script(*GREY)
    emitted.pictures(tmp_path, count=40, labelled=40)
    rows = [
        {"path": f"i{n}.png", "label": n % 2 if n % 3 else "", "patient": f"p{n // 3}"}
        for n in range(40)
    ]
    manifest = emitted.write_manifest(tmp_path / "manifest.csv", rows)
    chosen = []
    for seed in (0, 0, 1, 2):
        cases = module.read_manifest(manifest, emitted.settings(module, seed=seed))
        of = {c.patient: {d.split for d in cases if d.patient == c.patient} for c in cases}
        assert all(len(splits) == 1 for splits in of.values())
        held_out = {patient for patient, splits in of.items() if splits == {"test"}}
        assert len(held_out) == round(0.2 * len({c.patient for c in cases if c.target}))
        chosen.append(held_out)
    assert chosen[0] == chosen[1] and len({frozenset(s) for s in chosen}) > 1
    rows.reverse()
    again = module.read_manifest(emitted.write_manifest(manifest, rows), settings(GREY))
    assert {c.patient for c in again if c.split == "test"} == chosen[0]  # the order says nothing


def test_pretraining_never_sees_val_and_test_patients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = emitted.script(*WHOLE)
    emitted.volumes(tmp_path, count=12, labelled=12, target="label", sides=(8, 8, 8))
    splits = {"p0": "test", "p1": "val", "p2": "train"}
    rows = [
        {
            "path": f"i{n}.nii.gz",
            "label": n % 2 if n < 8 else "",  # the last row of each patient is unlabelled
            "patient": f"p{n % 4}",
            "split": splits.get(f"p{n % 4}", "") if n < 4 else "",  # named once only
        }
        for n in range(12)
    ]
    manifest = emitted.write_manifest(tmp_path / "manifest.csv", rows)
    pools = []
    monkeypatch.setattr(module, "train", lambda network, data, *rest: pools.append(data) or network)
    emitted.run(module, "pretrain", manifest, tmp_path / "run")
    assert {c.patient for c in pools[0].cases} == {"p2", "p3"} and len(pools[0].cases) == 6
    with (tmp_path / "run" / "splits.csv").open() as stream:
        written = {Path(row["path"]).name: row["split"] for row in csv.DictReader(stream)}
    assert [written[f"i{n}.nii.gz"] for n in range(12)] == ["test", "val", "train", "train"] * 3


def test_fine_tuning_and_test_use_labelled_cases_only(tmp_path: Path) -> None:
    module = emitted.script(*WHOLE)
    manifest = emitted.volumes(tmp_path, count=12, labelled=8, target="label", sides=(8, 8, 8))
    cases = prepared(module, manifest, tmp_path / "run")
    assert len(cases) == 12
    part = module.labelled_part(cases, 1.0, seed=0)
    assert {c.patient for c in part} == {"p4", "p5", "p6", "p7"}
    assert module.labelled_part(cases, 0.5, seed=0) == module.labelled_part(cases, 2, seed=0)


def test_every_second_crop_holds_the_target(tmp_path: Path) -> None:
    emitted.volumes(tmp_path, count=6, labelled=6, sides=(60, 60, 60))
    mask = np.zeros((60, 60, 60), np.uint8)
    mask[48, 9, 30] = 1
    nifti(tmp_path / "m5.nii.gz", mask, np.diag([1.5, 1.5, 1.5, 1]))
    module = emitted.script(*CT)
    cases = prepared(module, tmp_path / "manifest.csv", tmp_path / "run")
    samples = module.Samples(cases, settings(CT), targets=True)
    seen = [samples[5, key][1].sum() > 0 for key in range(60)]
    assert 0.4 < np.mean(seen) < 0.8
    for ours, theirs in zip(samples[5, 7], samples[5, 7], strict=True):
        assert (ours == theirs).all()  # a key gives one crop
