"""Emitted scripts learn, resume exactly and agree across processes."""

from __future__ import annotations

import copy
import csv
import functools
import inspect
import itertools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from emitted import (
    UNPATCHED,
    options,
    pictures,
    run,
    script,
    settings,
    text,
    volumes,
    write_manifest,
)
from PIL import Image
from torch import nn

from advisor import Knowledge, parts, recommend
from advisor.beside.report import report as written_report

CASES = [
    (card.id, task, dimensionality)
    for card in Knowledge.load().methods.values()
    if card.script and card.family != "baseline"  # which pre-train nothing
    for task, dimensionality in itertools.product(card.script.task, card.script.dimensionality)
    if task in ("classification", "segmentation")
]
# what is left of the loss on a fixed batch with fixed views: images, steps, learning rate, share
FALLS = {
    "simclr": (4, 12, 3e-3, 0.5),
    "byol": (4, 15, 3e-3, 0.5),
    "mae": (4, 15, 3e-3, 0.85),
    "models-genesis": (4, 12, 3e-3, 0.3),
    "swin-unetr": (2, 8, 3e-4, 0.8),
    "relative-position": (2, 15, 1e-3, 0.92),
    "simsiam": (4, 25, 1e-3, 0.9),
}
# all methods in 2D and 3D; what takes any network gets another in 3D
DIFFERENT = [
    (method, task, dimensionality)
    for method, task, dimensionality in CASES
    if task
    == (
        "classification"
        if dimensionality == "2d" and "Encoder" in parts.part(f"methods/{method}").slots
        else "segmentation"
    )
]
# one of each network
NETWORKS = [c for c in CASES if c[0] in ("simclr", "mae", "models-genesis", "swin-unetr")]
DIMENSIONS = sorted({(method, dimensionality) for method, _, dimensionality in CASES})
TASKS = ("classification", "segmentation", "regression", "retrieval", "detection", "registration")


def turns() -> list[tuple[str, str, str]]:
    """Every method in 2D and 3D, with the tasks that it has a script for in turns."""
    found = []
    for number, (method, dimensionality) in enumerate(DIMENSIONS):
        able = [t for t in TASKS if t in Knowledge.load().methods[method].script.task]
        found.append((method, able[number % len(able)], dimensionality))
    return found


EACH = pytest.mark.parametrize(
    ("method", "task", "dimensionality"), NETWORKS, ids=["-".join(case) for case in NETWORKS]
)


def module_for(method: str, task: str, dimensionality: str, **more):
    backbones = Knowledge.load().methods[method].script.backbone
    flat = method == "mae" and dimensionality == "2d"  # a U-Net is for volumes there
    backbone = "cnn" if "cnn" in backbones and not flat else None
    return script(method, "mri", task, dimensionality, backbone=backbone)


def smallest(module, **more):
    """Tiny settings; the decoder of Swin UNETR, which needs 64 voxels, takes no part."""
    small = {"size": 32} if hasattr(module, "SwinUNETR") else {}
    return settings(module, **{**small, **more})


def structured(module, settings, count: int = 4) -> torch.Tensor:
    """Images that differ from each other in a way that a network can learn."""
    side = module.region(settings)
    axes = torch.meshgrid(*[torch.linspace(0, 1, side)] * module.DIMS, indexing="ij")
    waves = [torch.sin(2 * math.pi * (k + 1) * axes[k % module.DIMS]) for k in range(count)]
    images = torch.stack(waves)[:, None] / 2 + 0.5
    return images.repeat(1, settings.channels, *[1] * module.DIMS)


