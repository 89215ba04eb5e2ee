"""Methods that restore images: what they break, what they ask for, what they learn beside it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from emitted import script, settings

DIMENSIONS = pytest.mark.parametrize("dimensionality", ["2d", "3d"])


def module_of(method: str, dimensionality: str = "2d", **more):
    return script(method, "mri", "segmentation", dimensionality, **more)


def network_of(module, **changed):
    torch.manual_seed(0)
    return module.Method(settings(module, **changed)).train()


def batch(module, count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    side = module.region(settings(module))
    return torch.rand(count, 1, *[side] * module.DIMS, generator=generator)


@pytest.fixture
def still(monkeypatch):
    """Without random crops and intensities: what a method itself does is left."""

    def stilled(module):
        def crop(images, settings):
            return images[(..., *[slice(settings.size)] * module.DIMS)]

        monkeypatch.setattr(module, "crop", crop)
        if hasattr(module, "distort"):
            monkeypatch.setattr(module, "distort", lambda images, settings: images)
        return module

    return stilled


def gradient_of(loss: torch.Tensor, weights) -> torch.Tensor:
    found = torch.autograd.grad(loss, list(weights), retain_graph=True, allow_unused=True)
    return torch.cat([torch.zeros_like(w).flatten() if g is None else g.flatten()
                      for g, w in zip(found, weights)])  # fmt: skip


# Boxes, patches, textures


@DIMENSIONS
def test_boxes_have_the_sides_that_were_asked_for(dimensionality) -> None:
    module = module_of("dira", dimensionality)
    images = torch.zeros(3, 2, *[32] * module.DIMS)
    torch.manual_seed(0)
    found = module.boxes(images, 5, 0.25, 0.5)
    assert found.shape == (3, 5, *[32] * module.DIMS) and found.dtype == torch.bool
    sides = set()
    for box in found.flatten(0, 1):
        lengths = [len(axis.unique()) for axis in torch.nonzero(box).T]
        assert all(7 <= n <= 17 for n in lengths), lengths
        assert int(box.sum()) == math.prod(lengths)  # full, so a box
        sides.update(lengths)
    assert len(sides) > 4
    exact = module.boxes(images, 1, 0.25, 0.25).flatten(1).sum(1)
    assert ((exact >= 7**module.DIMS) & (exact <= 9**module.DIMS)).all()


@DIMENSIONS
@pytest.mark.parametrize(("pairs", "side"), [(1, 4), (3, 5), (10**6, 8)])
def test_swapped_patches_change_places_and_nothing_else(dimensionality, pairs, side) -> None:
    module = module_of("context-restoration", dimensionality)
    dims, size = module.DIMS, 30
    images = torch.arange(2.0 * 2 * size**dims).view(2, 2, *[size] * dims)
    torch.manual_seed(3)
    once = module.swapped(images, pairs, side)
    torch.manual_seed(3)
    assert torch.equal(module.swapped(once, pairs, side), images)  # twice is as if never
    most = (size // side - 1) ** dims // 2
    moved = (once != images).flatten(2).sum(2)
    assert (moved == 2 * min(pairs, most) * side**dims).all()
    for image, result in zip(images.flatten(0, 1), once.flatten(0, 1)):
        assert torch.equal(result.flatten().sort()[0], image.flatten())
    if pairs == 1:  # two blocks in one piece, each with the content of the other
        where = torch.nonzero((once != images)[0, 0])
        shift = (once - images)[0, 0][tuple(where.T)]
        assert set(shift.tolist()) == {shift[0].item(), -shift[0].item()}
    assert not torch.equal(once[0, 0] - images[0, 0], once[1, 0] - images[1, 0])


@DIMENSIONS
def test_genesis_breaks_what_it_says(dimensionality) -> None:
    module = module_of("models-genesis", dimensionality)
    network, size = network_of(module), settings(module).size
    torch.manual_seed(0)
    x = torch.rand(4, 1, *[size] * module.DIMS)
    shuffled = module.shuffled(x)
    assert not torch.equal(shuffled, x)
    assert torch.equal(shuffled.flatten(1).sort(1)[0], x.flatten(1).sort(1)[0])  # only places
    curved = module.curved(x).flatten(1)
    order = x.flatten(1).argsort(1)
    for steps in curved.gather(1, order).diff(dim=1):
        assert (steps >= 0).all() or (steps <= 0).all()  # monotone
    everywhere = torch.ones(4, 1, *[1] * module.DIMS, dtype=torch.bool)
    inside, outside = module.painted(x, ~everywhere) != x, module.painted(x, everywhere) != x
    assert 0.01 < inside.float().mean() < 0.45 and 0.3 < outside.float().mean() < 0.95
    noise = module.painted(0 * x - 1, everywhere)
    noise = noise[noise >= 0]  # another value at each voxel around the boxes
    assert len(noise.unique()) > 0.99 * len(noise) and abs(noise.mean() - 0.5) < 0.02
    still = (shuffled == x).float().mean()  # 15 %, and what falls on itself
    assert 0.1 < still < 0.4
    assert torch.equal(x, torch.rand(x.shape, generator=torch.Generator().manual_seed(0)))
    broken = network.corrupt(x)
    assert 0.2 < (broken != x).float().mean()


@pytest.mark.parametrize("rate", ["nonlinear_rate", "shuffle_rate", "paint_rate"])
def test_each_rate_of_genesis_switches_one_change(rate) -> None:
    module = module_of("models-genesis")
    off = {"nonlinear_rate": 0.0, "shuffle_rate": 0.0, "paint_rate": 0.0, "inpaint_share": 1.0}
    x = torch.rand(8, 1, 32, 32)
    assert torch.equal(network_of(module, **off).corrupt(x), x)
    broken = network_of(module, **{**off, rate: 1.0}).corrupt(x)
    assert all(not torch.equal(a, b) for a, b in zip(broken, x))
    if rate == "paint_rate":
        around = network_of(module, **{**off, rate: 1.0, "inpaint_share": 0.0}).corrupt(x)
        assert (around != x).float().mean() > (broken != x).float().mean()


# DiRA


def parts_of_dira(module, network, images):
    """What its forward works on, with the draws that it makes after the same seed."""
    torch.manual_seed(5)
    clean, other = (module.crop(images, network.settings) for _ in range(2))
    broken = network.corrupt(clean)
    maps = network.encoder(broken)
    query = F.normalize(network.projector(maps[-1].flatten(2).mean(2)), dim=1)
    return clean, query, network.decoder(broken, maps).sigmoid(), network.corrupt(other)


@DIMENSIONS
def test_dira_has_the_gradients_of_two_optimisers(dimensionality, still) -> None:
    """The authors' way: the network against a fixed critic, the critic against a fixed network."""
    module = still(module_of("dira", dimensionality))
    network, images = network_of(module, adversarial_weight=0.3), batch(module)
    network.after_step(1.0)
    assert network.adversarial_weight == pytest.approx(0.3)
    queue = network.queue.clone()
    clean, query, restored, other = parts_of_dira(module, network, images)
    encoder, projector = network.target.networks
    with torch.no_grad():
        key = F.normalize(projector(encoder.embed(other)), dim=1)
    contrast = 0.0
    for q, k in zip(query, key):  # InfoNCE as it is written: no matrices
        above = torch.exp(q @ k / 0.2)
        contrast = contrast - torch.log(
            above / (above + sum(torch.exp(q @ o / 0.2) for o in queue))
        )
    ours = [p for n, p in network.named_parameters() if p.requires_grad and "critic" not in n]
    critics = list(network.critic.parameters())
    real, made = network.critic(clean)[-1], network.critic(restored)[-1]
    network_loss = (
        contrast / len(query)
        + 10 * ((restored - clean) ** 2).mean()
        + 0.3 * ((made - 1) ** 2).mean()
    )
    apart = network.critic(restored.detach())[-1]
    critic_loss = 0.5 * (((real - 1) ** 2).mean() + (apart**2).mean())
    torch.manual_seed(5)
    loss, features = network(images)
    assert loss.item() == pytest.approx((network_loss + critic_loss).item(), rel=1e-4)
    for wanted, weights in ((network_loss, ours), (critic_loss, critics)):
        one, two = gradient_of(loss, weights), gradient_of(wanted, weights)
        assert (one - two).norm() < 1e-4 * two.norm()
    assert torch.allclose(features, query, atol=1e-6) and not features.requires_grad
    # the newest keys come first, the oldest have gone
    assert torch.allclose(network.queue[:4], key, atol=1e-6)
    assert torch.equal(network.queue[4:], queue[:-4])


