"""Masked modelling and self-distillation, each against its paper's equation in plain loops."""

from __future__ import annotations

import itertools
import math

import emitted
import pytest
import torch
from emitted import random_images, script, seeded, settings
from torch import nn

BOTH = pytest.mark.parametrize("dimensionality", ["2d", "3d"])
TAUGHT = pytest.mark.parametrize("method", ["dino", "ibot", "dino-v2"])
ALL = [*itertools.product(["mae", "simmim", "ibot", "dino-v2", "dino"], ["vit"]), ("spark", "cnn")]


def built(method: str, dimensionality: str = "2d", backbone: str | None = "vit", **changed):
    return emitted.built(method, dimensionality, backbone, **changed)


def softmax(row: torch.Tensor, temperature: float = 1.0) -> list[float]:
    powers = [math.exp(v / temperature) for v in row.tolist()]
    return [p / sum(powers) for p in powers]


def cross_entropy(taught: list[float], seen: list[float]) -> float:
    return -sum(t * math.log(s) for t, s in zip(taught, seen, strict=True))


@BOTH
@pytest.mark.parametrize(("method", "backbone"), ALL)
def test_pictures_show_every_image_and_change_nothing(method, backbone, dimensionality) -> None:
    module, network = built(method, dimensionality, backbone)
    images = random_images(module, network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    shown = seeded(network.pictures, images)
    assert all(torch.equal(before[name], v) for name, v in network.state_dict().items())
    for name, pictures in shown.items():
        assert pictures.shape[:2] == images.shape[:2] and pictures.ndim == images.ndim, name
        small = name == "small view"
        assert pictures.shape[-1] == (16 if small else network.settings.size), name
        assert pictures.isfinite().all() and not pictures.requires_grad, name
    if "rebuilt" in shown:
        seen = shown["visible"] != 0
        assert torch.allclose(shown["rebuilt"][seen], shown["image"][seen], atol=1e-6)
        assert torch.allclose(shown["visible"][seen], shown["image"][seen], atol=1e-6)
        assert 0.1 < seen.float().mean() < 0.9
        assert not torch.allclose(shown["rebuilt"][~seen], shown["image"][~seen], atol=1e-2)


# patches and transformer


@BOTH
def test_patches_are_in_the_order_of_the_tokens_and_can_be_put_together(dimensionality) -> None:
    module, network = built("mae", dimensionality)
    embedding, side = network.encoder.net.patch_embedding, network.settings.patch_size
    images = torch.rand(2, 3, *[32] * module.DIMS)
    rows = module.patches(images, side)
    assert rows.shape == (2, (32 // side) ** module.DIMS, 3 * side**module.DIMS)
    assert torch.equal(module.assembled(rows, images, side), images)
    with torch.no_grad():
        for p in embedding.parameters():
            p.zero_()
        embedding.patch_embeddings.weight[0] = 1  # the first feature of a token sums its patch
    sums = module.patches(images[:, :1], side).sum(2)
    assert torch.allclose(network.encoder.tokens(images[:, :1])[..., 0], sums, rtol=1e-4)


@BOTH
def test_whole_images_meet_the_network_of_monai_and_smaller_ones_its_positions(dimensionality):
    _, network = built("dino", dimensionality)
    encoder = network.encoder
    images = torch.rand(2, 1, *[32] * len(encoder.net.patch_embedding.patch_embeddings.kernel_size))
    assert torch.allclose(encoder.embed(images), encoder.net(images)[0].mean(1), atol=1e-5)
    dims = images.ndim - 2
    with torch.no_grad():  # a position that grows along the first axis, from 0 to 3
        ramp = torch.arange(4.0).view(4, *[1] * (dims - 1)).expand(*[4] * dims)
        encoder.net.patch_embedding.position_embeddings[0, :, 0] = ramp.flatten()
    placed = encoder.placed(torch.zeros(1, 2**dims, encoder.width))[0, :, 0].view([2] * dims)
    # two tokens lie between the first two and between the last two of four
    assert torch.allclose(placed[0], torch.full([2] * (dims - 1), 0.5), atol=0.15)
    assert torch.allclose(placed[1], torch.full([2] * (dims - 1), 2.5), atol=0.15)


# masks


@BOTH
def test_one_view_of_each_image_is_masked_in_blocks_as_much_as_it_should(dimensionality) -> None:
    module, _ = built("ibot", dimensionality)
    images, grid, dims = torch.rand(60, 1, *[8] * module.DIMS), 10, module.DIMS
    torch.manual_seed(0)
    masks = module.masked_views(images, grid, (0.1, 0.5))
    first, second = masks.chunk(2)
    assert masks.shape == (120, grid**dims) and not (first & second).any()
    assert ((first.any(1)) ^ (second.any(1))).all() and 15 < first.any(1).sum() < 45
    shares = (first | second).float().mean(1)
    assert 0.095 <= shares.min() < 0.15 and 0.45 < shares.max() <= 0.505
    # a hidden patch has more hidden neighbours than one anywhere
    blocks = (first | second).view(60, *[grid] * dims)
    touching = (blocks[:, 1:] & blocks[:, :-1]).float().sum() / blocks[:, 1:].sum()
    assert touching > 0.6 > 0.5 > shares.mean()
    exact = module.masked_views(images, grid, (0.3, 0.3)).sum(1)
    assert set(exact.tolist()) == {0, round(0.3 * grid**dims)}
    least = module.masked_views(images, grid, (0.0, 0.0)).sum(1)
    assert set(least.tolist()) == {0, 1}


def test_masked_views_weigh_alike() -> None:
    module, _ = built("ibot")
    hidden = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 1]]).bool()
    weights = module.patch_weights(hidden)
    assert weights.tolist() == pytest.approx([1 / 3] * 3 + [1] + [1 / 2] * 2)
    views = torch.rand(4, 1, 8, 8) + 1
    bare = module.uncovered(views, hidden)
    shown = torch.stack([bare[..., i * 4 : i * 4 + 4, j * 4 : j * 4 + 4].any(-1).any(-1)[:, 0]
                         for i in range(2) for j in range(2)], 1)  # fmt: skip
    assert torch.equal(shown, ~hidden) and torch.equal(bare[bare > 0], views[bare > 0])