def one_loss(module, network: nn.Module, *batch: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(1)
    return network(*batch)[0]


def descend(module, settings, network: nn.Module, batch, steps: int, rate: float) -> list[float]:
    optimizer = module.optimizer_of(network, settings.finetune_weight_decay, settings)
    for group in optimizer.param_groups:
        group["lr"] = rate
    losses = []
    # images that wait in a queue would repel themselves in every step
    queues = {n: b.clone() for n, b in network.named_buffers() if n.startswith("queue")}
    for step in range(steps):
        for name, held in queues.items():
            setattr(network, name, held)
        loss = one_loss(module, network, *batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if hasattr(network, "after_step"):
            network.after_step(step / steps)
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("method", "task", "dimensionality"), DIFFERENT)
def test_pretraining_lowers_the_loss_and_reaches_every_weight(method, task, dimensionality) -> None:
    module = module_for(method, task, dimensionality)
    chosen = smallest(module)
    torch.manual_seed(0)
    network = module.Method(chosen).train()
    count, steps, rate, share = FALLS.get(method, (4, 15, 1e-3, 0.9))
    inputs = len(inspect.signature(network.forward).parameters)
    batch = [structured(module, chosen, count)] * inputs
    one_loss(module, network, *batch).backward()
    last = {"moco-v3": ("projector.1.", "predictor.1."), "simsiam": ("projector.7.",)}
    fixed = ("target.", *last.get(method, ()))  # and scales that the original does without
    for name, weight in network.named_parameters():
        if not weight.requires_grad:
            assert weight.grad is None and name.startswith(fixed), name
        else:
            assert weight.grad is not None, f"{name} gets no gradient"
            assert weight.ndim == 1 or weight.grad.abs().max() > 0, f"{name} has gradient 0"
    losses = descend(module, chosen, network, batch, steps, rate)
    assert min(losses[-3:]) < share * losses[0], losses


@EACH
def test_finetuning_lowers_the_loss_and_frozen_encoders_stay(method, task, dimensionality) -> None:
    module = module_for(method, task, dimensionality)
    slow = method == "swin-unetr" and task == "segmentation"  # its decoder needs 64 voxels a side
    chosen = smallest(module, classes=2, **({"size": 64} if slow else {}))
    torch.manual_seed(0)
    model = module.Model(chosen).train()
    count = 1 if slow else 2 if method == "swin-unetr" else 4
    images = structured(module, chosen, count)[(..., *[slice(chosen.size)] * module.DIMS)]
    if task == "segmentation":
        truth = (images[:, :1] > 0.5).float()
    else:
        truth = torch.eye(2)[torch.arange(len(images)) % 2]
    frozen = copy.deepcopy(model)
    frozen.encoder.requires_grad_(False)
    before = [p.clone() for p in frozen.encoder.parameters()]
    descend(module, chosen, frozen, [images, truth], 2, 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.encoder.parameters()))
    rate = 3e-4 if method == "swin-unetr" else 2e-3  # which throws this transformer about
    losses = descend(module, chosen, model, [images, truth], 4 if slow else 12, rate)
    assert min(losses[-3:]) < 0.9 * losses[0], losses


@EACH
def test_the_whole_path_runs_and_reports(method, task, dimensionality, tmp_path) -> None:
    module = module_for(method, task, dimensionality)
    target = "mask" if task == "segmentation" else "label"
    write = pictures if dimensionality == "2d" else volumes
    manifest, out = write(tmp_path, target=target), tmp_path / "out"
    swin = method == "swin-unetr"  # seconds a step, so as few as possible
    fractions = (2,) if swin else (2, 1.0)
    small = {"batch_size": 2, "finetune_batch_size": 1, "finetune_steps": 1} if swin else {}
    if swin and task == "classification":
        small["size"] = 32
    run(module, "all", manifest, out, label_fractions=fractions, **small)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["metric"] == {"segmentation": "Dice", "classification": "AUROC"}[task]
    assert metrics["test_patients"] == 4 and len(metrics["verdict"]) == len(fractions)
    cases = [2, len(labelled(manifest)) - 4][: len(fractions)]
    assert [r["labelled_cases"] for r in metrics["results"]] == cases
    for result in metrics["results"]:
        for start in ("pretrained", "scratch"):
            score = result[start]
            assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    if task == "classification":
        assert set(metrics["frozen_features"]["pretrained"]) == {"kNN", "linear probe"}
    with (out / "predictions.csv").open() as stream:
        rows = list(csv.reader(stream))
    assert len(rows) == 1 + 2 * len(fractions) * 4  # starts, fractions, test cases; one seed
    assert {len(row) for row in rows} == {len(set(rows[0]))}  # a name for every column
    report = json.loads((out / "hand_over.json").read_text())
    encoder = {f"encoder.{n}" for n in module.Encoder(settings(module)).state_dict()}
    assert encoder <= set(report["loaded"]) and not encoder & {*report["new"], *report["left"]}
    kept = torch.load(out / "encoder.pt", weights_only=True)
    restored = task == "segmentation" and any(n.startswith("decoder.") for n in kept)
    assert any(n.startswith("decoder.") for n in report["loaded"]) == restored
    shown = ["curves.png", "examples.png", *["calibration.png"] * (task == "classification")]
    told = written_report(module, manifest, out).read_text()
    assert all(f"![{name}]({name})" in told for name in shown)
    assert all((out / name).read_bytes()[:4] == b"\x89PNG" for name in shown)
    history = (out / "pretrain.csv").read_text().splitlines()
    assert history[0] == "step,loss,learning_rate,spread,effective_rank,seconds"
    assert len(history) > 1