def test_diras_critic_is_heard_only_later() -> None:
    module = module_of("dira")
    network, images = (
        network_of(module, adversarial_start=0.5, adversarial_weight=5.0),
        batch(module),
    )
    weights = list(network.decoder.parameters())
    queue, gradients = network.queue.clone(), []
    for progress in (None, 0.49, 0.5):
        if progress:
            network.after_step(progress)
        network.queue.copy_(queue)
        torch.manual_seed(1)
        gradients.append(gradient_of(network(images)[0], weights))
    assert torch.allclose(gradients[0], gradients[1]) and network.adversarial_weight == 5
    assert (gradients[2] - gradients[0]).norm() > 0.01 * gradients[0].norm()
    assert "adversarial_weight" in network.state_dict() and "queue" in network.state_dict()


def test_diras_slow_copy_follows() -> None:
    network = network_of(module_of("dira"), momentum=0.75)
    weight, slow = (m.parameters() for m in (network.projector, network.target.networks[1]))
    weight, slow = next(weight), next(slow)
    with torch.no_grad():
        weight += 1
    before = slow.clone()
    network.after_step(0.1)
    assert torch.allclose(slow - before, 0.25 * (weight - before), atol=1e-6)
    assert not any(p.requires_grad for p in network.target.parameters())


@DIMENSIONS
def test_dira_cuts_out_frames_or_swaps(dimensionality, still) -> None:
    module = still(module_of("dira", dimensionality))
    x = batch(module, 6)[(..., *[slice(32)] * module.DIMS)] + 0.1
    off = {"inner_rate": 0.0, "outer_rate": 0.0, "swap_rate": 0.0}
    assert torch.equal(network_of(module, **off).corrupt(x), x)
    share = {}
    for rate in off:
        broken = network_of(module, **{**off, rate: 1.0}).corrupt(x)
        changed = broken != x
        assert changed.flatten(1).any(1).all()
        share[rate] = changed.float().mean().item()
        if rate == "swap_rate":
            assert torch.equal(broken.flatten(1).sort(1)[0], x.flatten(1).sort(1)[0])
        else:
            assert (broken[changed] == 0).all()
    assert share["inner_rate"] < 0.5 and share["outer_rate"] < 0.6
    middle = (slice(None), slice(None), *[slice(14, 18)] * module.DIMS)
    framed = network_of(module, **{**off, "outer_rate": 1.0}).corrupt(x)
    assert torch.equal(framed[middle], x[middle])  # all around, never the middle
    torch.manual_seed(0)
    many = torch.rand(400, 1, 32, 32) + 0.1 if module.DIMS == 2 else None
    if many is not None:  # three in ten, one in twenty and three in ten of the views
        broken = network_of(module).corrupt(many)
        whole = (broken == many).flatten(1).all(1).float().mean().item()
        assert 0.27 < whole < 0.43
        cut = (broken == 0).flatten(1).any(1).float().mean().item()
        assert 0.27 < cut < 0.43