@BOTH
@pytest.mark.parametrize(
    ("grid", "cells", "share", "side", "along"),
    [(14, 7, 0.6, 2, 7), (8, 7, 0.6, 2, 4), (5, 2, 0.5, 3, 2), (4, 9, 0.99, 1, 4)],
)
def test_random_cells_are_hidden_whole(grid, cells, share, side, along, dimensionality) -> None:
    module, _ = built("simmim", dimensionality)
    images = torch.rand(6, 1, *[4] * module.DIMS)
    torch.manual_seed(0)
    mask = module.random_mask(images, grid, cells, share, settings(module))
    assert mask.shape == (6, 1, *[grid] * module.DIMS)
    corners = mask[(..., *[slice(None, None, side)] * module.DIMS)]
    total = along**module.DIMS
    assert (corners.flatten(1).sum(1) == min(round(share * total), total - 1)).all()
    for place in itertools.product(range(grid), repeat=module.DIMS):
        corner = tuple(p // side for p in place)
        assert torch.equal(mask[:, 0][(..., *place)], corners[:, 0][(..., *corner)])
    assert total == 4 or not torch.equal(mask[0], mask[1])  # each image has a mask of its own


# reconstruction


def test_mae_is_the_mean_squared_error_on_normalised_hidden_patches() -> None:
    module, network = built("mae", mask_ratio=0.5)
    images = random_images(module, network)
    loss, features = seeded(network, images)
    torch.manual_seed(1)
    crops = module.crop(images, network.settings)
    visible, hidden = network.drawn(crops)
    both = torch.cat([visible, hidden], 1)[..., 0].sort(1)[0]
    assert torch.equal(both, torch.arange(16).expand(3, -1)) and visible.shape == hidden.shape
    x = network.encoded(crops, visible)
    found, total = network.rebuilt(x, visible, hidden), []
    for n, image in enumerate(crops):
        for k, place in enumerate(hidden[n, :, 0].tolist()):
            top, left = place // 4 * 8, place % 4 * 8
            patch = image[0, top : top + 8, left : left + 8].flatten().double()
            patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            total.append((patch - found[n, k]).square().mean())
    assert loss.item() == pytest.approx(torch.stack(total).mean().item(), rel=1e-4)
    assert torch.allclose(features, x.mean(1))


def test_mae_and_its_encoder_never_see_what_is_hidden() -> None:
    module, network = built("mae")
    crops = module.crop(random_images(module, network), network.settings)
    visible, hidden = network.drawn(crops)
    rows = module.patches(crops, 8).scatter(1, hidden.expand(-1, -1, 64), 7.0)
    changed = module.assembled(rows, crops, 8)
    assert not torch.equal(changed, crops)
    assert torch.allclose(
        network.encoded(changed, visible), network.encoded(crops, visible), atol=1e-6
    )


@BOTH
def test_simmim_is_the_absolute_error_of_hidden_pixels(dimensionality) -> None:
    module, network = built("simmim", dimensionality)
    images = random_images(module, network, 2)
    loss, features = seeded(network, images)
    torch.manual_seed(1)
    crops, hidden = network.masked(images)
    tokens = network.encoded(crops, hidden)
    rows = module.patches(crops, 8)
    each = []
    for n in range(2):
        errors = [
            (network.rebuild(tokens[n, t]) - rows[n, t]).abs().mean()
            for t in range(hidden.shape[1])
            if hidden[n, t]
        ]
        each.append(sum(errors) / len(errors))
    assert loss.item() == pytest.approx((sum(each) / 2).item(), rel=1e-4)
    assert torch.allclose(features, tokens.mean(1))
    # nothing of a hidden patch gets in
    changed = module.assembled(rows.masked_fill(hidden[..., None], 7.0), crops, 8)
    assert torch.allclose(network.encoded(changed, hidden), tokens, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "backbone"), [("mae", "vit"), ("simmim", "vit"), ("spark", "cnn")]
)
def test_more_can_be_hidden(method, backbone) -> None:
    shown = []
    for ratio in (0.25, 0.75):
        module, network = built(method, backbone=backbone, mask_ratio=ratio)
        hidden = seeded(network.pictures, random_images(module, network))["visible"]
        shown.append((hidden == 0).float().mean().item())
    assert shown == pytest.approx([0.25, 0.75], abs=0.02)


