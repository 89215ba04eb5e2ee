"""The tasks beside classification and segmentation: metrics, geometry, learning, mistakes, runs."""

from __future__ import annotations

import copy
import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from emitted import pictures, run, script, settings, volumes, write_manifest
from monai.apps.detection.metrics.coco import COCOMetric
from monai.apps.detection.metrics.matching import matching_batch
from monai.data.box_utils import box_iou
from monai.networks.blocks import Warp
from PIL import Image
from sklearn.linear_model import RidgeCV
from sklearn.metrics import average_precision_score, r2_score
from test_script_faults import Fault, changed, fault  # noqa: F401
from test_script_learning import structured

from advisor.beside.report import report as written_report

TARGETS = {
    "regression": "target",
    "retrieval": "label",
    "detection": "boxes",
    "registration": "pair",
}
METRICS = {"regression": "R2", "retrieval": "mAP", "detection": "mAP", "registration": "Dice"}
METHODS = {
    "simclr": {"2d": "cnn", "3d": "vit"},
    "byol": {"2d": "vit", "3d": "vit"},
    "mae": {"2d": "vit", "3d": "vit"},
    "models-genesis": {"2d": "cnn", "3d": "cnn"},
}
BOTH = pytest.mark.parametrize("dimensionality", ["2d", "3d"])


def module_of(task: str, dimensionality: str = "2d", method: str = "mae", backbone: str = ""):
    chosen = backbone or METHODS[method][dimensionality]
    return script(method, "mri", task, dimensionality, backbone=chosen)


def data(folder: Path, task: str, dimensionality: str, **more: Any) -> Path:
    write = pictures if dimensionality == "2d" else volumes
    return write(folder, target=TARGETS[task], **more)


def case(module, target: Any, patient: Any = 0):
    return module.Case(Path(), str(target), str(patient), "test", Path())


def repeated(count: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(count)), count)


def counts_of(cases: int, samples: int = 4) -> np.ndarray:
    """Row 0 takes every case once, as in the script."""
    drawn = np.random.default_rng(0).multinomial(cases, np.full(cases, 1 / cases), samples)
    return np.vstack([np.ones((1, cases), int), drawn])


def descend(module, chosen, model, batch: list[torch.Tensor], steps: int, rate: float) -> list:
    optimizer = module.optimizer_of(model, chosen.finetune_weight_decay, chosen)
    for group in optimizer.param_groups:
        group["lr"] = rate
    losses = []
    for _ in range(steps):
        torch.manual_seed(1)  # the same views every time
        loss, features = model(*batch)
        assert features.ndim == 2 and not features.requires_grad
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# %% Every task, in both dimensions, by methods of every kind


@BOTH
@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("method", METHODS)
def test_the_whole_path_runs_and_reports(method, task, dimensionality, tmp_path) -> None:
    module, out = module_of(task, dimensionality, method), tmp_path / "out"
    manifest = data(tmp_path, task, dimensionality)
    run(module, "all", manifest, out, finetune_steps=1, batch_size=2)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["metric"] == METRICS[task] and metrics["test_patients"] == 4
    (result,) = metrics["results"]
    for start in ("pretrained", "scratch"):
        score = result[start]
        assert score["low"] <= score["value"] <= score["high"] <= 1
        assert task == "regression" or score["low"] >= 0
    with (out / "predictions.csv").open() as stream:
        rows = list(csv.reader(stream))
    assert len(rows) == 1 + 2 * 4 and {len(row) for row in rows} == {len(set(rows[0]))}
    assert metrics["verdict"][0] in written_report(module, manifest, out).read_text()
    report = json.loads((out / "hand_over.json").read_text())
    encoder = {f"encoder.{n}" for n in module.Encoder(settings(module)).state_dict()}
    assert encoder <= set(report["loaded"]) and not encoder & {*report["new"], *report["left"]}
    restored = method == "models-genesis" and task == "registration"
    assert any(n.startswith("decoder.") for n in report["loaded"]) == restored
    probed = {
        "regression": {"kNN", "ridge"},
        "registration": {"Dice before registration"},
        "detection": set(),
    }
    if task in probed:
        assert set(metrics["frozen_features"]["pretrained"]) == probed[task]
    else:
        assert {"mAP", "recall@10 in the training cases"} <= set(
            metrics["frozen_features"]["scratch"]
        )