# TransVW


def test_visual_words_are_the_nearest_and_follow_their_crops(monkeypatch) -> None:
    module = module_of("transvw")
    network = network_of(module, words=3, momentum=0.9)
    angles = torch.tensor([0.0, 0.2, 1.5])
    rows = torch.zeros(3, network.encoder.width)
    rows[:, 0], rows[:, 1] = 5 * angles.cos(), 5 * angles.sin()
    monkeypatch.setattr(network.target, "embed", lambda clean: rows)
    network.words.zero_()
    network.words[0, 0] = network.words[1, 1] = network.words[2, 2] = 1
    network.usage.fill_(1 / 3)
    clean = torch.zeros(3, 1, 32, 32)
    assert network.discovered(clean).tolist() == [0, 0, 1]
    # words move a tenth of the way to the direction of their crops' mean, on the unit sphere
    for word, members in ((0, [0, 1]), (1, [2])):
        mean = np.mean([rows[m].numpy() / 5 for m in members], 0)
        moved = 0.9 * np.eye(network.encoder.width)[word] + 0.1 * mean / np.linalg.norm(mean)
        assert np.allclose(network.words[word], moved / np.linalg.norm(moved), atol=1e-5)
    assert torch.equal(network.words[2], torch.eye(network.encoder.width)[2])
    assert torch.allclose(network.usage, torch.tensor([0.9 / 3 + 0.2 / 3, 1 / 3, 0.3]))
    # a word that nobody uses any more becomes the crop that fits none
    network.usage[2] = 0.02
    network.discovered(clean)  # the second crop is 0.2 away from its word, the others are nearer
    assert torch.allclose(network.words[2], rows[1] / 5)
    assert network.usage[2] == pytest.approx(1 / 3) and network.usage[0] != pytest.approx(1 / 3)