# sparse convolution


@BOTH
def test_spark_sees_nothing_of_what_is_hidden(dimensionality) -> None:
    module, network = built("spark", dimensionality, "cnn")
    images = random_images(module, network, 2)
    crops, visible = network.masked(images)
    pixels = torch.nn.functional.interpolate(visible, crops.shape[2:])
    maps = network.sparse(crops, visible)
    others = network.sparse(crops + 5 * (1 - pixels), visible)
    for level, (found, other) in enumerate(zip(maps, others, strict=True)):
        assert torch.allclose(found, other, atol=1e-5)
        mask = torch.nn.functional.interpolate(visible, found.shape[2:])
        assert found.shape[-1] == network.settings.size >> level
        assert not (found * (1 - mask)).any() and (found * mask).flatten(1).any(1).all()


@BOTH
def test_spark_with_nothing_hidden_is_the_network_itself(dimensionality) -> None:
    module, network = built("spark", dimensionality, "cnn")
    images = random_images(module, network, 2)
    crops, visible = network.masked(images)
    sparse = network.sparse(crops, torch.ones_like(visible))
    for found, expected in zip(sparse, network.encoder(crops), strict=True):
        assert torch.allclose(found, expected, atol=1e-4)


def test_a_norm_of_visible_positions_is_the_norm_of_their_list() -> None:
    module, _ = built("spark", backbone="cnn")
    torch.manual_seed(0)
    norm, x = nn.GroupNorm(2, 6), torch.randn(3, 6, 5, 5)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    mask = (torch.rand(3, 1, 5, 5) < 0.6).float()
    found = module.visible_norm(norm, x, mask)
    for image, seen, result in zip(x, mask[:, 0].bool(), found, strict=True):
        alone = norm(image[:, seen][None])[0]  # as if there were no other positions
        assert torch.allclose(result[:, seen], alone, atol=1e-5)
        assert not result[:, ~seen].any()


