"""Contrastive methods against their equations, written out as loops, and their promises."""

from __future__ import annotations

import inspect
import itertools
import math
from types import ModuleType

import numpy as np
import pytest
import torch
from emitted import pictures, run, script, settings
from torch import nn

METHODS = ("simclr", "moco-v2", "moco-v3", "swav", "micle", "dense-contrast", "voco")


def emitted(method: str, backbone: str = "cnn") -> ModuleType:
    """Its script for segmentation, whose network is the smallest."""
    return script(method, "mri", "segmentation", "3d" if method == "voco" else "2d", backbone)


def made(module: ModuleType, **changed) -> nn.Module:
    torch.manual_seed(0)
    return module.Method(settings(module, **changed)).train()


def batch_for(module: ModuleType, network: nn.Module, count: int = 3) -> list[torch.Tensor]:
    """As many random inputs as it takes."""
    shape = (count, 1, *[module.region(network.settings)] * module.DIMS)
    inputs = len(inspect.signature(network.forward).parameters)
    return [torch.rand(shape, generator=torch.Generator().manual_seed(n)) for n in range(inputs)]


def seeded(function, *inputs):
    torch.manual_seed(7)
    return function(*inputs)


def normalised(*shape: int) -> torch.Tensor:
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return nn.functional.normalize(rows.double(), dim=-1)


def info_nce(query, key, others, temperature: float) -> float:
    """-log( exp(q k+ / t) / (exp(q k+ / t) + sum exp(q k- / t)) ) of one query."""
    own = math.exp(float(query @ key) / temperature)
    rest = sum(math.exp(float(query @ other) / temperature) for other in others)
    return -math.log(own / (own + rest))


@pytest.mark.parametrize("method", METHODS)
def test_pictures_show_what_the_network_is_given_and_change_nothing(method) -> None:
    module = emitted(method)
    network = made(module)
    batch = batch_for(module, network)
    before = {n: v.clone() for n, v in network.state_dict().items()}
    shown = network.pictures(*batch)
    assert all(torch.equal(before[n], v) for n, v in network.state_dict().items())
    assert len(shown) == 2
    for picture in shown.values():
        assert picture.shape == (3, 1, *[network.settings.size] * module.DIMS)
        assert not picture.requires_grad
    first, second = shown.values()
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("method", "changed"),
    [
        ("simclr", {"temperature": 0.2}),
        ("micle", {"temperature": 0.2}),
        ("moco-v2", {"temperature": 0.5}),
        ("moco-v2", {"queue_size": 16}),
        ("moco-v3", {"temperature": 0.5}),
        ("swav", {"temperature": 0.3}),
        ("swav", {"epsilon": 0.5}),
        ("swav", {"sinkhorn_iterations": 9}),
        ("swav", {"queue_size": 0}),
        ("swav", {"prototypes": 5}),
        ("dense-contrast", {"dense_share": 0.1}),
        ("dense-contrast", {"temperature": 0.5}),
        ("voco", {"base_crops": 3}),
        ("voco", {"random_crops": 3}),
    ],
    ids=str,
)
def test_every_option_matters(method, changed) -> None:
    module = emitted(method)
    losses = []
    for options in ({}, changed):
        network = made(module, **options)
        losses.append(seeded(network, *batch_for(module, network))[0].item())
    assert math.isfinite(losses[1]) and losses[0] != losses[1]


@pytest.mark.parametrize("method", ["simclr", "micle", "swin-unetr"])
def test_nt_xent_is_equation_1(method) -> None:
    module = script(method, "mri", "segmentation", "3d" if method == "swin-unetr" else "2d")
    z, total = normalised(8, 5), 0.0
    for i in range(8):
        others = [z[k] for k in range(8) if k not in (i, (i + 4) % 8)]
        total += info_nce(z[i], z[(i + 4) % 8], others, 0.3)
    assert module.nt_xent(z, 0.3).item() == pytest.approx(total / 8)