@DIMENSIONS
def test_crops_of_one_pattern_get_one_word(dimensionality, still) -> None:
    module = still(module_of("transvw", dimensionality))
    network = network_of(module, words=4)
    axes = torch.meshgrid(*[torch.linspace(0, 1, 32)] * module.DIMS, indexing="ij")
    patterns = [torch.sin(9 * axes[0]), torch.sin(30 * axes[1]), 0.2 + 0 * axes[0]]
    clean = torch.stack([patterns[n % 3] for n in range(9)])[:, None] / 2 + 0.5
    torch.manual_seed(0)
    for _ in range(8):
        network.discovered(clean)
    words = network.discovered(clean + 0.001 * torch.rand(clean.shape)).view(3, 3)
    assert (words == words[0]).all() and len(set(words[0].tolist())) == 3


def test_transvw_restores_and_classifies(still) -> None:
    module = still(module_of("transvw"))
    images = batch(module)
    changed = {"restoration_weight": 2.0, "classification_weight": 0.5}
    network = network_of(module, **changed)
    network.words.copy_(torch.randn(network.words.shape))
    words, usage = network.words.clone(), network.usage.clone()
    expected = network.discovered(images)
    network.words.copy_(words)
    network.usage.copy_(usage)
    torch.manual_seed(2)
    broken = network.corrupt(images)
    maps = network.encoder(broken)
    logits = network.classifier(maps[-1].mean((2, 3)))
    error = ((network.decoder(broken, maps) - images) ** 2).mean()
    entropy = -sum(row.softmax(0)[word].log() for row, word in zip(logits, expected)) / 4
    torch.manual_seed(2)
    loss, _ = network(images)
    assert loss.item() == pytest.approx((2 * error + 0.5 * entropy).item(), rel=1e-5)
    before = [p.clone() for p in network.target.parameters()]
    with torch.no_grad():
        for p in network.encoder.parameters():
            p += 1
    network.after_step(0.5)
    for slow, old in zip(network.target.parameters(), before):
        assert torch.allclose(slow, old + 0.01 * (old + 1 - old), atol=1e-5)


def test_transvw_makes_one_of_four_changes(still) -> None:
    module = still(module_of("transvw"))
    network, x = network_of(module), torch.rand(300, 1, 32, 32)
    torch.manual_seed(0)
    broken = network.corrupt(x)
    same = (broken == x).flatten(1).float().mean(1)
    sorted_alike = (broken.flatten(1).sort(1)[0] == x.flatten(1).sort(1)[0]).all(1)
    shuffled, bent = sorted_alike & (same < 1), (same < 0.05) & ~sorted_alike
    for share in (shuffled, bent, ~shuffled & ~bent):
        assert 0.1 < share.float().mean() < 0.65
    assert abs(shuffled.float().mean() - 0.25) < 0.08 and abs(bent.float().mean() - 0.25) < 0.08


# PCRLv2


def test_pcrl_compares_predictions_with_features_that_stay_fixed() -> None:
    network = network_of(module_of("pcrl-v2"))
    torch.manual_seed(0)
    views, others = (
        [tuple(torch.randn(n, w, requires_grad=True) for _ in range(2)) for w in (8, 4)]
        for n in (3, 6)
    )
    loss, expected = network.comparison(views, others), 0.0
    for (a, p), (b, q) in zip(views, others):
        for number in range(6):  # sub-crops after sub-crops: row k is of image k modulo 3
            i = number % 3
            cosine = lambda x, y: (x @ y / x.norm() / y.norm()).item()  # noqa: E731
            expected -= (cosine(p[i], b[number]) + cosine(q[number], a[i])) / 2 / 6 / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    for features, prediction in (*views, *others):
        assert features.grad is None and prediction.grad.abs().sum() > 0


@DIMENSIONS
def test_pcrl_restores_at_every_scale_without_skip_connections(dimensionality, still) -> None:
    module = still(module_of("pcrl-v2", dimensionality))
    network = network_of(module)
    images = batch(module, 2)[(..., *[slice(32)] * module.DIMS)]
    levels = network.levels(images)
    assert [level.shape[-1] for level in levels] == [8, 16, 32]
    encoder = network.encoder.forward
    network.encoder.forward = lambda x: [m * 0 for m in encoder(x)[:-1]] + encoder(x)[-1:]
    assert all(torch.equal(a, b) for a, b in zip(levels, network.levels(images)))
    expected = 0.0
    for scale, level in zip(network.scales, levels):
        weight, bias = scale.restore.conv.weight.flatten(1), scale.restore.conv.bias
        small = torch.einsum("bc...,oc->bo...", level, weight)
        small = (small + bias.view(-1, *[1] * module.DIMS)).sigmoid()
        mode = "bilinear" if module.DIMS == 2 else "trilinear"
        expected += ((F.interpolate(small, size=images.shape[2:], mode=mode) - images) ** 2).mean()
    assert network.middle(levels, images).item() == pytest.approx(expected.item() / 3, rel=1e-5)