TARGETS = {
    "classification": "label",
    "segmentation": "mask",
    "regression": "target",
    "retrieval": "label",
    "detection": "boxes",
    "registration": "pair",
}


@pytest.mark.parametrize(
    ("method", "task", "dimensionality"), turns(), ids=["-".join(case) for case in turns()]
)
def test_every_method_runs_from_images_to_a_verdict(method, task, dimensionality, tmp_path) -> None:
    """Each in another modality, and on a transformer wherever the turn comes to it."""
    card, modalities = Knowledge.load().methods[method], Knowledge.load().modalities
    able = [
        m.id
        for m in modalities.values()
        if dimensionality in m.dimensionality and m.intensity.mode != "suv"  # pictures hold no SUV
    ]
    number = DIMENSIONS.index((method, dimensionality))
    turn = number // 2 % len(card.script.backbone)
    answers = (
        {"modality": modality, "task": task, "dimensionality": dimensionality, "backbone": network}
        for network in card.script.backbone[turn:] + card.script.backbone
        for modality in able[number % len(able) :] + able
    )
    open_to = next(a for a in answers if method in {s.method for s in ranked(a).strategies})
    module = script(method, **open_to)
    write = pictures if dimensionality == "2d" else volumes
    manifest, out = write(tmp_path, target=TARGETS[task]), tmp_path / "out"
    swin = {"size": 32} if method == "swin-unetr" and task != "segmentation" else {}
    run(module, "all", manifest, out, finetune_steps=1, batch_size=2, **swin)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["test_patients"] == 4 and len(metrics["verdict"]) == 1
    for start in ("pretrained", "scratch"):
        assert all(math.isfinite(v) for v in metrics["results"][0][start].values())
    report = json.loads((out / "hand_over.json").read_text())
    encoder = {f"encoder.{n}" for n in module.Encoder(settings(module, **swin)).state_dict()}
    assert encoder <= set(report["loaded"]) and not encoder & {*report["new"], *report["left"]}


@functools.cache
def ranking_of(*answers: tuple[str, str]):
    return recommend(dict(answers), engine="reference")


def ranked(answers: dict[str, str]):
    return ranking_of(*answers.items())


def labelled(manifest: Path) -> list[str]:
    with manifest.open() as stream:
        return [
            row["path"] for row in csv.DictReader(stream) if row.get("mask") or row.get("label")
        ]


def stripes(folder: Path, count: int, labelled: int, tested: int) -> Path:
    """Noisy stripes, upright (class 0) or lying (class 1), of random phase and brightness."""
    rows, down = [], np.arange(32)[:, None] * np.ones(32)
    for n in range(count):
        rng = np.random.default_rng(n)
        wave = np.sin(down * rng.uniform(0.5, 0.9) + rng.uniform(0, 6)) * rng.uniform(20, 60)
        pixels = (wave if n % 2 else wave.T) + rng.normal(128, 40, (32, 32))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{n}.png")
        split, label = "test" if n < tested else "train", n % 2 if n < labelled else ""
        rows.append({"path": f"{n}.png", "label": label, "patient": n, "split": split})
    return write_manifest(folder / "manifest.csv", rows)


def test_contrast_finds_the_classes_without_labels(tmp_path) -> None:
    module = script("simclr", "xray", "classification", "2d", backbone="cnn")
    manifest, out = stripes(tmp_path, 96, 52, 32), tmp_path / "out"
    more = {"batch_size": 32, "epochs": 15, "learning_rate": 1e-3, "min_scale": 0.6}
    run(module, "all", manifest, out, **more)
    scores = json.loads((out / "metrics.json").read_text())["frozen_features"]
    history = np.genfromtxt(out / "pretrain.csv", delimiter=",", names=True)
    assert history["spread"].min() > 0.3
    assert scores["pretrained"]["kNN"] > 0.9 and scores["pretrained"]["linear probe"] > 0.9, scores