# MoCo v2
def test_info_nce_is_equation_1() -> None:
    module = emitted("moco-v2")
    queries, keys, queue = normalised(3, 5), normalised(3, 6)[:, :5], normalised(7, 5)
    each = [info_nce(q, k, queue, 0.2) for q, k in zip(queries, keys)]
    found = module.info_nce(queries, keys, queue, 0.2)
    assert found.item() == pytest.approx(np.mean(each))
    axes = torch.eye(4, dtype=torch.double)
    hit = module.info_nce(axes[:1], axes[:1], axes[1:], 1.0)  # similar to its key, to no other
    assert hit.item() == pytest.approx(math.log(1 + 3 / math.e))


def test_the_queue_holds_the_latest_keys_in_order() -> None:
    module = emitted("moco-v2")
    network = made(module, queue_size=8)
    batch = batch_for(module, network)
    start, seen = network.queue, []
    for step in range(3):
        torch.manual_seed(step)
        _, second = network.views(*batch)
        encoder, head = network.target.networks
        seen.insert(0, nn.functional.normalize(head(encoder.embed(second)), dim=1))
        torch.manual_seed(step)
        network(*batch)
        expected = torch.cat([*seen, start])[:8]
        assert torch.allclose(network.queue, expected, atol=1e-6)
    assert not network.queue.requires_grad


def test_moco_contrasts_a_view_with_the_copy_of_the_other() -> None:
    module = emitted("moco-v2")
    network = made(module)
    batch, queue = batch_for(module, network), network.queue
    for weight in network.target.parameters():
        weight.add_(0.01)
    loss, features = seeded(network, *batch)
    first, second = seeded(network.views, *batch)
    encoder, head = network.target.networks
    with torch.no_grad():
        q = nn.functional.normalize(network.head(network.encoder.embed(first)), dim=1)
        k = nn.functional.normalize(head(encoder.embed(second)), dim=1)
    each = [info_nce(a, b, queue, network.settings.temperature) for a, b in zip(q, k)]
    assert loss.item() == pytest.approx(np.mean(each), rel=1e-4)
    assert torch.allclose(features, q, atol=1e-6) and not features.requires_grad
    loss.backward()
    assert all(weight.grad is None for weight in network.target.parameters())


def test_a_slow_copy_follows_with_its_statistics_and_sees_no_batch() -> None:
    module = emitted("moco-v2")
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    slow = module.SlowCopy(online).train()
    with torch.no_grad():
        online[0].weight.add_(1)
        online[1].running_mean.add_(10)
    before = {n: v.clone() for n, v in slow.networks[0].state_dict().items()}
    with torch.no_grad():
        slow.follow(online, momentum=0.75)
    for name, value in slow.networks[0].state_dict().items():
        if value.is_floating_point():
            expected = 0.75 * before[name] + 0.25 * online.state_dict()[name]
            assert torch.allclose(value, expected), name
    assert slow.networks[0][1].running_mean.mean() == pytest.approx(2.5)
    x = torch.rand(5, 3)
    alone, together = slow.networks[0](x[:1]), slow.networks[0](x)[:1]
    assert torch.allclose(alone, together, atol=1e-6)  # batch statistics would differ
    assert not any(weight.requires_grad for weight in slow.parameters())


# MoCo v3
def test_moco_v3_finds_the_key_of_the_other_view_both_ways_round() -> None:
    module = emitted("moco-v3")
    network = made(module)
    batch, t = batch_for(module, network), network.settings.temperature
    q, k = normalised(4, 5), normalised(4, 6)[:, :5]
    each = [info_nce(q[i], k[i], [k[j] for j in range(4) if j != i], t) for i in range(4)]
    assert network.contrast(q, k).item() == pytest.approx(2 * t * np.mean(each))
    pairs = []
    network.contrast = lambda queries, keys: pairs.append((queries, keys)) or queries.sum()
    seeded(network, *batch)
    views = seeded(network.views, *batch)
    with torch.no_grad():
        online = [network.predictor(network.projector(network.encoder.embed(v))) for v in views]
        encoder, projector = network.target
        slow = [projector(encoder.embed(v)) for v in views]
    expected = [(online[0], slow[1]), (online[1], slow[0])]
    for found, (query, key) in zip(pairs, expected):
        assert torch.allclose(found[0], nn.functional.normalize(query, dim=1), atol=1e-5)
        assert torch.allclose(found[1], nn.functional.normalize(key, dim=1), atol=1e-5)
        assert found[0].requires_grad and not found[1].requires_grad