@BOTH
@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("backbone", ["cnn", "vit"])
def test_finetuning_learns_and_frozen_encoders_stay(
    backbone, task, dimensionality, tmp_path
) -> None:
    if task != "registration" and (backbone, dimensionality) == ("cnn", "3d"):
        backbone, method = "cnn", "models-genesis"  # a small network
    else:
        method = "simclr"
    module = module_of(task, dimensionality, method, backbone)
    chosen = settings(module)
    manifest = data(tmp_path, task, dimensionality)
    cases = module.prepare(module.read_manifest(manifest, chosen), chosen, tmp_path)
    samples = module.Samples([c for c in cases if c.target][:4], chosen, targets=True)
    batch = [torch.stack(part) for part in zip(*(samples[n, 2 * n] for n in range(4)))]
    if task in ("regression", "retrieval"):  # ten steps are few, so the images differ clearly
        batch[0] = structured(module, chosen)
    torch.manual_seed(0)
    model = module.Model(chosen).train()
    model(*batch)[0].backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, f"{name} gets no gradient"
    frozen = copy.deepcopy(model)
    frozen.encoder.requires_grad_(False)
    before = [p.clone() for p in frozen.encoder.parameters()]
    descend(module, chosen, frozen, batch, 1, 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.encoder.parameters()))
    rate = 3e-4 if backbone == "vit" else 1e-3
    losses = descend(module, chosen, model, batch, 20, rate)
    gain = 0.02 if task == "registration" else 0.1 * abs(losses[0])
    assert min(losses[-3:]) < losses[0] - gain, losses


# %% Regression


def test_r2_of_counts_is_r2_of_the_drawn_sample() -> None:
    module, rng = module_of("regression"), np.random.default_rng(0)
    truth = rng.normal(60, 10, 12)
    predicted = truth + rng.normal(0, 8, 12)
    cases, counts = [case(module, t, n) for n, t in enumerate(truth)], counts_of(12)
    got = module.Score(predicted[:, None], cases, settings(module))(counts)
    for value, count in zip(got, counts):
        drawn = repeated(count)
        assert value == pytest.approx(r2_score(truth[drawn], predicted[drawn]))
    one = np.zeros((1, 12), int)
    one[0, 3] = 12
    assert np.isnan(module.Score(predicted[:, None], cases, settings(module))(one))


def test_targets_are_learnt_on_their_own_scale_and_told_in_their_unit() -> None:
    module = module_of("regression")
    chosen = settings(module)
    values = [1e6 + 7, 1e6 - 3, 1e6 + 2]
    rows = module.truths([case(module, v) for v in values], chosen)
    assert rows[:, 0].mean().abs() < 1e-5 and rows[:, 0].std(correction=0) == pytest.approx(1)
    torch.manual_seed(0)
    model = module.Model(chosen)
    model(torch.rand(3, 1, chosen.size, chosen.size), rows)
    assert model.state_dict()["scale"].tolist() == pytest.approx([np.mean(values), np.std(values)])
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.fill_(2.0)
    found = model.predict(torch.rand(1, 1, chosen.size, chosen.size)).item()
    assert found == pytest.approx(np.mean(values) + 2 * np.std(values))
    alone = module.truths([case(module, 5.0)], chosen)
    assert alone.tolist() == [[0.0, 5.0, 1.0]]


def test_ridge_is_sklearns_and_neighbours_are_the_nearest() -> None:
    module, rng = module_of("regression"), np.random.default_rng(0)
    x = rng.normal(size=(20, 30))
    x = (x - x.mean(0)) / x.std(0)
    y, query = x[:, :2].sum(1) + rng.normal(0, 0.5, 20) + 40, rng.normal(size=(5, 30))
    oracle = RidgeCV(alphas=np.logspace(-3, 3, 25) * 20).fit(x, y).predict(query)
    x, y, query = (torch.from_numpy(a).float() for a in (x, y[:, None], query))
    found = y.mean() + query @ module.ridge(x, y - y.mean())
    np.testing.assert_allclose(found[:, 0].numpy(), oracle, rtol=1e-4)
    near = module.neighbours(x, y, query, settings(module, probe_neighbours=3))
    for row, value in zip(query, near[:, 0]):
        cosines = [float(row @ other / row.norm() / other.norm()) for other in x]
        order = sorted(range(20), key=lambda n: -cosines[n])[:3]
        weights = [math.exp(cosines[n] / 0.07) for n in order]
        mean = sum(w * y[n, 0].item() for w, n in zip(weights, order)) / sum(weights)
        assert value.item() == pytest.approx(mean, rel=1e-4)


