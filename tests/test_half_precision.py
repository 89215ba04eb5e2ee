"""In bfloat16, as GPUs and newer CPUs train, losses are those in float32 but for rounding."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path

import pytest
import torch
from emitted import UNPATCHED, pictures, run, script, volumes
from test_script_learning import DIFFERENT, TARGETS, module_for, smallest, structured


@pytest.mark.parametrize("case", DIFFERENT, ids="-".join)
def test_losses_and_gradients_in_half_precision_are_those_in_full(case, monkeypatch) -> None:
    module = module_for(*case)
    convolved = hasattr(module, "SegResNet") and module.DIMS == 3
    chosen = smallest(module, **({"size": 16} if convolved else {}))
    torch.manual_seed(0)
    network = module.ready(module.Method(chosen), torch.device("cpu"))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    count = len(inspect.signature(network.forward).parameters)
    several = 4 if module.DIMS == 3 else 8  # of fewer, batch norm makes much of a rounding
    images = [structured(module, chosen, several) for _ in range(count)]
    found = []
    for half in (False, True):
        monkeypatch.setattr(
            module, "precision", lambda _, half=half: torch.autocast("cpu", torch.bfloat16, half)
        )
        network.load_state_dict(state)
        network.zero_grad()
        torch.manual_seed(1)
        loss, features = module.backward(network, images, chosen)
        assert loss.dtype == torch.float32 and features.isfinite().all()
        gradient = [p.grad.flatten() for p in network.parameters() if p.requires_grad]
        found.append((loss.item(), torch.cat(gradient)))
    (full, exact), (half, rounded) = found
    assert half == pytest.approx(full, rel=0.25)
    cosine = torch.cosine_similarity(exact, rounded, dim=0).item()
    assert cosine > 0.3, cosine  # random directions in so many dimensions have about 0


@pytest.mark.parametrize("method", ["scratch", "simclr"])
def test_gradients_of_small_maps_come_from_no_stray_memory(method, monkeypatch) -> None:
    """The lowest maps of a ResNet at 64 voxels have 2, which oneDNN gets wrong in bfloat16."""
    module = script(method, "mri", "classification", "3d")
    chosen, cpu = module.Settings(size=64), torch.device("cpu")
    torch.manual_seed(0)
    encoder = module.ready(module.Encoder(chosen), cpu)
    last = encoder.net.layer4
    maps = torch.randn(2, 256, 4, 4, 4)
    found = []
    for half in (False, True):
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, half):
            loss = last(maps).float().square().mean()
        stray = [torch.full((size,), 3e38) for size in (2**14, 2**18, 2**22, 2**24)]
        del stray  # what is asked for next holds this
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in last.parameters()]))
    assert found[1].isfinite().all()
    assert torch.cosine_similarity(*found, dim=0) > 0.98


@pytest.mark.parametrize("dimensionality", ["2d", "3d"])
def test_crops_are_where_they_are_in_full_precision(dimensionality: str) -> None:
    module = script("simclr", "mri", "classification", dimensionality)
    chosen = module.Settings(size=48)
    images, crops = torch.rand(4, chosen.channels, *[48] * module.DIMS), []
    for half in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, half):
            crops.append(module.crop(images, chosen))
    assert torch.equal(*crops)


@pytest.mark.parametrize("dimensionality", ["2d", "3d"])
@pytest.mark.parametrize("task", TARGETS)
def test_every_task_is_trained_in_half_precision(
    task: str, dimensionality: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("scratch", "mri", task, dimensionality)
    half = torch.autocast("cpu", torch.bfloat16)
    monkeypatch.setattr(module, "precision", lambda _: half)
    write = pictures if dimensionality == "2d" else volumes
    run(module, "all", write(tmp_path, target=TARGETS[task]), tmp_path / "out")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert math.isfinite(metrics["results"][0]["scratch"]["value"])


@pytest.mark.parametrize("known", [{}, {"avx2": True}, {"avx512_bf16": True}, {"amx_bf16": True}])
def test_half_precision_is_for_processors_that_know_it(known, monkeypatch) -> None:
    module = script("simclr", "xray", "classification", "2d")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    able = any("bf16" in name for name in known)
    with UNPATCHED[module.__name__](torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert (product.dtype == torch.bfloat16) == able