def test_pcrls_coarse_scales_restore_less_and_less() -> None:
    module = module_of("pcrl-v2")
    network, images = network_of(module), batch(module)
    assert network.middle_weight == 1
    losses = []
    for progress, weight in ((1e-9, 1.0), (0.5, 0.5), (1.0, 0.0)):
        network.after_step(progress)
        assert network.middle_weight.item() == pytest.approx(weight, abs=1e-6)
        torch.manual_seed(1)
        losses.append(network(images)[0].item())
    assert losses[0] - losses[1] == pytest.approx(losses[1] - losses[2], rel=1e-3)
    assert losses[0] > losses[1]


@DIMENSIONS
def test_pcrls_sub_crops_show_a_small_part(dimensionality, monkeypatch) -> None:
    module = module_of("pcrl-v2", dimensionality)
    monkeypatch.setattr(module, "distort", lambda images, settings: images)
    network = network_of(module, local_scale=(0.15, 0.3), rotate_degrees=0.0, flip_axes=())
    side = module.region(network.settings)
    ramp = torch.arange(side) + 0.5
    images = ramp.view(-1, *[1] * (module.DIMS - 1)).expand([side] * module.DIMS)
    images = images.repeat(50, 1, *[1] * module.DIMS)
    torch.manual_seed(0)
    views = network.part(images)
    assert views.shape == (50, 1, *[16] * module.DIMS)
    line = views[(slice(None), 0, slice(None), *[8] * (module.DIMS - 1))]
    spans = (line[:, -1] - line[:, 0]) * 16 / 15  # pixels of the region along the first axis
    shares = (spans / 32) ** module.DIMS  # of what a view may show
    assert 0.13 < shares.min() < 0.2 and 0.25 < shares.max() < 0.31
    assert line[:, 0].min() < 0.1 * side and line[:, -1].max() > 0.9 * side  # also of its edges
    more, fewer = (network_of(module, local_views=n) for n in (3, 1))
    values = []
    for method in (more, fewer):
        torch.manual_seed(1)
        values.append(method(images[:4] / side)[0].item())
    assert values[0] != values[1]


# In-painting


@DIMENSIONS
def test_inpainting_asks_only_for_what_it_hides(dimensionality, still) -> None:
    module = still(module_of("inpainting", dimensionality))
    network, images = network_of(module, boxes=4, hidden_share=0.3), batch(module)
    torch.manual_seed(1)
    clean, broken, hidden = network.removed(images)
    assert torch.equal(broken[~hidden], clean[~hidden])
    shares = hidden.flatten(1).float().mean(1)
    assert (shares < 0.36).all() and (shares > 0.05).all()
    for image, masked, gone in zip(clean, broken, hidden):
        assert torch.allclose(masked[gone], image.mean().expand(int(gone.sum())))
    filled = network.decoder(broken, network.encoder(broken))
    errors = []
    for image, guess, gone in zip(clean, filled, hidden):  # a mean over each image's own pixels
        errors.append(((image[gone] - guess[gone]) ** 2).mean())
    torch.manual_seed(1)
    loss, _ = network(images)
    assert loss.item() == pytest.approx((sum(errors) / len(errors)).item(), rel=1e-5)
    everything = network_of(module, boxes=1, hidden_share=1.0).removed(images)[2]
    assert everything.all()


# Context restoration


@DIMENSIONS
def test_context_restoration_swaps_the_share_that_was_asked_for(dimensionality, still) -> None:
    module = still(module_of("context-restoration", dimensionality))
    network = network_of(module, swapped_share=0.3, swap_side=0.125)
    images = batch(module)
    torch.manual_seed(1)
    clean, broken = network.disordered(images)
    patches = 2 * round(0.3 * 8**module.DIMS / 2)
    if module.DIMS == 2:
        assert patches == 20
    assert ((clean != broken).flatten(1).sum(1) == patches * 4**module.DIMS).all()
    assert torch.equal(clean.flatten(1).sort(1)[0], broken.flatten(1).sort(1)[0])
    error = (network.decoder(broken, network.encoder(broken)) - clean) ** 2
    torch.manual_seed(1)
    assert network(images)[0].item() == pytest.approx(error.mean().item(), rel=1e-5)