def test_nt_xent_is_the_definition() -> None:
    module = script("simclr", "xray", "classification", "2d", backbone="cnn")
    chosen = settings(module, temperature=0.3)
    network = module.Method(chosen).eval()
    torch.manual_seed(1)
    loss, z = network(structured(module, chosen))
    z, count, total = z.double(), len(z) // 2, 0.0
    for i in range(2 * count):  # as it is written: two loops, no matrices
        partner = (i + count) % (2 * count)
        above = math.exp(z[i] @ z[partner] / 0.3)
        total -= math.log(
            above / sum(math.exp(z[i] @ z[k] / 0.3) for k in range(2 * count) if k != i)
        )
    assert loss.item() == pytest.approx(total / (2 * count), rel=1e-5)


def test_byol_follows_slowly_and_measures_the_cosine() -> None:
    module = script("byol", "xray", "classification", "2d", backbone="cnn")
    chosen = settings(module, ema_start=0.9)
    network = module.Method(chosen).train()
    weight = next(network.encoder.parameters())
    slow = next(network.target.parameters())
    with torch.no_grad():
        weight += 1
    before = slow.clone()
    network.after_step(0.0)
    assert torch.allclose(slow - before, 0.1 * (weight - before), atol=1e-6)
    network.after_step(1.0)  # at the end the rate is 1: nothing moves
    assert torch.allclose(slow - before, 0.1 * (weight - before), atol=1e-6)
    loss, _ = network(structured(module, chosen))
    assert 0 <= loss.item() <= 8