# %% Retrieval


def test_queries_find_their_like_among_other_patients() -> None:
    module, rng = module_of("retrieval"), np.random.default_rng(0)
    labels, patients = ["a", "b", "a", "c", "b", "a", "a", "b"], [0, 1, 2, 3, 4, 5, 0, 1]
    cases = [case(module, label, p) for label, p in zip(labels, patients)]
    z = torch.from_numpy(rng.normal(size=(8, 3)))
    rows = module.found(z, cases, z, cases)
    unit = z / z.norm(dim=1, keepdim=True)
    for n, row in enumerate(rows):
        others = [m for m in range(8) if patients[m] != patients[n]]
        alike = [labels[m] == labels[n] for m in others]
        if not any(alike):
            assert labels[n] == "c" and np.isnan(row).all()
            continue
        scores = [float(unit[n] @ unit[m]) for m in others]
        assert row[0] == pytest.approx(average_precision_score(alike, scores))
        ranked = [hit for _, hit in sorted(zip(scores, alike), reverse=True)]
        assert row[1:].tolist() == [any(ranked[:k]) for k in (1, 5, 10)]
    counts = counts_of(8)
    score = module.Score(rows, cases, settings(module))(counts)
    for value, count in zip(score, counts):
        assert value == pytest.approx(np.nanmean(rows[repeated(count), 0]))


def test_supervised_contrast_is_the_definition() -> None:
    module = module_of("retrieval")
    chosen = settings(module, metric_temperature=0.3)
    torch.manual_seed(0)
    model = module.Model(chosen).eval()
    labels = module.truths([case(module, t) for t in ("x", "y", "x", "10")], chosen)
    assert labels.tolist() == [1, 2, 1, 0]
    loss, z = model(torch.rand(4, 1, chosen.size, chosen.size), labels)
    z, every, total = z.double(), labels.tolist() * 2, 0.0
    for i in range(8):
        others = [a for a in range(8) if a != i]
        below = sum(math.exp(z[i] @ z[a] / 0.3) for a in others)
        alike = [p for p in others if every[p] == every[i]]
        total -= sum(math.log(math.exp(z[i] @ z[p] / 0.3) / below) for p in alike) / len(alike)
    assert loss.item() == pytest.approx(total / 8, rel=1e-5)


# %% Detection


def bounds(inside: np.ndarray) -> np.ndarray:
    where = np.argwhere(inside)
    return np.concatenate([where.min(0), where.max(0) + 1])


@pytest.mark.parametrize("sides", [(50, 37), (20, 91), (64, 64)])
def test_boxes_follow_their_picture(sides, tmp_path) -> None:
    module = module_of("detection")
    chosen = settings(module, size=64)
    array = np.zeros(sides, np.uint8)
    down, across = slice(8, 17), slice(20, 33)
    array[down, across] = 255
    Image.fromarray(array).save(tmp_path / "i.png")
    row = {"path": "i.png", "boxes": "20 8 33 17 0", "patient": 0, "split": "train"}
    cases = found_in(module, chosen, [row], tmp_path)
    image = np.load(cases[0].array)[0] / 65535
    box = module.moved(*module.stored_boxes(cases[0])[:2])[0, :-1]
    assert np.abs(bounds(image > 0.5) - box).max() <= 1
    assert image[inside_of(box, 0)].mean() > 0.7 and image[~around(image, box)].max() < 0.1