def test_patches_too_large_to_swap_are_refused_in_one_line(capsys) -> None:
    for side in (0.0, 0.5):
        with pytest.raises(SystemExit) as stopped:
            network_of(module_of("context-restoration"), swap_side=side)
        error = capsys.readouterr().err.strip().splitlines()
        assert stopped.value.code == 2
        assert error == [f"error: swap_side: {side} is not above 0 and at most a third"]


# Volume fusion


@DIMENSIONS
@pytest.mark.parametrize("backbone", ["cnn", "vit"])
def test_volume_fusion_mixes_and_asks_how_much(dimensionality, backbone, monkeypatch) -> None:
    module = module_of("volume-fusion", dimensionality, backbone=backbone)
    crops = []
    monkeypatch.setattr(module, "crop", lambda x, s: crops.append(torch.rand_like(x)) or crops[-1])
    monkeypatch.setattr(module, "distort", lambda images, settings: images)
    network = network_of(module, coefficients=3, most_boxes=12, least_boxes=12)
    images = torch.zeros(3, 1, *[32] * module.DIMS)
    torch.manual_seed(1)
    fused, classes = network.fused(images)
    back, front = crops
    assert classes.shape == images.shape and set(classes.unique().tolist()) == {0, 1, 2, 3}
    for value in range(4):
        mixed = value / 3 * front + (1 - value / 3) * back
        assert torch.allclose(fused[classes == value], mixed[classes == value], atol=1e-6)
    logits = network.decoder(fused, network.encoder(fused))
    chances, dice, entropy = logits.softmax(1), [], []
    for image, truth in zip(chances, classes):
        for value in range(4):
            there = (truth[0] == value).float()
            overlap = 2 * (image[value] * there).sum() + 1e-5
            dice.append(1 - overlap / (image[value].sum() + there.sum() + 1e-5))
        entropy.append(-image.gather(0, truth).log().mean())
    expected = sum(dice) / len(dice) / 2 + sum(entropy) / len(entropy) / 2
    torch.manual_seed(1)
    assert network(images)[0].item() == pytest.approx(expected.item(), rel=1e-4)


def test_later_boxes_of_a_fusion_cover_earlier_ones(monkeypatch) -> None:
    module = module_of("volume-fusion", backbone="cnn")
    network = network_of(module, coefficients=4, least_boxes=2, most_boxes=3)
    drawn, wanted = [], []
    inner_boxes, randint = module.boxes, torch.randint

    def boxes(*arguments):
        drawn.append(inner_boxes(*arguments))
        return drawn[-1]

    def kept(*arguments, **more):
        wanted.append(randint(*arguments, **more))
        return wanted[-1]

    monkeypatch.setattr(module, "boxes", boxes)
    monkeypatch.setattr(torch, "randint", kept)
    torch.manual_seed(4)
    classes = network.coefficients(torch.zeros(40, 1, 32, 32))
    counts, *values = wanted
    assert set(counts.flatten().tolist()) == {2, 3} and len(values) == len(drawn) == 3
    for image in range(40):
        expected = torch.zeros(32, 32, dtype=torch.long)
        for number in range(int(counts[image])):
            expected[drawn[number][image, 0]] = values[number][image, 0]
        assert torch.equal(classes[image, 0], expected)
    sides = [b.float().mean().item() for b in drawn]
    wide = network_of(module, least_side=0.6, most_side=0.6)
    drawn.clear()
    wide.coefficients(torch.zeros(4, 1, 32, 32))
    assert min(b.float().mean() for b in drawn) > max(sides)


# All of them


@pytest.mark.parametrize(
    "method",
    ["models-genesis", "dira", "transvw", "pcrl-v2", "inpainting", "context-restoration",
     "volume-fusion"],
)  # fmt: skip
@DIMENSIONS
def test_pictures_show_the_images_and_leave_the_network_alone(method, dimensionality) -> None:
    module = module_of(method, dimensionality, backbone="cnn")
    network, images = network_of(module), batch(module, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pictures = network.pictures(images)
    assert len(pictures) >= 3
    for name, picture in pictures.items():
        assert picture.shape == (2, 1, *[32] * module.DIMS), name
        assert not picture.requires_grad and picture.isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
