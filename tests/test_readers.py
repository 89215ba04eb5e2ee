"""Films and whole slides are read as they are: exact frames, tiles of tissue, faults in a line."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import emitted
import numpy as np
import pytest
import tifffile
from PIL import Image

from advisor import project, recommend
from advisor.plan import make_plan

VIDEO = ("simclr", "endoscopy", "classification", "video")
VIDEO_MASKS = ("simclr", "endoscopy", "segmentation", "video")
SLIDES = ("simclr", "histopathology", "classification", "2d")
SLIDE_MASKS = ("simclr", "histopathology", "segmentation", "2d")
SLIDE_BOXES = ("simclr", "histopathology", "detection", "2d")
BARS = 6  # a frame tells its number in so many bits


def film(path: Path, codec: str, count: int = 40, pix: str = "yuv420p", **options: str) -> Path:
    """A film whose frames hold their number as light and dark bars."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 32 * BARS, 64, pix
        for n in range(count):
            bits = [200 if n >> bit & 1 else 40 for bit in range(BARS)]
            row = np.repeat(np.array(bits, np.uint8), 32)
            pixels = np.broadcast_to(row[:, None], (64, 32 * BARS, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame.reformat(format=pix)))
        container.mux(stream.encode())
    return path


def number(pixels: np.ndarray) -> int:
    grey = pixels if pixels.ndim == 2 else pixels.mean(2)
    return sum(int(grey[32, 32 * bit + 16] > 120) << bit for bit in range(BARS))


FILMS = {
    "short.mp4": ("libx264", {"g": "250"}),
    "back.mkv": ("libx264", {"g": "12", "bf": "3"}),
    "open.mp4": ("libx264", {"x264-params": "open-gop=1:keyint=10:bframes=3"}),
    "old.avi": ("mpeg4", {"g": "12", "bf": "2"}),
    "odd.avi": ("libx264", {"g": "12", "bf": "2"}),  # AVI has no times for frames out of order
    "tape.mpg": ("mpeg2video", {"g": "12", "bf": "2"}),
    "stills.mov": ("mjpeg", {"pix": "yuvj420p"}),
}


@pytest.mark.parametrize("name", FILMS)
def test_each_frame_of_a_film_is_the_one_that_is_named(name: str, tmp_path: Path) -> None:
    module = emitted.script(*VIDEO)
    codec, options = FILMS[name]
    path, chosen = film(tmp_path / name, codec, **options), emitted.settings(module)
    order = [*range(0, 40, 3), *np.random.default_rng(0).permutation(40).tolist()]
    for n in order:
        pixels = module.pixels(path.with_name(f"{name}#{n}"), "image", chosen)
        assert pixels.shape == (64, 32 * BARS, 3) and number(pixels) == n
    assert "no frame 40; the last is 39" in unreadable(module, tmp_path / f"{name}#40")


def unreadable(module: ModuleType, path: Path, **changed: Any) -> str:
    case = module.Case(path, "", "", "", path.parent)
    result = module.decode(case, path.parent, emitted.settings(module, **changed))
    assert isinstance(result, str) and "\n" not in result
    return result


def test_frames_in_ascending_order_are_decoded_in_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = emitted.script(*VIDEO)
    begun: list[int] = []
    plain = module.Film.numbered
    monkeypatch.setattr(
        module.Film, "numbered", lambda self, first: begun.append(first) or plain(self, first)
    )
    chosen = emitted.settings(module)
    one = film(tmp_path / "one.mp4", "libx264", g="250")  # a single key frame
    for picture in module.pictures_of(one, chosen):
        module.pixels(picture, "image", chosen)
    assert begun == [0]
    begun.clear()
    many = film(tmp_path / "many.mp4", "libx264", g="5", sc_threshold="0")
    for n in (3, 22, 24, 39):  # enters at the key frame before, unless it is there already
        module.pixels(many.with_name(f"many.mp4#{n}"), "image", chosen)
    assert begun == [0, 20, 35]