def found_in(module, chosen, rows: list[dict], folder: Path) -> list:
    """The decoded cases; a test case is added, for there must be one."""
    first = rows[0]
    copied = folder / f"copy-{first['path']}"
    copied.write_bytes((folder / first["path"]).read_bytes())
    rows = [*rows, {**first, "path": copied.name, "patient": "other", "split": "test"}]
    manifest = write_manifest(folder / "manifest.csv", rows)
    return module.prepare(module.read_manifest(manifest, chosen), chosen, folder / "run")


def inside_of(box: np.ndarray, margin: float) -> tuple[slice, ...]:
    half = len(box) // 2
    low, high = np.ceil(box[:half] - margin), np.floor(box[half:] + margin)
    return tuple(slice(int(max(0, a)), int(b)) for a, b in zip(low, high))


def around(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    near = np.zeros(image.shape, bool)
    near[inside_of(box, 2.5)] = True
    return near


@pytest.mark.parametrize("turn", ["RAS", "LPS", "SAR", "PIL"])
def test_boxes_follow_their_volume(turn, tmp_path) -> None:
    module = module_of("detection", "3d")
    chosen = settings(module, size=32, spacing_mm=1.0)
    array = np.zeros((30, 44, 26), np.int16)
    array[6:14, 20:35, 9:20] = 1000
    upright = nibabel.Nifti1Image(array, np.diag([2.0, 1.3, 0.7, 1]))
    orientation = nibabel.orientations
    stored = upright.as_reoriented(
        orientation.ornt_transform(
            orientation.axcodes2ornt("RAS"), orientation.axcodes2ornt(tuple(turn))
        )
    )
    nibabel.save(stored, tmp_path / "i.nii.gz")
    written = bounds(np.asarray(stored.dataobj) > 0)
    text = ",".join(map(str, [*written, 0]))
    row = {"path": "i.nii.gz", "boxes": text, "patient": 0, "split": "train"}
    cases = found_in(module, chosen, [row], tmp_path)
    image = np.load(cases[0].array)[0] / 65535
    box = module.moved(*module.stored_boxes(cases[0])[:2])[0, :-1]
    assert np.abs(bounds(image > 0.5) - box).max() <= 1, (bounds(image > 0.5), box)
    back = module.as_stored(np.array([[*box, 0, 0.9]]), cases[0])
    np.testing.assert_allclose(back[0], [*written, 0, 0.9], atol=1e-6)
    far = np.array([[*(box[:3] - 500), *(box[3:] - 500), 0, 0.9]])
    assert len(module.as_stored(far, cases[0])) == 0  # nothing of it lies in the volume


@BOTH
def test_boxes_go_through_the_same_crop_as_the_image(dimensionality) -> None:
    module = module_of("detection", dimensionality)
    dims, side = module.DIMS, 32
    chosen = settings(module, rotate_degrees=0.0, flip_axes=tuple(range(dims)))
    images = torch.zeros(6, 1, *[side] * dims)
    low, high = [6, 10, 12][:dims], [17, 19, 27][:dims]
    images[(..., *map(slice, low, high))] = 1
    boxes = torch.tensor([[[*low, *high, 1.0], [-1.0] * (2 * dims + 1)]] * 6)
    torch.manual_seed(0)
    affine = module.random_affine(images, 0.5, chosen)
    crops = module.sample(images, affine, side)
    found = module.through(boxes, affine, side)
    assert (found[:, 1, -1] == -1).all()
    seen = 0
    for crop, box in zip(crops, found[:, 0]):
        if box[-1] == 1 and (crop > 0.5).any():
            drawn = torch.from_numpy(bounds((crop[0] > 0.5).numpy()))
            assert (drawn - box[:-1]).abs().max() <= 1
            seen += 1
    assert seen > 2


def test_a_box_belongs_to_the_crop_that_holds_its_centre() -> None:
    module = module_of("detection")
    boxes = torch.tensor(
        [[-4.0, 2, 6, 9, 0], [-6.0, 2, 4, 9, 1], [3.0, 3, 5, 5, 1], [20.0, 20, 40, 30, 0]]
    )
    found = module.inside(boxes, 32)
    assert found[:, -1].tolist() == [0, -1, 1, 0]
    assert found[0].tolist() == [0, 2, 6, 9, 0] and found[3].tolist() == [20, 20, 32, 30, 0]


@pytest.mark.parametrize("shape", [(32, 32), (33, 70), (40, 129), (48, 50, 81)])
def test_every_point_is_one_windows_who_sees_around_it(shape) -> None:
    module, side = module_of("detection", f"{len(shape)}d"), 32
    points = np.random.default_rng(0).uniform(0, shape, (300, len(shape)))
    owners = np.zeros(300, int)
    for window in module.windows(list(shape), side):
        start, low, high = window.T
        assert (start >= 0).all() and (start + side <= shape).all()
        own = ((points >= low) & (points < high)).all(1)
        owners += own
        near = np.maximum(start, 0), np.minimum(start + side, shape)
        reach = np.minimum(points[own] - near[0], near[1] - points[own])
        edge = np.minimum(points[own], shape - points[own])  # of the image itself
        assert (reach >= np.minimum(side / 4, edge) - 1e-9).all()
    assert (owners == 1).all()


@BOTH
def test_map_of_counts_is_cocos_of_the_drawn_images(dimensionality, monkeypatch) -> None:
    module, rng = module_of("detection", dimensionality), np.random.default_rng(0)
    dims, chosen = module.DIMS, settings(module, classes=3)
    truth, predicted = [], []
    for n in range(8):
        low = rng.uniform(0, 20, (n % 4, dims))
        boxes = np.column_stack([low, low + rng.uniform(4, 12, low.shape)])
        kinds = rng.integers(0, 2, len(boxes))  # class 2 never occurs
        truth.append(np.column_stack([boxes, kinds]))
        near = boxes + rng.normal(0, 1.0, boxes.shape)
        low = rng.uniform(0, 20, (3, dims))
        wrong = np.column_stack([low, low + rng.uniform(4, 12, low.shape)])
        kinds = np.concatenate([kinds, rng.integers(0, 3, 3)])
        every = np.column_stack([np.concatenate([near, wrong]), kinds])
        predicted.append(np.column_stack([every, rng.permutation(len(every)) / 20 + n / 1000]))
    monkeypatch.setattr(
        module, "stored_boxes", lambda case: (truth[int(case.target)], np.eye(dims), [32] * dims)
    )
    cases = [case(module, n) for n in range(8)]
    counts = counts_of(8, 6)
    score = module.Score(predicted, cases, chosen)(counts)
    low, high = chosen.iou_thresholds[0], chosen.iou_thresholds[-1]
    metric = COCOMetric(["0", "1", "2"], iou_list=[low], iou_range=(low, high, 0.05))
    for value, count in zip(score, counts):
        p, t = [predicted[n] for n in repeated(count)], [truth[n] for n in repeated(count)]
        parts = {
            "pred_boxes": [a[:, : 2 * dims] for a in p],
            "pred_classes": [a[:, -2] for a in p],
            "pred_scores": [a[:, -1] for a in p],
            "gt_boxes": [a[:, : 2 * dims] for a in t],
            "gt_classes": [a[:, -1] for a in t],
        }
        matched = matching_batch(box_iou, metric.iou_thresholds, **parts)
        oracle = metric(matched)[0]
        each = [v for k, v in oracle.items() if re.match(r"[01]_mAP_", k) and v >= 0]
        assert value == pytest.approx(np.mean(each)), (value, oracle)
        by_hand = np.mean([plain_ap(p, t, kind, chosen.iou_thresholds) for kind in (0, 1)])
        assert value == pytest.approx(by_hand)
    assert np.isnan(module.Score(predicted, cases, chosen)(0 * counts)).all()


def plain_ap(predicted, truth, kind: int, thresholds) -> float:
    """Boxes in the order of their scores, each given to the best truth that is left."""
    values = []
    for threshold in thresholds:
        rows = sorted(
            ((-box[-1], n, k) for n, p in enumerate(predicted) for k, box in enumerate(p)),
        )
        taken, hits = set(), []
        for _, n, k in rows:
            if predicted[n][k, -2] != kind:
                continue
            best, match = threshold, None
            for m, t in enumerate(truth[n]):
                overlap = iou(predicted[n][k], t)
                if t[-1] == kind and (n, m) not in taken and overlap >= best:
                    best, match = overlap, (n, m)
            hits.append(match is not None)
            taken |= {match} - {None}
        total = sum((t[:, -1] == kind).sum() for t in truth)
        curve = [
            (sum(hits[: i + 1]) / total, sum(hits[: i + 1]) / (i + 1)) for i in range(len(hits))
        ]
        points = [max((p for r, p in curve if r >= x / 100), default=0) for x in range(101)]
        values.append(np.mean(points))
    return float(np.mean(values))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    half = (len(b) - 1) // 2
    cut = np.minimum(a[half : 2 * half], b[half : 2 * half]) - np.maximum(a[:half], b[:half])
    both = np.prod(np.maximum(cut, 0))
    sizes = [np.prod(x[half : 2 * half] - x[:half]) for x in (a, b)]
    return float(both / (sum(sizes) - both))


def test_perfect_codes_cost_nothing_and_give_the_boxes_back() -> None:
    module = module_of("detection")
    chosen = settings(module, size=64, classes=2, atss_candidates=9)
    torch.manual_seed(0)
    model = module.Model(chosen).eval()
    boxes = torch.tensor([[10.0, 12, 30, 29, 1], [40, 33, 60, 50, 0], [-1] * 5])
    match = model.matcher(boxes[:2, :-1], model.anchors, model.per_level, model.per_place)[1]
    hit = match >= 0
    assert set(match[hit].tolist()) == {0, 1}
    codes = torch.zeros_like(model.anchors)
    codes[hit] = model.coder.encode_single(boxes[match[hit], :-1], model.anchors[hit])
    logits = torch.full((len(match), 2), -20.0)
    logits[hit, boxes[match[hit], -1].long()] = 20.0
    assert model.loss(logits, codes, boxes).item() < 1e-6
    assert model.loss(-logits, codes, boxes).item() > 10
    assert model.loss(logits, codes + 1, boxes).item() > 0.5
    model.answers = lambda maps: (logits[None], codes[None])
    model.settings = settings(module, score_threshold=0.5)
    rows = model.find(torch.zeros(1, 1, 64, 64))
    assert len(rows) == hit.sum() and rows[:, -1].min() > 0.99
    for row in rows:
        kind = int(row[-2])
        wanted = boxes[:2][boxes[:2, -1] == kind][0, :-1]
        assert torch.allclose(row[:4], wanted, atol=1e-3)
    none = torch.full((1, 5), -1.0)
    assert torch.isfinite(model.loss(logits, codes, none))
    assert torch.isfinite(model.loss(logits, codes, none[:0]))


def test_a_detector_finds_what_it_was_shown(tmp_path) -> None:
    module = module_of("detection", "2d", "models-genesis")
    chosen = settings(module, size=64, finetune_min_scale=1.0, flip_axes=(), iou_thresholds=(0.5,))
    manifest = pictures(tmp_path, 8, 8, "boxes", (64, 64))
    cases = module.prepare(module.read_manifest(manifest, chosen), chosen, tmp_path / "run")[:4]
    samples = module.Samples(cases, chosen, targets=True)
    batch = [torch.stack(part) for part in zip(*(samples[n, 0] for n in range(4)))]
    torch.manual_seed(0)
    model = module.Model(chosen).train()
    descend(module, chosen, model, batch, 40, 3e-3)
    score = module.Score(module.predict(model.eval(), cases, chosen), cases, chosen)
    assert score(np.ones((1, 4)))[0] > 0.9


# %% Registration


@BOTH
def test_warp_is_monais_and_moves_by_voxels(dimensionality) -> None:
    module = module_of("registration", dimensionality)
    dims = module.DIMS
    torch.manual_seed(0)
    image = torch.rand(2, 1, *[12, 10, 9][:dims])
    field = 2 * torch.randn(2, dims, *image.shape[2:])
    with pytest.warns(UserWarning, match="native grid_sample"):
        oracle = Warp()
    assert torch.allclose(module.warp(image, field), oracle(image, field), atol=1e-4)
    step = torch.zeros_like(field)
    step[:, 0] = 3
    assert torch.allclose(module.warp(image, step)[:, :, :-3], image[:, :, 3:], atol=1e-5)
    assert torch.allclose(module.warp(image, 0 * step, mode="nearest"), image)


@BOTH
def test_roughness_is_the_mean_square_of_differences(dimensionality) -> None:
    module = module_of("registration", dimensionality)
    field = torch.randn(2, module.DIMS, *[5, 6, 4][: module.DIMS], dtype=torch.float64)
    per_axis = []
    for axis in range(module.DIMS):
        squares = []
        for index in np.ndindex(*field.shape):
            if index[2 + axis] + 1 < field.shape[2 + axis]:
                after = list(index)
                after[2 + axis] += 1
                squares.append((field[tuple(after)] - field[index]).item() ** 2)
        per_axis.append(module.DIMS * np.mean(squares))  # summed over the components
    assert module.roughness(field).item() == pytest.approx(np.mean(per_axis))
    assert module.roughness(torch.ones_like(field)) == 0


@BOTH
def test_folds_are_counted(dimensionality) -> None:
    module = module_of("registration", dimensionality)
    dims = module.DIMS
    place = torch.stack(torch.meshgrid(*[torch.arange(8.0)] * dims, indexing="ij"))
    still = torch.zeros_like(place)
    assert module.folded(still) == 0
    shrunk, mirrored = -0.5 * place, still.clone()
    mirrored[0] = -2 * place[0]
    assert module.folded(shrunk) == 0 and module.folded(mirrored) == 1


def test_registration_moves_images_onto_each_other(tmp_path) -> None:
    module = module_of("registration", "2d", "simclr", "cnn")
    chosen = settings(module, finetune_min_scale=1.0, flip_axes=(), rotate_degrees=0.0)
    axes = torch.meshgrid(*[torch.arange(32.0)] * 2, indexing="ij")
    balls = [((axes[0] - c) ** 2 + (axes[1] - 16) ** 2).sqrt() for c in (14, 18)]
    moving, fixed = (torch.sigmoid(6 - away)[None, None] for away in balls)
    torch.manual_seed(0)
    model = module.Model(chosen).train()
    losses = descend(module, chosen, model, [moving, fixed], 60, 3e-3)
    assert losses[-1] < losses[0] - 0.1
    with torch.inference_mode():
        field, _ = model.eval().displacement(moving, fixed)
    before, after = (
        module.dice((image[0, 0] > 0.5).numpy() * 1, (fixed[0, 0] > 0.5).numpy() * 1, 2)[0]
        for image in (moving, module.warp(moving, field))
    )
    assert after > before + 0.1 and module.folded(field[0]) < 0.05


# %% Mistakes


@pytest.mark.parametrize(
    ("task", "cell", "said"),
    [
        ("regression", "old", "'old' is not a number (decimals after a point)"),
        ("regression", "1,5", "'1,5' is not a number (decimals after a point)"),
        ("regression", "nan", "'nan' is not finite"),
        (
            "detection",
            "1 2 3 4",
            "'1 2 3 4' is not 'none' or 'x1 y1 x2 y2 class; ...' (or a CSV file of such lines)",
        ),
        (
            "detection",
            "a b c d 0",
            "'a b c d 0' is not 'none' or 'x1 y1 x2 y2 class; ...' (or a CSV file of such lines)",
        ),
        ("detection", "gone.csv", "'gone.csv' does not exist beside the manifest"),
        (
            "detection",
            "1 2 3 4 0; 5 2 3 4 0",
            "'5 2 3 4 0': the second corner must lie above the first (x1 y1 x2 y2 class)",
        ),
        (
            "detection",
            "0.1 0.2 0.4 0.5 0",
            "'0.1 0.2 0.4 0.5 0' lies within the first pixel: multiply shares by the image's sides",
        ),
        ("detection", "1 2 3 4 1", "'1 2 3 4 1': class 1 is not one of 0 to 0"),
        ("detection", "1 2 3 4 0.5", "'1 2 3 4 0.5': class 0.5 is not one of 0 to 0"),
        ("registration", "gone.png", "'gone.png' does not exist beside the manifest"),
        ("registration", "i0.png;m1.png;", "'' does not exist beside the manifest"),
        (
            "registration",
            "i0.png;m1.png",
            "'i0.png;m1.png' is neither 'fixed image' nor "
            "'fixed image;mask of this image;mask of the fixed image'",
        ),
    ],
)
def test_entries_that_cannot_be_used(task, cell, said, fault: Fault, tmp_path) -> None:  # noqa: F811
    manifest = data(tmp_path, task, "2d")
    column = TARGETS[task]
    changed(manifest, 9, **{column: cell})
    what = ("mae", "xray", task, "2d", "vit")
    assert fault(what, manifest) == f"{manifest} line 9: {column}: {said}"


def test_boxes_beyond_the_image(fault: Fault, tmp_path) -> None:  # noqa: F811
    manifest = changed(data(tmp_path, "detection", "2d"), 9, boxes="3 4 33 20 0")
    said = fault(("mae", "xray", "detection", "2d", "vit"), manifest)
    wanted = "the box '3 4 33 20 0' reaches beyond the image, 32 x 40 (x1 y1 x2 y2 class)"
    assert said == f"{tmp_path}/i7.png: {wanted}"


def test_pairs_that_do_not_fit(fault: Fault, tmp_path) -> None:  # noqa: F811
    what = ("mae", "xray", "registration", "2d", "vit")
    manifest = changed(data(tmp_path, "registration", "2d"), 2, pair="i2.png")
    said = fault(what, manifest)
    assert said == (
        f"{tmp_path}/i0.png: a test pair needs masks to be judged by: "
        "fixed image;mask of this image;mask of the fixed image"
    )
    manifest = data(tmp_path, "registration", "2d")
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "other.png")
    changed(manifest, 9, pair="other.png")
    hint = "resample both onto one grid"
    assert fault(what, manifest) == (
        f"other.png: is 40 x 40, but {tmp_path}/i7.png is 40 x 32: {hint}"
    )
    changed(manifest, 9, pair="i5.png;m7.png;other.png")
    said = fault(what, manifest)
    assert said == f"other.png: is 40 x 40, but its image is 40 x 32: {tmp_path}/i5.png"