@pytest.mark.parametrize("dimensionality", ["2d", "3d"])
def test_mae_patches_are_in_the_order_of_the_tokens(dimensionality) -> None:
    module = script("mae", "mri", "segmentation", dimensionality, "vit")
    network = module.Method(settings(module))
    embedding = network.encoder.net.patch_embedding
    with torch.no_grad():
        for p in embedding.parameters():
            p.zero_()
        embedding.patch_embeddings.weight[0] = 1  # the first feature of a token sums its patch
    images = torch.rand(2, 1, *[network.settings.size] * module.DIMS)
    sums = module.patches(images, network.settings.patch_size).sum(2)
    assert torch.allclose(embedding(images)[..., 0], sums, rtol=1e-4)
    assert sums.shape[1] == (network.settings.size // network.settings.patch_size) ** module.DIMS


def test_swin_turns_and_cuts() -> None:
    module = script("swin-unetr", "ct", "segmentation", "3d")
    network = module.Method(settings(module, cutout_share=0.3))
    x = torch.rand(3, 1, 64, 64, 64)
    torch.manual_seed(0)
    turned, quarters = network.turned(x)
    for image, result, k in zip(x, turned, quarters):
        assert torch.equal(result, torch.rot90(image, int(k), (1, 2)))
    x = torch.rand(40, 1, 32, 32, 32)
    hidden = network.cut_out(x) != x
    shares = hidden.flatten(1).float().mean(1)
    assert 0.15 < shares.mean() < 0.3 and shares.min() < 0.1 and 0.3 < shares.max() < 0.6
    assert not hidden.all(0).any() and hidden.any(0).float().mean() > 0.8  # now here, now there


def test_swin_is_asked_only_for_turns_of_its_own() -> None:
    """A view that was turned or flipped before would hide by how much."""
    module = script("swin-unetr", "ct", "segmentation", "3d")
    chosen = settings(module, rotate_degrees=180.0, flip_axes=(0, 1, 2), min_scale=1.0, size=32)
    network = module.Method(chosen)
    side = module.region(chosen)
    x = torch.linspace(0, 1, side)[:, None, None].expand(6, 1, side, side, side).contiguous()
    torch.manual_seed(0)
    clean, _, quarters = network.view(x)
    assert len(quarters.unique()) > 2
    for image, k in zip(clean, quarters.tolist()):
        upright = torch.rot90(image, -k, (1, 2))[0]
        assert (upright.diff(dim=0) > 0).all() and torch.allclose(upright[:, :1, :1], upright)


@pytest.mark.parametrize(("task", "modality"), [("segmentation", "mri"), ("segmentation", "ct")])
def test_crops_of_image_and_mask_stay_together(task, modality) -> None:
    module = script("models-genesis", modality, task, "3d")
    chosen = settings(module, flip_axes=(0, 1, 2), rotate_degrees=20.0)
    torch.manual_seed(0)
    mask = torch.zeros(8, 1, 32, 32, 32)
    mask[..., 8:20, 10:18, 6:26] = 1
    affine = module.random_affine(mask, 0.6, chosen)
    moved = module.sample(mask, affine, 32, mode="nearest")
    image = module.sample(mask, affine, 32)
    assert ((image > 0.5).float() - moved).abs().mean() < 0.02
    assert not torch.equal(moved, mask) and moved.mean() > 0


def test_without_randomness_a_crop_is_the_image_itself() -> None:
    module = script("models-genesis", "mri", "segmentation", "2d")
    chosen = settings(module, min_scale=1.0, rotate_degrees=0.0, flip_axes=())
    image = torch.rand(2, 1, chosen.size, chosen.size)
    assert torch.allclose(module.crop(image, chosen), image, atol=1e-6)
    flipped = settings(module, min_scale=1.0, rotate_degrees=0.0, flip_axes=(1,))
    torch.manual_seed(0)
    out = module.crop(image.repeat(8, 1, 1, 1), flipped)
    kinds = [torch.allclose(o, i, atol=1e-5) for o, i in zip(out, image.repeat(8, 1, 1, 1))]
    mirrored = [
        torch.allclose(o, i.flip(-1), atol=1e-5) for o, i in zip(out, image.repeat(8, 1, 1, 1))
    ]
    assert any(kinds) and any(mirrored) and all(a or b for a, b in zip(kinds, mirrored))


def test_auroc_of_counts_is_auroc_of_the_drawn_sample() -> None:
    module = script("simclr", "xray", "classification", "2d", backbone="cnn")
    chosen, rng = settings(module, classes=2), np.random.default_rng(0)
    truth = rng.integers(0, 2, 30)
    score = np.round(rng.random(30) + 0.3 * truth, 1)  # with ties
    assert len(set(score[truth == 1]) & set(score[truth == 0])) > 3
    cases = [module.Case(Path(), str(t), str(n), "test", Path()) for n, t in enumerate(truth)]
    counts = rng.multinomial(30, np.full(30, 1 / 30), 3)
    got = module.Score(np.stack([1 - score, score], 1), cases, chosen)(counts)
    for value, count in zip(got, counts):
        drawn = np.repeat(np.arange(30), count)
        pairs = [
            (score[i] > score[j]) + (score[i] == score[j]) / 2
            for i in drawn
            for j in drawn
            if truth[i] and not truth[j]
        ]
        assert value == pytest.approx(np.mean(pairs))


def test_auroc_needs_no_room_for_all_pairs() -> None:
    module = script("simclr", "xray", "classification", "2d", backbone="cnn")
    truth, size = np.arange(4000) % 2, 4000
    cases = [module.Case(Path(), str(t), str(n), "test", Path()) for n, t in enumerate(truth)]
    score = np.random.default_rng(0).random(size) + truth  # all positive cases above all others
    tracemalloc.start()
    found = module.Score(np.stack([-score, score], 1), cases, settings(module, classes=2))
    assert found(np.ones((2, size))) == pytest.approx([1, 1])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4_000_000, "bytes; all pairs are as many"


def test_intervals_know_of_patients_and_of_seeds() -> None:
    module = script("models-genesis", "mri", "segmentation", "2d")
    chosen = settings(module, bootstrap_samples=2000)
    cases = [module.Case(Path(), "m", str(n % 5), "test", Path()) for n in range(20)]
    counts = module.drawn(cases, chosen)
    assert counts.shape == (2001, 20) and (counts[0] == 1).all()
    for row in counts[1:10]:  # a patient's cases are drawn together, as often as the patient
        assert row.sum() == 20 and all((row[n::5] == row[n]).all() for n in range(5))
    apart = np.stack(
        [np.zeros(2001), np.ones(2001)]
    )  # two seeds that disagree, patients that do not
    found = module.interval(module.over_seeds(apart, chosen))
    assert found == {"value": 0.5, "low": 0.0, "high": 1.0}
    alike = module.interval(module.over_seeds(np.ones((2, 2001)), chosen))
    assert alike == {"value": 1.0, "low": 1.0, "high": 1.0}


def weights(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)["network"]


def command(file: Path, module, stage: str, manifest: Path, out: Path, **changed) -> list[str]:
    shared = ["--data", str(manifest), "--out", str(out), *options(module, **changed)]
    return [sys.executable, str(file), stage, *shared]


def test_killed_and_resumed_is_the_same_as_never_killed(tmp_path, monkeypatch) -> None:
    problem = ("models-genesis", "mri", "segmentation", "2d")
    module, file = script(*problem), tmp_path / "train.py"
    monkeypatch.setattr(module, "precision", UNPATCHED[module.__name__])  # as the killed one
    file.write_text(text(*problem))
    manifest = pictures(tmp_path / "data", target="mask")
    more = {"epochs": 20, "checkpoint_every": 7}
    run(module, "pretrain", manifest, tmp_path / "whole", **more)
    started = command(file, module, "pretrain", manifest, tmp_path / "killed", **more)
    process = subprocess.Popen(started, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed" / "pretrain.pt"
    while not checkpoint.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    total = torch.load(tmp_path / "whole" / "pretrain.pt", weights_only=True)["step"]
    assert 0 < torch.load(checkpoint, weights_only=True)["step"] < total
    run(module, "pretrain", manifest, tmp_path / "killed", **more)
    whole, killed = weights(tmp_path / "whole" / "pretrain.pt"), weights(checkpoint)
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    histories = [
        [line.split(",")[:5] for line in (tmp_path / out / "pretrain.csv").read_text().splitlines()]
        for out in ("whole", "killed")
    ]
    assert histories[0] == histories[1]


def test_a_polite_stop_saves_and_says_so(tmp_path, capsys) -> None:
    module = script("models-genesis", "mri", "segmentation", "2d")
    manifest, watch = pictures(tmp_path, target="mask"), module.Watch.__call__
    module.Watch.__call__ = lambda *a: (watch(*a), os.kill(os.getpid(), signal.SIGTERM))[0]
    try:
        with pytest.raises(SystemExit) as stopped:
            run(module, "pretrain", manifest, tmp_path / "out", epochs=5)
    finally:
        module.Watch.__call__ = watch
    assert stopped.value.code == 143
    assert "the same command continues here" in capsys.readouterr().err
    assert torch.load(tmp_path / "out" / "pretrain.pt", weights_only=True)["step"] == 1


def test_two_processes_told_to_stop_save_once_and_go_on(tmp_path) -> None:
    """As a cluster does it: every process by itself, and a signal to each."""
    problem = ("moco-v2", "xray", "classification", "2d", "cnn")  # with a queue to be kept
    module, file = script(*problem), tmp_path / "train.py"
    file.write_text(text(*problem))
    manifest, out = pictures(tmp_path / "data"), tmp_path / "out"
    more = {"epochs": 400, "checkpoint_every": 10_000}

    def started(folder: Path, **changed) -> list[subprocess.Popen]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        called = command(file, module, "pretrain", manifest, folder, **{**more, **changed})
        environments = ({**os.environ, **shared, "RANK": str(r), "LOCAL_RANK": "0"} for r in (0, 1))
        return [
            subprocess.Popen(called, env=environment, stderr=subprocess.PIPE, text=True)
            for environment in environments
        ]

    processes = started(out)
    history = out / "pretrain.csv"
    while not history.exists() or history.read_text().count("\n") < 3:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], errors
    assert sum("the same command continues here" in error for error in errors) == 1
    step = torch.load(out / "pretrain.pt", weights_only=True)["step"]
    total = 400 * 3  # of 12 training images in batches of 4
    assert 1 < step < total
    shorter = -(-step // 3) + 1  # epochs; the recipe counts them, so the checkpoint is told of it
    state = torch.load(out / "pretrain.pt", weights_only=True)
    assert state["recipe"]["epochs"] == 400
    state["recipe"]["epochs"] = shorter
    torch.save(state, out / "pretrain.pt")
    for process in started(out, epochs=shorter):
        assert process.communicate() and process.returncode == 0
    done = torch.load(out / "pretrain.pt", weights_only=True)
    assert done["step"] == shorter * 3 and done["network"]["queue"].isfinite().all()


def test_finished_runs_are_not_trained_again(tmp_path) -> None:
    module = script("models-genesis", "mri", "segmentation", "2d")
    manifest = pictures(tmp_path, target="mask")
    run(module, "all", manifest, tmp_path / "out")
    files = sorted((tmp_path / "out").rglob("*.pt"))
    before = [f.stat().st_mtime_ns for f in files if f.name != "encoder.pt"]
    run(module, "all", manifest, tmp_path / "out")
    assert [f.stat().st_mtime_ns for f in files if f.name != "encoder.pt"] == before


@pytest.mark.parametrize("damage", ["nan", "collapse"])
def test_a_run_gone_wrong_stops_with_one_line(damage, tmp_path, capsys) -> None:
    module = script("byol", "xray", "classification", "2d", backbone="cnn")
    manifest, forward = pictures(tmp_path), module.Method.forward

    def damaged(self, images):
        loss, features = forward(self, images)
        return (loss * float("nan"), features) if damage == "nan" else (loss, features * 0 + 1)

    module.Method.forward = damaged
    try:
        with pytest.raises(SystemExit) as stopped:
            run(module, "pretrain", manifest, tmp_path / "out", epochs=10)
    finally:
        module.Method.forward = forward
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stopped.value.code == 2
    said = {
        "nan": "the loss is not finite at step 1",
        "collapse": "all features are alike at step 5",
    }
    assert error.startswith("error: pretrain: ") and said[damage] in error
    assert not (tmp_path / "out" / "encoder.pt").exists()


def test_other_settings_do_not_continue_an_old_run(tmp_path, capsys) -> None:
    module = script("models-genesis", "mri", "segmentation", "2d")
    manifest = pictures(tmp_path, target="mask")
    run(module, "pretrain", manifest, tmp_path / "out")
    with pytest.raises(SystemExit):
        run(module, "pretrain", manifest, tmp_path / "out", paint_rate=0.1)
    assert "was made with paint_rate 0.9, now it is 0.1" in capsys.readouterr().err


def test_weights_that_do_not_fit_are_refused(tmp_path, capsys) -> None:
    module = script("models-genesis", "mri", "segmentation", "2d")
    manifest = pictures(tmp_path, target="mask")
    run(module, "pretrain", manifest, tmp_path / "out")
    with pytest.raises(SystemExit):
        run(module, "finetune", manifest, tmp_path / "out", network_width=16)
    assert "does not fit this network" in capsys.readouterr().err


WORKER = Path(__file__).parent / "several_processes.py"


JOINT = ("simclr", "moco-v2", "swav", "barlow-twins", "vicreg", "dino")  # each in its own way


@pytest.mark.parametrize(
    ("world", "cases"),
    [(2, DIFFERENT), (3, [c for c in DIFFERENT if c[0] in JOINT and c[2] == "2d"])],
    ids=["two", "three"],
)
def test_gradients_of_several_processes_are_those_of_one(world, cases) -> None:
    """In double precision, through autograd-aware gathering and synchronised batch norm."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    named = ["-".join(case) for case in cases]
    done = subprocess.run(
        [*torchrun, f"--nproc-per-node={world}", str(WORKER)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "THP_MEM_ALLOC_ENABLE": "1",
            "CASES": ",".join(named),
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    errors = json.loads(done.stdout.strip().splitlines()[-1])
    assert set(errors) == set(named)
    assert max(errors.values()) < 1e-10, errors


def test_two_processes_run_the_whole_path(tmp_path) -> None:
    problem = ("simclr", "xray", "classification", "2d", "cnn")
    module, file = script(*problem), tmp_path / "train.py"
    file.write_text(text(*problem))
    manifest = pictures(tmp_path / "data")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    started = [*torchrun, *command(file, module, "all", manifest, tmp_path / "out")[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(started, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("labelled cases, pre-training") == 1  # only one process speaks
    assert (tmp_path / "out" / "metrics.json").exists()