def test_films_become_evenly_spread_frames_of_one_patient(tmp_path: Path) -> None:
    module = emitted.script(*VIDEO)
    rows = []
    for n, name in enumerate(("a.mp4", "b.MKV", "c.avi", "d.mov")):
        film(tmp_path / name, "mpeg4", bf="0")
        rows.append({"path": name, "label": n % 2, "split": ["train", "test"][n // 2]})
    manifest = emitted.write_manifest(tmp_path / "manifest.csv", rows)
    chosen = emitted.settings(module, frames_per_clip=4)
    cases = module.read_manifest(manifest, chosen)
    assert [c.path.name for c in cases[:4]] == ["a.mp4#0", "a.mp4#13", "a.mp4#26", "a.mp4#39"]
    assert Counter(c.patient for c in cases) == dict.fromkeys(
        ("a.mp4", "b.MKV", "c.avi", "d.mov"), 4
    )
    assert len(module.prepare(cases, chosen, tmp_path / "run")) == 16


def test_a_mask_may_be_a_film_in_grey(tmp_path: Path) -> None:
    module = emitted.script(*VIDEO_MASKS)
    classes = np.arange(64 * 96).reshape(64, 96) // 96 % 2
    with av.open(str(tmp_path / "m.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "gray"
        for n in range(5):
            mask = np.roll(classes, n, 0).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(mask, format="gray")))
        container.mux(stream.encode())
    np.save(tmp_path / "i.npy", np.zeros((5, 64, 96), np.uint8))
    chosen = emitted.settings(module, size=96)
    for n in range(5):
        mask = module.pixels(tmp_path / f"m.mkv#{n}", "mask", chosen)
        np.testing.assert_array_equal(mask, np.roll(classes, n, 0))
    film(tmp_path / "colour.mp4", "mpeg4", 5)
    with pytest.raises(ValueError, match=r"a video in colour.*-pix_fmt gray"):
        module.pixels(tmp_path / "colour.mp4#1", "mask", chosen)
    np.save(tmp_path / "other.npy", np.zeros((64, 96), np.uint8))
    rows = [
        {"path": "i.npy", "mask": "m.mkv", "split": "train"},
        {"path": "other.npy", "mask": "other.npy", "split": "test"},
    ]
    manifest = emitted.write_manifest(tmp_path / "manifest.csv", rows)
    cases = module.prepare(module.read_manifest(manifest, chosen), chosen, tmp_path / "run")
    assert len(cases) == 6
    for case in cases[:5]:
        mask = np.load(case.target)[0, 16:80]  # padded to a square
        np.testing.assert_array_equal(mask, np.roll(classes, module.located(case.path)[1], 0))


def test_films_that_cannot_be_read_say_why_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = emitted.script(*VIDEO)
    whole = film(tmp_path / "a.mp4", "libx264").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    assert "is no video that can be read: Invalid data" in unreadable(module, tmp_path / "cut.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    assert unreadable(module, tmp_path / "sound.mp4") == "is a video without frames"
    # a title in another encoding is no reason
    with av.open(str(tmp_path / "title.mkv"), "w") as container:
        container.metadata["title"] = "Gastroskopie"
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode())
    titled = (tmp_path / "title.mkv").read_bytes().replace(b"Gastro", b"G\xe4stro")
    (tmp_path / "title.mkv").write_bytes(titled)
    assert module.film(tmp_path / "title.mkv").count == 1
    # packets in the middle are lost: only what depends on them is
    damaged = bytearray(film(tmp_path / "b.avi", "mjpeg", pix="yuvj420p").read_bytes())
    begin = [n for n in range(len(damaged)) if damaged[n : n + 4] == b"00dc"][20] + 8
    damaged[begin : begin + 700] = bytes(700)
    (tmp_path / "hole.avi").write_bytes(damaged)
    chosen = emitted.settings(module)
    assert number(module.pixels(tmp_path / "hole.avi#5", "image", chosen)) == 5
    assert "has a frame 30 that cannot be decoded" in unreadable(module, tmp_path / "hole.avi#30")
    assert number(module.pixels(tmp_path / "hole.avi#7", "image", chosen)) == 7
    monkeypatch.setitem(sys.modules, "av", None)
    film_again = tmp_path / "again.mp4"
    film_again.write_bytes(whole)
    assert unreadable(module, film_again) == "is a video; to read it: pip install av"
    Image.fromarray(np.full((24, 24, 3), 99, np.uint8)).save(tmp_path / "frame.png")
    assert module.pixels(tmp_path / "frame.png", "image", chosen).shape == (24, 24, 3)


# %% Slides

PINK = (180, 80, 150)


def slide(
    path: Path,
    tissue: tuple[slice, ...] = (slice(0, 256), slice(1024, 3072)),
    mpp: float | None = 0.25,
    sides: tuple[int, int] = (512, 4224),
) -> np.ndarray:
    """A tiled pyramid of glass with tissue, each pixel of which tells where it is."""
    y, x = np.indices(sides)
    pixels = np.full((*sides, 3), 240, np.uint8)
    ramp = np.stack([180 + 0 * y, 40 + y // 8 % 64, 100 + x // 32], 2)
    pixels[tissue] = ramp[tissue]
    with tifffile.TiffWriter(path) as writer:
        for level in range(3):
            side = 2**level
            told = 1e4 / (mpp * side) if mpp else None
            small = pixels.reshape(sides[0] // side, side, sides[1] // side, side, 3).mean((1, 3))
            writer.write(
                small.round().astype(np.uint8),
                tile=(128, 128),
                photometric="rgb",
                subfiletype=min(level, 1),
                metadata=None,
                **({"resolution": (told, told), "resolutionunit": "CENTIMETER"} if told else {}),
            )
    return pixels


def test_a_slide_becomes_tiles_of_its_tissue_at_the_wanted_resolution(tmp_path: Path) -> None:
    module = emitted.script(*SLIDES)
    stored = slide(tmp_path / "s.tif")
    chosen = emitted.settings(module, tiles_per_slide=1000)  # 32 pixels of twice the length
    tiles = module.pictures_of(tmp_path / "s.tif", chosen)
    places = {module.located(tile)[1] for tile in tiles}
    assert places == {(x, y) for x in range(1024, 3072, 64) for y in range(0, 256, 64)}
    for tile in tiles[::17]:
        x, y = module.located(tile)[1]
        assert tile.name == f"s.tif#{x},{y}"
        expected = stored[y : y + 64, x : x + 64].reshape(32, 2, 32, 2, 3).mean((1, 3))
        found = module.pixels(tile, "image", chosen)
        assert found.dtype == np.uint8 and np.abs(found - expected).max() <= 2
    coarse = emitted.settings(module, slide_mpp=0.7, tiles_per_slide=1000)  # between two levels
    for tile in module.pictures_of(tmp_path / "s.tif", coarse)[::7]:
        (x, y), side = module.located(tile)[1], round(32 * 0.7 / 0.25)
        found = module.pixels(tile, "image", coarse)
        mean = stored[y : y + side, x : x + side].mean((0, 1))
        assert found.shape == (32, 32, 3) and np.abs(found.mean((0, 1)) - mean).max() < 2


def test_of_many_tiles_some_are_drawn_over_all_of_the_tissue(tmp_path: Path) -> None:
    module = emitted.script(*SLIDES)
    slide(tmp_path / "s.tif")
    few = emitted.settings(module, tiles_per_slide=24)
    drawn = module.pictures_of(tmp_path / "s.tif", few)
    assert len(set(drawn)) == 24 and drawn == module.pictures_of(tmp_path / "s.tif", few)
    x = [module.located(tile)[1][0] for tile in drawn]
    assert all(np.histogram(x, 4, (1024, 3072))[0] > 0)
    slide(tmp_path / "half.tif", (slice(0, 256), slice(1024 + 38, 3072)))
    for share, first in ((0.3, 1024), (0.5, 1088)):  # of the first column, two fifths are tissue
        some = emitted.settings(module, tissue_share=share, tiles_per_slide=1000)
        places = [module.located(t)[1] for t in module.pictures_of(tmp_path / "half.tif", some)]
        assert min(places)[0] == first


def test_the_threshold_parts_two_groups() -> None:
    otsu = emitted.script(*SLIDES).otsu
    rng = np.random.default_rng(0)
    low, high = rng.integers(0, 30, 9000), rng.integers(90, 200, 1000)
    assert 29 <= otsu(np.concatenate([low, high]).astype(np.uint8)) < 90
    assert 0 <= otsu(np.full(100, 7, np.uint8)) <= 255


def test_slides_tiles_and_folders_go_together_from_manifest_to_predictions(tmp_path: Path) -> None:
    module = emitted.script(*SLIDES)
    rows = []
    for n in range(8):
        name = f"s{n}.tif"
        slide(tmp_path / name, (slice(0, 256), slice(256 * n, 256 * n + 512)))
        rows.append({"path": name, "label": n % 2, "split": ["train", "test"][n // 4]})
    both = tmp_path / "both"
    (both / "scan").mkdir(parents=True)
    slide(both / "x.tif")
    Image.fromarray(np.full((40, 40, 3), PINK, np.uint8)).save(both / "tile.png")
    (both / "scan" / "Dat0.dat").write_bytes(b"x")
    (both / "scan.mrxs").write_bytes(b"x")
    rows.append({"path": "both", "label": "", "split": "train"})
    rows.append({"path": "s0.tif#4096,256", "label": "", "split": ""})
    manifest = emitted.write_manifest(tmp_path / "manifest.csv", rows)
    cases = module.read_manifest(manifest, emitted.settings(module, tiles_per_slide=5))
    counts = Counter(case.patient for case in cases)
    assert counts == {f"s{n}.tif": 5 + (n == 0) for n in range(8)} | {"both": 5 + 2}
    run = {"tiles_per_slide": 5, "unreadable_limit": 0.1, "batch_size": 4, "epochs": 1}
    emitted.run(module, "all", manifest, tmp_path / "run", **run)
    with (tmp_path / "run" / "splits.csv").open() as stream:
        split = {row["path"]: row["split"] for row in csv.DictReader(stream)}
    with (tmp_path / "run" / "predictions.csv").open() as stream:
        predicted = {row["path"]: row["patient"] for row in csv.DictReader(stream)}
    assert predicted.keys() == {path for path in split if split[path] == "test"}
    assert Counter(predicted.values()) == {f"s{n}.tif": 5 for n in range(4, 8)}
    assert all(Path(path).name.startswith(f"{who}#") for path, who in predicted.items())
    with (tmp_path / "run" / "unreadable.csv").open() as stream:
        (bad,) = csv.DictReader(stream)
    assert bad["path"].endswith("scan.mrxs") and "is no slide that can be read" in bad["why"]


def test_a_slide_is_opened_once_for_all_its_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import openslide

    module = emitted.script(*SLIDES)
    opened: list[Path] = []
    plain = openslide.OpenSlide
    monkeypatch.setattr(openslide, "OpenSlide", lambda file: opened.append(file) or plain(file))
    rows = []
    for n in range(2):
        slide(tmp_path / f"{n}.tif")
        rows.append({"path": f"{n}.tif", "label": n, "split": ["train", "test"][n]})
    manifest = emitted.write_manifest(tmp_path / "manifest.csv", rows)
    chosen = emitted.settings(module)
    cases = module.read_manifest(manifest, chosen)
    assert len(module.prepare(cases, chosen, tmp_path / "run")) == 2 * 128
    assert opened == [tmp_path / "0.tif", tmp_path / "1.tif"]


def test_slides_that_cannot_be_read_say_why_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = emitted.script(*SLIDES)
    slide(tmp_path / "untold.tif", mpp=None)
    slide(tmp_path / "coarse.tif", mpp=2.0)
    for name, words in (("untold", "does not say its microns"), ("coarse", "has 2 microns")):
        why = unreadable(module, tmp_path / f"{name}.tif")
        assert words in why and "--slide-stored-mpp" in why and "--slide-mpp" in why
    told = emitted.settings(module, slide_stored_mpp=0.25)
    assert len(module.pictures_of(tmp_path / "untold.tif", told)) == 128
    slide(tmp_path / "glass.tif", (slice(0, 0),))
    assert "lower --tissue-share" in unreadable(module, tmp_path / "glass.tif")
    slide(tmp_path / "s.tif")
    assert "name a tile as s.tif#x,y" in unreadable(module, tmp_path / "s.tif#3")
    assert "4224 x 512" in unreadable(module, tmp_path / "s.tif#4200,0")
    whole = (tmp_path / "s.tif").read_bytes()
    (tmp_path / "cut.svs").write_bytes(whole[: len(whole) // 2])
    assert "is no slide that can be read" in unreadable(module, tmp_path / "cut.svs")
    masks = emitted.script(*SLIDE_MASKS)
    with pytest.raises(ValueError, match="is a slide: cut image and mask into tiles"):
        masks.pixels(tmp_path / "s.tif#0,0", "mask", emitted.settings(masks))
    monkeypatch.setitem(sys.modules, "openslide", None)
    (tmp_path / "new.svs").write_bytes(whole)
    command = "is a slide; to read it: pip install openslide-python openslide-bin"
    assert unreadable(module, tmp_path / "new.svs") == command
    tifffile.imwrite(tmp_path / "tile.tif", np.full((64, 64, 3), 99, np.uint8), tile=(32, 32))
    assert module.pictures_of(tmp_path / "tile.tif", told) == [tmp_path / "tile.tif"]
    assert module.pixels(tmp_path / "tile.tif", "image", told).shape == (64, 64, 3)


def test_boxes_are_of_one_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = emitted.script(*SLIDE_BOXES)
    slide(tmp_path / "s.tif")
    rows = [{"path": "s.tif", "boxes": "0 0 9 9 0", "split": "train"}]
    manifest = emitted.write_manifest(tmp_path / "manifest.csv", rows)
    with pytest.raises(SystemExit):
        module.read_manifest(manifest, emitted.settings(module))
    assert "line 2: boxes: 's.tif' stands for several pictures" in capsys.readouterr().err


# %% What a script asks for


@pytest.mark.parametrize(
    ("modality", "dimensionality", "named"),
    [
        ("endoscopy", "video", {"av"}),
        ("histopathology", "2d", {"openslide-python", "openslide-bin"}),
        ("xray", "2d", set()),
        ("ct", "3d", set()),
    ],
)
def test_only_scripts_that_read_films_or_slides_ask_for_their_libraries(
    modality: str, dimensionality: str, named: set[str]
) -> None:
    profile = {"modality": modality, "task": "classification", "dimensionality": dimensionality}
    plan = make_plan(recommend(profile, engine="reference"), "simclr")
    asked = {line.partition(">")[0] for line in project.requirements(plan).splitlines()}
    assert asked & {"av", "openslide-python", "openslide-bin"} == named
    text = emitted.text("simclr", modality, "classification", dimensionality)
    assert ("import av" in text) == ("av" in named)
    assert ("openslide" in text) == ("openslide-bin" in named)