def test_boxes_are_written_in_several_ways(tmp_path) -> None:
    module = module_of("detection")
    wanted = [[1, 2, 3.5, 4, 0], [5, 6, 7, 8, 1]]
    (tmp_path / "b.csv").write_text("x1,y1,x2,y2,class\n1,2,3.5,4,0\n5,6,7,8,1\n")
    for text in ("1 2 3.5 4 0; 5 6 7 8 1", "1,2,3.5,4,0;5,6,7,8,1;", "b.csv"):
        assert module.parse(text, tmp_path).tolist() == wanted
        assert module.problem_with(text, tmp_path, settings(module, classes=2)) is None
    assert module.parse("none", tmp_path).shape == (0, 5)
    (tmp_path / "empty.csv").write_text("x1,y1,x2,y2,class\n")
    assert module.parse("empty.csv", tmp_path).shape == (0, 5)


@pytest.mark.parametrize("task", ["regression", "retrieval", "detection"])
def test_scores_that_are_not_defined_say_so(task, capsys, monkeypatch) -> None:
    module = module_of(task)
    cases = [case(module, 5 if task == "regression" else n, n) for n in range(3)]
    if task == "detection":
        none = np.zeros((0, 5))
        monkeypatch.setattr(module, "stored_boxes", lambda case: (none, None, None))
        predicted = [np.array([[1.0, 1, 5, 5, 0, 0.5]])] * 3
    elif task == "retrieval":
        z = torch.randn(3, 4)
        predicted = module.found(z, cases, z, cases)
    else:
        predicted = np.zeros((3, 1))
    with pytest.raises(SystemExit) as stopped:
        module.Score(predicted, cases, settings(module))
    assert stopped.value.code == 2
    assert "not defined; name other splits" in capsys.readouterr().err


def test_images_without_boxes_are_learnt_from(tmp_path) -> None:
    module = module_of("detection")
    manifest = data(tmp_path, "detection", "2d")
    for line in range(6, 14):
        changed(manifest, line, boxes="none")  # every training case
    run(module, "all", manifest, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["metric"] == "mAP"
