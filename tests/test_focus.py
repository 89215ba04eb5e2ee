"""Pre-training that looks at what stands out: regions around tissue, masks on contrast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from emitted import run, script, settings, volumes

from advisor import recommend
from advisor.parts import part
from advisor.plan import PlanError, make_plan

PAIRS = {"data/pool": "data/pool_focused", "methods/hiding_order": "methods/hiding_order_focused"}


def planned(method: str, modality: str, task: str, dimensionality: str, scale, **overrides: str):
    profile = {"modality": modality, "task": task, "dimensionality": dimensionality}
    answer = recommend({**profile, "target_scale": scale, "backbone": None}, engine="reference")
    plan = make_plan(answer, method, overrides)
    return set(plan.parts), {s.name: s for s in plan.settings}


def test_focal_targets_get_the_parts_and_others_do_not() -> None:
    problem = ("mae", "ct", "segmentation", "3d")
    chosen, values = planned(*problem, "focal")
    assert set(PAIRS.values()) <= chosen and not set(PAIRS) & chosen
    assert values["foreground_share"].value == 0.8 and values["mask_focus"].value == 0.5
    assert "focal-masks-on-contrast" in values["mask_focus"].source
    for scale in ("global", "regional", None):
        chosen, values = planned(*problem, scale)
        assert set(PAIRS) <= chosen and not set(PAIRS.values()) & chosen
        assert not {"foreground_share", "mask_focus"} & values.keys()


def test_the_user_switches_it_on_and_off() -> None:
    problem = ("mae", "ct", "segmentation", "3d")
    off = {"foreground_share": "0", "mask_focus": "0"}
    assert planned(*problem, "focal", **off)[0] == planned(*problem, None)[0]
    on = {"foreground_share": "0.3", "mask_focus": "0.9"}
    chosen, values = planned(*problem, None, **on)
    assert set(PAIRS.values()) <= chosen and values["foreground_share"].value == 0.3
    with pytest.raises(PlanError, match="no such setting"):  # pictures are read whole
        planned("mae", "xray", "segmentation", "2d", None, foreground_share="0.5")
    with pytest.raises(PlanError, match="no such setting"):
        planned("simclr", "xray", "classification", "2d", None, mask_focus="0.5")


@pytest.mark.parametrize("plain", PAIRS)
def test_one_part_takes_the_place_of_the_other(plain: str) -> None:
    assert part(plain).defines <= part(PAIRS[plain]).defines


FOCUSED = {"foreground_share": "0.6", "mask_focus": "0.5"}


def test_the_share_of_regions_around_foreground_is_as_set(tmp_path: Path) -> None:
    module = script("mae", "ct", "segmentation", "3d", **FOCUSED)
    volume = np.zeros((1, 60, 60, 60), np.uint16)
    volume[:, 20:28, 24:36, 24:36] = 40_000
    by_chance = 8 * 12 * 12 / 21**3  # of all centres that a region of 40 voxels may have
    np.save(tmp_path / "v.npy", volume)
    case = module.Case(tmp_path, "", "p", "train", tmp_path, array=tmp_path / "v.npy")
    for share in (0.0, 0.6, 1.0):
        chosen = settings(module, foreground_share=share)
        data, side, hits = module.pool([case], chosen), module.region(chosen), []
        for seed in range(200):
            (region,) = data[0, seed]
            assert region.shape == (1, side, side, side)
            hits.append(float(region[0, side // 2, side // 2, side // 2]) > 0.5)
        expected = share + (1 - share) * by_chance
        assert side == 40 and np.mean(hits) == pytest.approx(expected, abs=0.08 * (share < 1))
        assert torch.equal(data[0, 7][0], data[0, 7][0])  # the key decides


def test_a_volume_without_foreground_gives_regions_all_the_same(tmp_path: Path) -> None:
    module = script("mae", "ct", "segmentation", "3d", **FOCUSED)
    np.save(tmp_path / "v.npy", np.full((1, 50, 50, 50), 9, np.uint16))
    case = module.Case(tmp_path, "", "p", "train", tmp_path, array=tmp_path / "v.npy")
    chosen = settings(module, foreground_share=1.0)
    assert module.pool([case], chosen)[0, 1][0].shape[1] == module.region(chosen)


def half_flat(dims: int, side: int = 32) -> torch.Tensor:
    """Flat in one half of the first axis, noisy in the other."""
    torch.manual_seed(3)
    images = torch.full((64, 1, *[side] * dims), 0.5)
    images[:, :, side // 2 :] = torch.rand(64, 1, side // 2, *[side] * (dims - 1))
    return images


@pytest.mark.parametrize("dimensionality", ["2d", "3d"])
def test_patches_with_contrast_are_hidden_more_often_and_as_many_as_before(dimensionality) -> None:
    module = script("mae", "ct", "segmentation", dimensionality, "vit", mask_focus="0.5")
    images = half_flat(module.DIMS)
    shares = []
    for focus in (0.0, 0.5, 1.0):
        chosen = settings(module, mask_focus=focus, mask_ratio=0.5)
        network = module.Method(chosen)
        visible, hidden = network.drawn(images)
        total = network.encoder.grid**module.DIMS
        assert hidden.shape == (64, total // 2, 1) == visible.shape
        both = torch.cat([visible, hidden], 1)[..., 0].sort(1)[0]
        assert torch.equal(both, torch.arange(total).expand(64, -1))
        assert not torch.equal(hidden[0], hidden[1])  # each image has a mask of its own
        shares.append(float((hidden >= total // 2).float().mean()))
    assert 0.45 < shares[0] < 0.55 and shares[0] + 0.05 < shares[1] < shares[2]
    assert shares[2] == 1  # what is flat has no weight at all


@pytest.mark.parametrize(("grid", "cells", "side"), [(8, 7, 16), (7, 3, 24)])
def test_cells_are_weighed_whole_and_cut_at_the_edge(grid, cells, side) -> None:
    module = script("simmim", "ct", "segmentation", "2d", mask_focus="1.0")
    images = torch.zeros(5, 1, 8 * grid, 8 * grid)
    images[:, :, -4:, -4:] = torch.rand(4, 4)  # in the last cell alone
    found = module.contrast(images, side)
    expected = [images[0, 0, i : i + side, j : j + side].std(correction=0)
                for i in range(0, 8 * grid, side) for j in range(0, 8 * grid, side)]  # fmt: skip
    assert torch.allclose(found[0], torch.stack(expected), atol=1e-5)
    mask = module.random_mask(images, grid, cells, 0.01, settings(module, mask_focus=1.0))
    assert mask[:, 0, -1, -1].all() and not mask[:, 0, 0, 0].any()


def test_images_without_contrast_are_masked_at_random() -> None:
    module = script("mae", "ct", "segmentation", "2d", mask_focus="1.0")
    network = module.Method(settings(module, mask_focus=1.0))
    _, hidden = network.drawn(torch.zeros(400, 1, 32, 32))
    counts = hidden.flatten().bincount(minlength=16)
    assert counts.min() > 0.8 * counts.float().mean()


def test_off_is_a_random_order_and_nothing_else() -> None:
    module = script("mae", "ct", "segmentation", "2d")
    images = half_flat(2)
    torch.manual_seed(5)
    _, hidden = module.Method(settings(module)).drawn(images)
    assert not hasattr(module, "contrast") and not hasattr(module, "Regions")
    torch.manual_seed(0)
    got = module.hiding_order(images, 4, 1, settings(module))
    torch.manual_seed(0)
    assert torch.equal(got, torch.rand(64, 16).argsort(1)) and hidden.shape[1] == 12


@pytest.mark.parametrize("method", ["mae", "simmim", "spark"])
def test_it_learns(method: str) -> None:
    module = script(method, "ct", "segmentation", "2d", mask_focus="0.5")
    chosen = settings(module)
    torch.manual_seed(0)
    network = module.Method(chosen)
    ramp = torch.linspace(0, 1, 32)
    images = torch.stack([ramp.expand(32, 32), ramp.expand(32, 32).T, ramp.outer(ramp)])[:, None]
    optimizer, losses = torch.optim.AdamW(network.parameters(), 1e-3), []
    for _ in range(15):
        torch.manual_seed(1)
        loss, _ = network(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_a_focused_script_runs_from_files(tmp_path: Path) -> None:
    run(script("mae", "ct", "segmentation", "3d", **FOCUSED), "pretrain", volumes(tmp_path),
        tmp_path / "out", size=16)  # fmt: skip
    assert (tmp_path / "out" / "encoder.pt").exists()