def test_moco_v3_leaves_the_patches_of_a_vit_alone_until_finetuning() -> None:
    module = emitted("moco-v3", "vit")
    network = made(module)
    fixed = {n for n, w in network.encoder.named_parameters() if not w.requires_grad}
    patches = "net.patch_embedding.patch_embeddings"
    assert fixed == {f"{patches}.weight", f"{patches}.bias"}
    network(*batch_for(module, network))[0].backward()
    for name, weight in network.encoder.named_parameters():
        assert (weight.grad is None) == (name in fixed), name
    model = module.Model(network.settings)
    assert all(weight.requires_grad for weight in model.parameters())


def test_moco_v3_follows_ever_more_slowly() -> None:
    module = emitted("moco-v3")
    network = made(module, ema_start=0.9)
    online, slow = next(network.encoder.parameters()), next(network.target.parameters())
    with torch.no_grad():
        online.add_(1)
    for progress, share in ((0.0, 0.1), (0.5, 0.05), (1.0, 0.0)):
        before = slow.clone()
        network.after_step(progress)
        assert torch.allclose(slow - before, share * (online - before), atol=1e-6)


# SwAV
def test_codes_are_those_of_sinkhorn_and_knopp() -> None:
    module = emitted("swav")
    network = made(module, prototypes=3, sinkhorn_iterations=3, epsilon=0.1).double()
    rows = normalised(6, network.settings.projection_dim)
    shares = np.exp((rows @ network.prototypes.T).detach().numpy() / 0.1)
    shares /= shares.sum()
    for _ in range(3):  # each prototype weighs 1 / K, then each row 1 / N
        for k in range(3):
            shares[:, k] /= shares[:, k].sum() * 3
        for n in range(6):
            shares[n] /= shares[n].sum() * 6
    with torch.no_grad():
        codes = network.codes(rows)
    assert np.allclose(codes, shares * 6)
    assert np.allclose(codes.sum(1), 1)
    network = made(module, prototypes=3, sinkhorn_iterations=200, epsilon=0.1).double()
    with torch.no_grad():
        assert np.allclose(network.codes(rows).sum(0), 2)  # six rows, shared evenly by three


def test_each_view_predicts_the_codes_of_the_other() -> None:
    module = emitted("swav")
    network = made(module)
    batch, queues = batch_for(module, network), network.queues.clone()
    t, prototypes = network.settings.temperature, network.prototypes.detach()
    loss, z = seeded(network, *batch)
    views = z.chunk(2)
    with torch.no_grad():
        codes = [network.codes(torch.cat([v, q]))[:3] for v, q in zip(views, queues)]
    total = 0.0
    for view, code in zip(views, reversed(codes)):
        for row, target in zip(view, code):
            logits = [float(row @ c) / t for c in prototypes]
            log_sum = math.log(sum(map(math.exp, logits)))
            total -= sum(float(q) * (x - log_sum) for q, x in zip(target, logits)) / 3
    assert loss.item() == pytest.approx(total, rel=1e-4)
    for queue, view, old in zip(network.queues, views, queues):
        assert torch.equal(queue, torch.cat([view, old])[: len(old)])


def test_prototypes_are_directions_that_stand_still_at_first() -> None:
    network = made(emitted("swav"), frozen_share=0.1)
    start = network.prototypes.detach().clone()
    for progress, moved in ((0.1, False), (0.2, True)):
        with torch.no_grad():
            network.prototypes.add_(0.5)
        network.after_step(progress)
        assert torch.allclose(network.prototypes.norm(dim=1), torch.ones(len(start)))
        assert torch.allclose(network.prototypes, start, atol=1e-6) is not moved


def test_moco_v3_ends_its_heads_without_learned_scales() -> None:
    network = made(emitted("moco-v3"))
    for head in (network.projector, network.predictor):
        assert isinstance(head[-1], nn.modules.batchnorm._BatchNorm)
        assert not any(weight.requires_grad for weight in head[-1].parameters())