def test_spark_is_the_squared_error_on_normalised_hidden_patches() -> None:
    module, network = built("spark", backbone="cnn")
    images = random_images(module, network, 2)
    loss, features = seeded(network, images)
    torch.manual_seed(1)
    crops, visible = network.masked(images)
    maps = network.sparse(crops, visible)
    found, each = network.rebuilt(crops, maps, visible), []
    for n in range(2):
        errors = []
        for i, j in itertools.product(range(4), range(4)):
            if not visible[n, 0, i, j]:
                place = slice(8 * i, 8 * i + 8), slice(8 * j, 8 * j + 8)
                patch = crops[n, 0][place]
                patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
                errors.append((patch - found[n, 0][place]).square().mean())
        each.append(sum(errors) / len(errors))
        seen = maps[-1][n][:, visible[n, 0].bool()]
        assert torch.allclose(features[n], seen.mean(1), atol=1e-5)
    assert loss.item() == pytest.approx((sum(each) / 2).item(), rel=1e-4)


# self-distillation


def test_the_head_measures_cosines() -> None:
    _, network = built("dino")
    x = torch.randn(5, network.encoder.width)
    first, _, _, second, _, _, last = network.head.layers

    def even(rows):  # batch norm as at the start: mean 0 and variance 1 of each feature
        return (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()

    inner = last(nn.functional.gelu(even(second(nn.functional.gelu(even(first(x)))))))
    found = network.head(x)
    for n, k in itertools.product(range(5), range(16)):
        prototype = network.head.prototypes[k]
        cosine = inner[n] @ prototype / (inner[n].norm() * prototype.norm())
        assert found[n, k].item() == pytest.approx(cosine.item(), abs=1e-5)


def test_each_large_view_is_compared_with_every_other_view() -> None:
    module, _ = built("dino")
    torch.manual_seed(0)
    taught, seen = torch.randn(2, 3, 5).softmax(2), torch.randn(4, 3, 5)
    total = []
    for t, s in itertools.product(range(2), range(4)):
        if t != s:
            rows = range(3)
            total += [cross_entropy(taught[t, n].tolist(), softmax(seen[s, n])) for n in rows]
    found = module.cross_views(taught, seen)
    assert found.item() == pytest.approx(sum(total) / len(total), rel=1e-5)
    assert len(total) == 3 * (2 * 4 - 2)


def test_the_centre_is_a_running_mean_that_comes_off_before_the_softmax() -> None:
    module, _ = built("dino")
    centred, temperature = module.Centred(3, 0.9), torch.tensor(0.5)
    rows = torch.tensor([[1.0, 0.0, -1.0], [3.0, 0.0, 1.0]])
    first = centred(rows, rows.mean(0), temperature)
    assert first[0].tolist() == pytest.approx(softmax(rows[0], 0.5), rel=1e-5)
    assert centred.centre.tolist() == pytest.approx([0.2, 0.0, 0.0])
    second = centred(rows, rows.mean(0), temperature)
    assert second[1].tolist() == pytest.approx(softmax(rows[1] - torch.tensor([0.2, 0, 0]), 0.5))
    assert centred.centre.tolist() == pytest.approx([0.2 * 0.9 + 0.2, 0.0, 0.0])


@pytest.mark.parametrize("backbone", ["vit", "cnn"])
def test_dino_is_its_equation(backbone) -> None:
    module, network = built("dino", backbone=backbone)
    with torch.no_grad():
        network.centred.centre.uniform_(-0.2, 0.2)
        for weight in network.target.parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    centre = network.centred.centre.clone()
    images = random_images(module, network)
    loss, features = seeded(network, images)
    torch.manual_seed(1)
    large, small = network.views(images)
    encoder, head = network.target
    # the head sees all views at once, for it normalises them together
    taught = head(torch.cat([encoder.embed(view) for view in large])).split(3)
    views = [network.encoder.embed(view) for view in (*large, *small)]
    seen = network.head(torch.cat(views)).split(3)
    assert len(small) == 2 and small[0].shape[-1] == 16
    total = []
    for t, s, n in itertools.product(range(2), range(4), range(3)):
        if t != s:
            known = softmax(taught[t][n] - centre, 0.04)
            total.append(cross_entropy(known, softmax(seen[s][n], 0.1)))
    assert loss.item() == pytest.approx(sum(total) / len(total), rel=1e-3)
    known = [softmax(row - centre, 0.04) for row in taught[0]]
    assert torch.allclose(features, torch.tensor(known), atol=1e-4)


def patches_of(network, encoder, view, mask, filled: bool) -> torch.Tensor:
    """Tokens of one view; the student's hidden ones enter as the token that stands for them."""
    tokens = encoder.tokens(view[None])[0]
    if filled:
        rows = [network.hidden_token if m else t for t, m in zip(tokens, mask, strict=True)]
        tokens = torch.stack(rows)
    return encoder.encode(encoder.placed(tokens[None]))[0]


def both_sides(network, images):
    """What teacher and student make of the views: features of images, tokens, small views."""
    large, small, hidden = network.views(images)
    encoder = network.target[0]
    taught = [patches_of(network, encoder, v, m, False) for v, m in zip(large, hidden)]
    seen = [patches_of(network, network.encoder, v, m, True) for v, m in zip(large, hidden)]
    return taught, seen, [network.encoder.embed(view) for view in small], hidden


def mean_tokens(views) -> torch.Tensor:
    return torch.stack([tokens.mean(0) for tokens in views])


def guessed_images(head, seen, small) -> tuple[torch.Tensor, ...]:
    """The student's answer for each view; the head normalises all views together."""
    return head(torch.cat([mean_tokens(seen), *small])).split(len(seen) // 2)


def at_hidden(head, views, hidden) -> tuple[torch.Tensor, ...]:
    """The answer for the hidden tokens of each view, which the head normalises together."""
    rows = [tokens[mask.nonzero()[:, 0]] for tokens, mask in zip(views, hidden, strict=True)]
    return head(torch.cat(rows)).split([len(r) for r in rows])


def test_ibots_teacher_of_patches_warms_up_by_itself() -> None:
    _, network = built("ibot", patch_temperature=0.1, temperature_warmup=0.5)
    for progress, expected in ((0.0, 0.04), (0.25, 0.07), (0.5, 0.1), (1.0, 0.1)):
        network.after_step(progress)
        assert network.temperature.item() == pytest.approx(0.04)
        assert network.patch_temperature.item() == pytest.approx(expected)


def test_ibot_is_its_equations() -> None:
    module, network = built("ibot", center_momentum=0.0)
    network.patch_temperature.fill_(0.07)
    with torch.no_grad():
        network.hidden_token.normal_()
        network.centred.centre.uniform_(-0.2, 0.2)
        network.centred_patches.centre.uniform_(-0.2, 0.2)
    centre, centre_patches = (c.centre.clone() for c in (network.centred, network.centred_patches))
    images, count = random_images(module, network), 3
    loss, _ = seeded(network, images)
    torch.manual_seed(1)
    taught, seen, small, hidden = both_sides(network, images)
    head, slow = network.head, network.target[1]
    image, patch, means = [], [], []
    slow_images, fast_images = slow(mean_tokens(taught)), guessed_images(head, seen, small)
    for t, n in itertools.product(range(2), range(count)):
        known = softmax(slow_images[t * count + n] - centre, 0.04)
        others = [v for v in range(len(fast_images)) if v != t]
        image += [cross_entropy(known, softmax(fast_images[v][n], 0.1)) for v in others]
    slow_patches, fast_patches = at_hidden(slow, taught, hidden), at_hidden(head, seen, hidden)
    for outputs, others, mask in zip(slow_patches, fast_patches, hidden, strict=True):
        places = mask.nonzero()[:, 0]
        known = [softmax(row - centre_patches, 0.07) for row in outputs]
        guess = [softmax(row, 0.1) for row in others]
        losses = [cross_entropy(k, g) for k, g in zip(known, guess, strict=True)]
        patch.append(sum(losses) / max(1, len(losses)))
        means += [outputs.mean(0)] if len(places) else []
    expected = sum(image) / len(image) + sum(patch) / len(patch)
    assert loss.item() == pytest.approx(expected, rel=1e-3)
    assert len(image) == 2 * count * 3 and len(means) == count
    # at momentum 0 the centre is the mean of this batch
    assert torch.allclose(network.centred_patches.centre, torch.stack(means).mean(0), atol=1e-5)


def sinkhorn(scores: torch.Tensor, temperature: float, rounds: int) -> torch.Tensor:
    """As in the published listing: rows are prototypes, and Q sums to 1."""
    q = torch.exp(scores.double() / temperature).T
    q = q / q.sum()
    prototypes, count = q.shape
    for _ in range(rounds):
        q = q / q.sum(1, keepdim=True) / prototypes
        q = q / q.sum(0, keepdim=True) / count
    return (q * count).T


def test_prototypes_are_balanced_as_in_sinkhorn_and_knopp() -> None:
    module, _ = built("dino-v2")
    torch.manual_seed(0)
    scores = torch.rand(12, 4) * 1.5 - 1
    scores[:, 0] += 0.5  # one prototype is dearest to all
    found = module.balanced(scores, torch.tensor(0.07), 3)
    assert torch.allclose(found.double(), sinkhorn(scores, 0.07, 3), atol=1e-5)
    assert torch.allclose(found.sum(1), torch.ones(12), atol=1e-5)
    even = module.balanced(scores, torch.tensor(0.07), 200)
    assert torch.allclose(even.sum(0), torch.full((4,), 3.0), atol=1e-2)
    assert module.balanced(scores, torch.tensor(0.01), 3).isfinite().all()


def test_koleo_is_its_equation() -> None:
    _, network = built("dino-v2")
    torch.manual_seed(0)
    x = torch.randn(6, 4)
    unit, total = x / x.norm(dim=1, keepdim=True), 0.0
    for i in range(6):
        nearest = min((unit[i] - unit[j]).norm().item() for j in range(6) if j != i)
        total -= math.log(nearest) / 6
    assert network.spread(x).item() == pytest.approx(total, rel=1e-4)
    assert network.spread(torch.ones(4, 3)).isfinite()  # however alike they are


def test_dino_v2_is_its_equations() -> None:
    module, network = built("dino-v2", koleo_weight=0.3)
    with torch.no_grad():
        network.hidden_token.normal_()
    images, count = random_images(module, network), 3
    loss, _ = seeded(network, images)
    torch.manual_seed(1)
    taught, seen, small, hidden = both_sides(network, images)
    _, slow, slow_patches = network.target
    known = sinkhorn(slow(torch.stack([t.mean(0) for t in taught])), 0.04, 3)
    image, guessed = [], guessed_images(network.head, seen, small)
    for t, n in itertools.product(range(2), range(count)):
        for v in range(len(guessed)):
            if v != t:
                guess = softmax(guessed[v][n], 0.1)
                image.append(cross_entropy(known[t * count + n].tolist(), guess))
    rows = torch.cat(at_hidden(slow_patches, taught, hidden))
    known, patch = iter(sinkhorn(rows, 0.04, 3)), []
    for others in at_hidden(network.patch_head, seen, hidden):
        guess = [softmax(row, 0.1) for row in others]
        losses = [cross_entropy(next(known).tolist(), g) for g in guess]
        patch.append(sum(losses) / max(1, len(losses)))
    features = torch.stack([tokens.mean(0) for tokens in seen]).chunk(2)
    spread = sum(network.spread(view) for view in features).item()
    expected = sum(image) / len(image) + sum(patch) / len(patch) + 0.3 * spread
    assert loss.item() == pytest.approx(expected, rel=1e-3)


@TAUGHT
def test_the_teacher_learns_from_nothing_but_the_student(method) -> None:
    module, network = built(method, ema_start=0.9)
    images = random_images(module, network)
    network(images)[0].backward()
    assert all(p.grad is None for p in network.target.parameters())
    online = [p for n, p in network.named_parameters() if not n.startswith(("target.", "hidden"))]
    with torch.no_grad():
        for p in online:
            p.add_(1.0)
    before = [p.clone() for p in network.target.parameters()]
    assert len(before) == len(online)
    network.after_step(0.0)
    for old, new, p in zip(before, network.target.parameters(), online, strict=True):
        assert torch.allclose(new - old, 0.1 * (p - old), atol=1e-5)
    before = [p.clone() for p in network.target.parameters()]
    network.after_step(1.0)  # at the end nothing moves
    assert all(torch.equal(a, b) for a, b in zip(before, network.target.parameters()))


@TAUGHT
def test_the_teacher_warms_up(method) -> None:
    _, network = built(
        method, teacher_temperature_start=0.02, teacher_temperature=0.08, temperature_warmup=0.5
    )
    assert network.temperature.item() == pytest.approx(0.02)
    for progress, expected in ((0.0, 0.02), (0.25, 0.05), (0.5, 0.08), (0.9, 0.08)):
        network.after_step(progress)
        assert network.temperature.item() == pytest.approx(expected)
    assert "temperature" in network.state_dict()  # so that a resumed run goes on alike


@TAUGHT
def test_prototypes_stand_still_at_first(method) -> None:
    _, network = built(method, frozen_share=0.1)
    heads = [head for name, head in network.named_children() if name.endswith("head")]
    assert len(heads) == (2 if method == "dino-v2" else 1)
    for progress, moved in ((0.05, False), (0.1, False), (0.11, True)):
        for head in heads:
            head.prototypes.data.add_(0.5)
        network.after_step(progress)
        for head in heads:
            assert torch.equal(head.prototypes, head.first_prototypes) is not moved


@TAUGHT
@pytest.mark.parametrize("crops", [0, 1, 3])
def test_any_number_of_small_views_will_do(method, crops) -> None:
    module, network = built(method, local_crops=crops)
    images = random_images(module, network)
    loss, features = network(images)
    loss.backward()
    assert loss.isfinite() and features.shape == (3, 16) and not features.requires_grad
    assert ("small view" in network.pictures(images)) == (crops > 0)


@BOTH
def test_small_crops_are_as_small_as_they_should_be_and_lie_inside(dimensionality) -> None:
    module, _ = built("dino", dimensionality)
    chosen = settings(module, rotate_degrees=0.0, flip_axes=())
    side, dims = module.region(chosen), module.DIMS
    axes = torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * dims, indexing="ij")
    images = torch.stack(axes).expand(40, -1, *[-1] * dims)  # each channel a coordinate
    torch.manual_seed(0)
    crops = module.small_crop(images, (0.1, 0.4), 0.5, chosen)
    assert crops.shape == (40, dims, *[16] * dims)
    extent = [crops.select(2 + a, -1)[:, a] - crops.select(2 + a, 0)[:, a] for a in range(dims)]
    wide = torch.stack([e.flatten(1).mean(1) for e in extent], 1) * 16 / 15
    area = (wide * side / chosen.size).prod(1)
    assert 0.09 < area.min() < 0.2 and 0.3 < area.max() < 0.41
    assert crops.min() > 0 and crops.flatten(2).amin(2).min() < 0.1 < 0.9 < crops.max()


@TAUGHT
def test_what_is_watched_shows_a_collapse(method) -> None:
    module, network = built(method)
    images = random_images(module, network, 4)
    least = network.settings.collapse_spread
    assert network.can_collapse and module.health(network(images)[1])[0] > 10 * least
    with torch.no_grad():  # all images get the same features
        for part in (network.encoder, network.target[0]):
            part.net.norm.weight.zero_()
    for _ in range(2):
        watched = network(images)[1]
    assert module.health(watched)[0] < least


def striped(count: int, side: int) -> torch.Tensor:
    """Faint stripes in strong noise, by turns lying and upright."""
    draw = torch.Generator().manual_seed(0)
    pace, start, height = torch.rand(3, count, 1, 1, generator=draw)
    down = torch.arange(side)[:, None].expand(side, side)
    waves = torch.sin(down * (0.5 + 0.4 * pace) + 6 * start) * (0.08 + 0.08 * height)
    waves[1::2] = waves[1::2].mT
    noise = 0.24 * torch.randn(count, side, side, generator=draw)
    return (0.5 + waves + noise).clamp(0, 1)[:, None]


@pytest.mark.parametrize("method", ["dino", "ibot"])
def test_the_teacher_does_not_come_to_say_the_same_of_every_image(method) -> None:
    """A loss at the logarithm of the number of prototypes is that of a teacher that is stuck."""
    module = script(method, "xray", "classification", "2d", backbone="vit")
    sizes = {"out_dim": 256, "bottleneck_dim": 64, "hidden_dim": 128, "local_crops": 0}
    chosen = settings(module, **sizes, ema_start=0.97)
    torch.manual_seed(0)
    network, steps, losses = module.Method(chosen).train(), 80, []
    images, optimizer = (
        striped(256, module.region(chosen)),
        module.optimizer_of(network, chosen.weight_decay, chosen),
    )
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 15)
        loss, features = network(images[torch.randint(256, (32,))])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), chosen.clip_norm)
        optimizer.step()
        network.after_step((step + 1) / steps)
        losses.append(loss.item())
    # of iBOT's views every other one has hidden patches, and a loss of those beside the image's
    stuck = math.log(chosen.out_dim) * {"dino": 1.0, "ibot": 1.5}[method]
    assert sum(losses[-20:]) / 20 < 0.995 * stuck
    assert module.health(features)[0] > 5 * chosen.collapse_spread


# blocks of a U-Net


def test_a_unet_rebuilds_hidden_blocks_from_the_others() -> None:
    module = script("mae", "mri", "segmentation", "3d", "cnn")
    network = module.Method(settings(module, size=32, mask_block=16, mask_ratio=0.5)).train()
    images = random_images(module, network, 2)
    loss, features = seeded(network, images)
    crops, hidden = seeded(network.masked, images)
    shares = torch.nn.functional.avg_pool3d(hidden.float(), 16).flatten(1)
    assert shares.sort(1)[0].tolist() == 2 * [[0.0] * 4 + [1.0] * 4]
    visible = torch.where(hidden, 0, crops)
    found = network.rebuild(visible, network.encoder(visible))
    # the mean over hidden voxels of each image, then over images
    each = [(found[n] - crops[n])[hidden[n]].square().mean() for n in range(2)]
    assert loss.item() == pytest.approx((sum(each) / 2).item(), rel=1e-4)
    assert features.shape == (2, network.encoder.width)
    # nothing of a hidden block gets in
    others = network.rebuilt(crops + 5 * hidden, hidden)[0]
    assert torch.equal(others, network.rebuilt(crops, hidden)[0])