# DenseCL
def test_dense_contrast_is_equations_1_to_4() -> None:
    module = emitted("dense-contrast")
    network = made(module, dense_share=0.3)
    batch, queues = batch_for(module, network), network.queues.clone()
    for weight in network.target.parameters():
        weight.mul_(1.05)
    t, mean = network.settings.temperature, lambda values: sum(values) / len(values)
    loss, _ = seeded(network, *batch)
    first, second = seeded(network.views, *batch)
    with torch.no_grad():
        online = network.described(first, network.encoder, network.whole, network.dense)
        slow = network.described(second, *network.target.networks)
    assert online[0].shape[1] == 16  # places of a map of 4 x 4
    whole = mean([info_nce(q, k, queues[0], t) for q, k in zip(online[1], slow[1])])
    places = []
    for f, r, other, keys in zip(online[0], online[2], slow[0], slow[2]):
        for s in range(16):
            similar = [float(f[s] @ g) for g in other]
            places.append(info_nce(r[s], keys[similar.index(max(similar))], queues[1], t))
    assert loss.item() == pytest.approx(0.7 * whole + 0.3 * mean(places), rel=1e-4)
    encoder, _, dense = network.target.networks
    pooled = dense(encoder(second)[-1].flatten(2).mT).mean(1)  # of length 1 only after the mean
    pooled = nn.functional.normalize(pooled, dim=1)
    for queue, keys, old in zip(network.queues, (slow[1], pooled), queues):
        assert torch.allclose(queue, torch.cat([keys, old])[: len(old)], atol=1e-5)


def test_a_place_corresponds_to_itself_where_both_views_are_one(monkeypatch) -> None:
    module = emitted("dense-contrast")
    network = made(module)
    monkeypatch.setattr(module, "crop", lambda images, settings: images)
    monkeypatch.setattr(module, "distort", lambda images, settings: images)
    chosen = []
    monkeypatch.setattr(
        module, "info_nce", lambda q, k, queue, t: chosen.append((q, k)) or (q * k).sum(1).mean()
    )
    network(*batch_for(module, network))
    for queries, keys in chosen:  # the copy still equals the network
        assert torch.allclose(queries, keys, atol=1e-6)


# VoCo
def undistorted(module: ModuleType, monkeypatch) -> None:
    monkeypatch.setattr(module, "distort", lambda images, settings: images)


def test_base_crops_tile_the_region(monkeypatch) -> None:
    module = emitted("voco")
    undistorted(module, monkeypatch)
    network = made(module, base_crops=2)
    (volumes,) = batch_for(module, network, 2)
    side = network.settings.size
    assert volumes.shape[-1] == 2 * side
    crops, _ = network.crops(volumes)
    for crop, corner in zip(crops, itertools.product((0, side), repeat=3)):
        box = [slice(start, start + side) for start in corner]
        assert torch.allclose(crop, volumes[(..., *box)], atol=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_overlaps_are_shares_of_the_random_crop(count, monkeypatch) -> None:
    """Counted voxel by voxel, in a region whose voxels hold the number of their base crop."""
    module = emitted("voco")
    undistorted(module, monkeypatch)
    side = 16
    network = made(module, base_crops=count, random_crops=2, size=side, read_scale=float(count))
    places = torch.arange(count**3, dtype=torch.float).view(1, 1, *[count] * 3)
    volumes = places.repeat_interleave(side, 2).repeat_interleave(side, 3)
    volumes = volumes.repeat_interleave(side, 4).repeat(4, 1, 1, 1, 1)
    monkeypatch.setattr(module, "sample", nearest(module.sample))
    crops, overlaps = network.crops(volumes)
    assert overlaps.shape == (4, 2, count**3)
    assert torch.allclose(overlaps.sum(2), torch.ones(4, 2), atol=1e-5)
    for drawn, crop in enumerate(crops[-2:]):
        for n in range(4):
            counted = torch.stack([(crop[n] == k).float().mean() for k in range(count**3)])
            assert (counted - overlaps[n, drawn]).abs().max() < 3 / side


def nearest(sample):
    return lambda images, affine, size: sample(images, affine, size, mode="nearest")


def test_voco_is_equations_1_3_5_and_7() -> None:
    module = emitted("voco")
    network = made(module, random_crops=2)
    (volumes,) = batch_for(module, network, 2)
    for weight in network.target.parameters():
        weight.mul_(1.05)
    loss, features = seeded(network, volumes)
    crops, overlaps = seeded(network.crops, volumes)
    with torch.no_grad():
        student = network.described(crops, network.encoder, network.head)
        teacher = network.described(crops, *network.target)
    wrong, alike = [], []
    for s, t, overlap in zip(student, teacher, overlaps):
        for drawn, place in itertools.product(range(2), range(8)):
            both = max(float(s[8 + drawn] @ t[place]), 0) + max(float(t[8 + drawn] @ s[place]), 0)
            wrong.append(-math.log(1 - abs(float(overlap[drawn, place]) - both / 2) + 1e-6))
        alike += [max(float(s[i] @ s[j]), 0) for i in range(8) for j in range(i)]
    assert loss.item() == pytest.approx(np.mean(wrong) + np.mean(alike), rel=1e-4)
    assert torch.allclose(features, student[:, 8:].flatten(0, 1), atol=1e-5)
    loss.backward()
    assert all(weight.grad is None for weight in network.target.parameters())


def test_a_larger_region_is_read_for_base_crops_alone() -> None:
    voco, other = emitted("voco"), script("simclr", "mri", "segmentation", "3d", "cnn")
    assert voco.region(voco.Settings()) == 2 * voco.Settings().size == 128
    assert other.region(other.Settings()) == 80
    whole = script("voco", "mri", "classification", "3d", "cnn")
    assert whole.region(whole.Settings()) == whole.Settings().size
    assert "read_scale" in voco.READING  # pads anew


# MICLe
def cases_of(module: ModuleType, folder, each: int) -> tuple[list, object]:
    manifest = pictures(folder, each=each)
    chosen = settings(module)
    cases = module.prepare(module.read_manifest(manifest, chosen), chosen, folder / "out")
    return cases, chosen


def test_pairs_are_two_images_of_one_patient(tmp_path, capsys) -> None:
    module = script("micle", "xray", "classification", "2d", "cnn")
    cases, chosen = cases_of(module, tmp_path, 3)
    capsys.readouterr()
    pairs, owner = module.pool(cases, chosen), {}
    assert "5 of 6 patients have several images" in capsys.readouterr().err
    for case in cases:
        owner[module.unpacked(np.load(case.array)).numpy().tobytes()] = case
    assert len(pairs.cases) == 6  # of 16 images; the last patient has only one
    met = set()
    for patient, seed in itertools.product(range(6), range(30)):
        first, second = (owner[x.numpy().tobytes()] for x in pairs[patient, seed])
        assert first.patient == second.patient
        assert (first == second) == (patient == 5)
        met.add(first.path)
        assert all(torch.equal(a, b) for a, b in zip(pairs[patient, seed], pairs[patient, seed]))
    assert len(met) == 16


def test_other_methods_draw_every_image_by_itself(tmp_path) -> None:
    module = script("simclr", "xray", "classification", "2d", "cnn")
    cases, chosen = cases_of(module, tmp_path, 3)
    drawn = module.pool(cases, chosen)
    assert len(drawn.cases) == 16 and len(drawn[0, 0]) == 1
    assert not hasattr(module, "Pairs")


def test_micle_pulls_the_images_of_a_patient_together(tmp_path) -> None:
    module = script("micle", "xray", "classification", "2d", "cnn")
    manifest, out = pictures(tmp_path, each=2), tmp_path / "out"
    run(module, "pretrain", manifest, out, epochs=2)
    history = np.genfromtxt(out / "pretrain.csv", delimiter=",", names=True)
    assert len(history) == 2  # of 8 patients 2 are held out; one batch of 4 in each epoch
    assert np.isfinite(history["loss"]).all() and (out / "encoder.pt").exists()


def test_micle_gives_each_view_its_own_image(monkeypatch) -> None:
    module = emitted("micle")
    network = made(module)
    first, second = batch_for(module, network)
    seen = []
    monkeypatch.setattr(module, "distort", lambda images, settings: seen.append(images) or images)
    monkeypatch.setattr(module, "crop", lambda images, settings: images)
    network(first, second)
    assert torch.equal(seen[0], first) and torch.equal(seen[1], second)
