"""Non-contrastive and predictive methods, each against its paper's equation in plain loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from emitted import built, random_images, script, seeded, settings
from torch import nn

METHODS = {
    "byol": "2d 3d",
    "simsiam": "2d 3d",
    "barlow-twins": "2d 3d",
    "vicreg": "2d 3d",
    "i-jepa": "2d 3d",
    "rotation": "2d 3d",
    "jigsaw": "2d 3d",
    "relative-position": "2d 3d",
    "rubiks-cube": "3d",
}
BOTH = pytest.mark.parametrize("dimensionality", ["2d", "3d"])


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def chance_of(logits: torch.Tensor, label: int) -> float:
    """Softmax of one row, as it is written in a book."""
    powers = [math.exp(v) for v in logits.tolist()]
    return powers[label] / sum(powers)


@pytest.mark.parametrize(
    ("method", "dimensionality"), [(m, d) for m, dims in METHODS.items() for d in dims.split()]
)
def test_pictures_show_every_image_and_change_nothing(method, dimensionality) -> None:
    module, network = built(method, dimensionality)
    images = random_images(module, network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    shown = network.pictures(images)
    assert len(shown) >= 2
    for name, picture in shown.items():
        assert picture.shape[:2] == images.shape[:2] and picture.ndim == images.ndim, name
        assert not picture.requires_grad and picture.isfinite().all(), name
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "method", ["byol", "barlow-twins", "vicreg", "rotation", "jigsaw", "relative-position"]
)
def test_transformers_learn_by_it_too(method) -> None:
    module, network = built(method, backbone="vit", network_depth=3)
    loss, features = network(random_images(module, network, 4))
    loss.backward()
    assert loss.isfinite() and features.shape[1] > 1 and not features.requires_grad
    for name, weight in network.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, f"{name} gets no gradient"


# SimSiam


def test_simsiam_is_eq_4_and_the_other_view_gets_no_gradient() -> None:
    module, network = built("simsiam")
    images, weight = random_images(module, network), next(network.encoder.parameters())
    loss, _ = seeded(network, images)
    (found,) = torch.autograd.grad(loss, weight)
    gradients = {}
    for stopped in (True, False):
        first, second = (
            network.projector(network.encoder.embed(v)) for v in seeded(network.views, images)
        )
        total = 0.0
        for z, other in ((first, second), (second, first)):
            p = network.predictor(z)
            for row, target in zip(p, other):
                total = total - cosine(row, target.detach() if stopped else target) / 2 / len(p)
        assert loss.item() == pytest.approx(1 + total.item(), abs=1e-5)
        (gradients[stopped],) = torch.autograd.grad(total, weight)
    assert (found - gradients[True]).norm() < 1e-4 * found.norm()
    assert (found - gradients[False]).norm() > 0.01 * found.norm()


def test_simsiam_heads_have_the_shape_of_the_paper() -> None:
    _, network = built("simsiam", projection_dim=24, hidden_dim=6)
    widths = [layer.out_features for layer in network.projector if isinstance(layer, nn.Linear)]
    assert widths == [24, 24, 24]
    last = network.projector[-1]  # batch norm that learns no scale, and no ReLU after
    assert isinstance(last, nn.modules.batchnorm._BatchNorm)
    assert not any(weight.requires_grad for weight in last.parameters())
    narrow = [layer.out_features for layer in network.predictor if isinstance(layer, nn.Linear)]
    assert narrow == [6, 24]


# Barlow Twins and VICReg

CORNERS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


def test_barlow_twins_is_eq_1_and_2() -> None:
    _, network = built("barlow-twins", redundancy_weight=0.3)
    torch.manual_seed(2)
    a, b = torch.randn(2, 6, 4, dtype=torch.float64) + 3
    total = 0.0
    for i, j in itertools.product(range(4), range(4)):
        x, y = a[:, i] - a[:, i].mean(), b[:, j] - b[:, j].mean()
        correlation = float(cosine(x, y))
        total += (1 - correlation) ** 2 if i == j else 0.3 * correlation**2
    assert network.loss(a, b).item() == pytest.approx(total, rel=1e-4)
    assert network.loss(a, 5 * a + 7).item() == pytest.approx(network.loss(a, a).item(), rel=1e-4)


def test_barlow_twins_by_hand() -> None:
    _, network = built("barlow-twins", redundancy_weight=0.5)
    assert network.loss(CORNERS, CORNERS).item() == pytest.approx(0, abs=1e-6)
    # features exchanged: nothing on the diagonal, all beside it
    swapped = network.loss(CORNERS, CORNERS.flip(1))
    assert swapped.item() == pytest.approx(2 + 0.5 * 2, rel=1e-4)


def test_vicreg_is_eq_1_to_6() -> None:
    weights = {"invariance_weight": 3.0, "variance_weight": 5.0, "covariance_weight": 7.0}
    _, network = built("vicreg", **weights)
    torch.manual_seed(3)
    a, b = 0.7 * torch.randn(2, 6, 4, dtype=torch.float64) + 1
    count, width = a.shape
    distance = sum(float(((x - y) ** 2).sum()) for x, y in zip(a, b)) / count / width
    floor, together = 0.0, 0.0
    for z in (a, b):
        mean = [sum(float(row[j]) for row in z) / count for j in range(width)]
        for i, j in itertools.product(range(width), range(width)):
            shared = sum(float(r[i] - mean[i]) * float(r[j] - mean[j]) for r in z) / (count - 1)
            if i == j:
                floor += max(0.0, 1 - math.sqrt(shared + 1e-4)) / width / 2
            else:
                together += shared**2 / width
    expected = 3 * distance + 5 * floor + 7 * together
    assert floor > 0
    assert network.loss(a, b).item() == pytest.approx(expected, rel=1e-6)


def test_vicreg_by_hand() -> None:
    weights = {"invariance_weight": 2.0, "variance_weight": 3.0, "covariance_weight": 4.0}
    _, network = built("vicreg", **weights)
    assert network.loss(CORNERS, CORNERS).item() == pytest.approx(0, abs=1e-6)
    alike = torch.ones(4, 2)  # no variance at all: the floor is missed by 1 - sqrt(0.0001)
    assert network.loss(alike, alike).item() == pytest.approx(3 * 0.99, rel=1e-5)
    assert network.loss(CORNERS, CORNERS + 1).item() == pytest.approx(2, rel=1e-5)
    double = CORNERS[:, [0, 0]]  # two features that are one: covariance 4/3 beside the diagonal
    assert network.loss(double, double).item() == pytest.approx(4 * 2 * (4 / 3) ** 2, rel=1e-5)


# I-JEPA


@BOTH
def test_jepa_blocks_are_boxes_and_the_context_keeps_out_of_them(dimensionality) -> None:
    module, network = built("i-jepa", dimensionality, size=64, target_blocks=3)
    dims, grid = module.DIMS, network.encoder.grid
    images = torch.zeros(6, 1, *[64] * dims)
    sides = sorted(network.target_sides.tolist())
    shapes, corners = set(), set()
    for seed in range(3):
        torch.manual_seed(seed)
        context, targets = network.split(images)
        assert targets.shape == (6, 3, math.prod(sides)) and context.shape == (6, network.context)
        for seen, blocks in zip(context.tolist(), targets.tolist()):
            assert len(set(seen)) == len(seen)
            assert not set(seen) & {token for block in blocks for token in block}
            for block in blocks:
                places = [
                    [token // grid**axis % grid for axis in reversed(range(dims))]
                    for token in block
                ]
                ends = [(min(along), max(along)) for along in zip(*places)]
                box = itertools.product(*(range(low, high + 1) for low, high in ends))
                assert sorted(map(tuple, places)) == sorted(box)  # filled without gaps
                lengths = tuple(high - low + 1 for low, high in ends)
                assert sorted(lengths) == sides
                shapes.add(lengths)
                corners.add(tuple(low for low, _ in ends))
    assert len(corners) > 4
    assert len(shapes) == len(set(itertools.permutations(sides)))  # every way to lie


def test_jepa_sees_the_context_only(monkeypatch) -> None:
    module, network = built("i-jepa")
    monkeypatch.setattr(module, "crop", lambda images, settings: images)
    images, side = random_images(module, network), network.settings.patch_size
    context, _ = seeded(network.split, images)
    shown = torch.zeros(len(images), network.encoder.grid**2).scatter(1, context, 1)
    shown = shown.view(-1, 1, *[network.encoder.grid] * 2)
    shown = shown.repeat_interleave(side, 2).repeat_interleave(side, 3)
    given = []  # to the predictor
    network.enter.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    outside = torch.where(shown > 0, images, 1 - images)
    for changed in (images, outside, torch.where(shown > 0, 1 - images, images)):
        seeded(network, changed)
    assert torch.allclose(given[0], given[1], atol=1e-6)
    assert not torch.allclose(given[0], given[2], atol=1e-3)
    picture = seeded(network.pictures, images)["context"]
    assert torch.equal(picture, images * shown)


def test_jepa_loss_block_by_block(monkeypatch) -> None:
    module, network = built("i-jepa", target_blocks=2)
    monkeypatch.setattr(module, "crop", lambda images, settings: images)
    with torch.no_grad():  # a target encoder that has fallen behind
        for weight in network.target.parameters():
            weight.mul_(0.9)
    images = random_images(module, network)
    loss, _ = seeded(network, images)
    context, targets = seeded(network.split, images)
    total, terms = 0.0, 0
    with torch.no_grad():
        for image, seen, blocks in zip(images, context, targets):
            tokens = network.encoder.net.patch_embedding(image[None])[:, seen]
            for block in network.encoder.net.blocks:
                tokens = block(tokens)
            tokens = network.encoder.net.norm(tokens)
            truth = network.target.net(image[None])[0][0]
            for asked in blocks:
                known = network.enter(tokens) + network.position[seen]
                queries = network.query + network.position[asked][None]
                answer = network.predictor(torch.cat([known, queries], 1))[0, len(seen) :]
                for guess, token in zip(network.leave(answer), asked):
                    right = truth[token]
                    right = (right - right.mean()) / (right.var(correction=0) + 1e-5).sqrt()
                    away = (guess - right).abs()
                    total += torch.where(away < 1, away**2 / 2, away - 0.5).sum().item()
                    terms += len(right)
    assert loss.item() == pytest.approx(total / terms, rel=1e-4)


def test_jepa_target_follows_and_gets_no_gradient() -> None:
    module, network = built("i-jepa", ema_start=0.8)
    network(random_images(module, network))[0].backward()
    assert all(weight.grad is None for weight in network.target.parameters())
    weight, slow = next(network.encoder.parameters()), next(network.target.parameters())
    with torch.no_grad():
        weight += 1
    before = slow.clone()
    network.after_step(0.5)  # halfway from 0.8 to 1
    assert torch.allclose(slow - before, 0.1 * (weight - before), atol=1e-6)
    before = slow.clone()
    network.after_step(1.0)
    assert torch.equal(slow, before)


def test_jepa_says_when_no_context_is_left(capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        built("i-jepa", target_scale=0.6)
    assert stopped.value.code == 2
    assert "target_blocks: they may cover the whole image" in capsys.readouterr().err


# Rotation


@BOTH
def test_rotation_names_the_turn(dimensionality) -> None:
    module = script("rotation", "mri", "classification", dimensionality, backbone="cnn")
    # settings that would turn and flip the image itself must not reach the task
    chosen = settings(module, min_scale=1.0, flip_axes=(0, 1), rotate_degrees=90.0)
    torch.manual_seed(0)
    network = module.Method(chosen)
    images = random_images(module, network)
    turned, which = network.turned(images)
    assert turned.shape == (3, 4, *images.shape[1:])
    for image, copies, numbers in zip(images, turned, which.tolist()):
        assert len(set(numbers)) == 4
        for copy, number in zip(copies, numbers):
            quarters, plane = network.TURNS[number]
            back = torch.rot90(copy, -quarters, [axis - 1 for axis in plane])
            assert torch.allclose(back, image, atol=1e-5)


@pytest.mark.parametrize(("dimensionality", "count"), [("2d", 4), ("3d", 10)])
def test_rotation_tells_so_many_turns_apart(dimensionality, count) -> None:
    module, network = built("rotation", dimensionality, copies=2)
    image = random_images(module, network, 1)
    kinds = {tuple(torch.rot90(image, k, p).flatten().tolist()) for k, p in network.TURNS}
    assert len(kinds) == len(network.TURNS) == network.head.out_features == count
    images = random_images(module, network)
    loss, features = seeded(network, images)
    turned, which = seeded(network.turned, images)
    assert turned.shape[1] == 2 and len(features) == 6
    guesses = network.head(network.encoder.embed(turned.flatten(0, 1)))
    chances = [chance_of(row, y) for row, y in zip(guesses, which.flatten().tolist())]
    expected = -sum(map(math.log, chances)) / len(chances)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


# Tiles and their orders


@BOTH
def test_tiles_lie_in_their_cells_and_tell_nothing_else(dimensionality) -> None:
    module, _ = built("jigsaw", dimensionality)
    dims, grid, cell = module.DIMS, 2, 10
    torch.manual_seed(0)
    images = torch.rand(2, 3, *[cell * grid] * dims)
    cut = module.tiles(images, grid, 0.3, 0.1)  # side 7, shifts of 0, 1 or 2 around the middle
    assert cut.shape == (2, grid**dims, 3, *[7] * dims)
    starts = set()
    for image, own in zip(images.mean(1), cut):
        for corner, tile in zip(itertools.product(range(grid), repeat=dims), own):
            assert torch.equal(tile[0], tile[1]) and torch.equal(tile[0], tile[2])
            assert tile.mean().item() == pytest.approx(0.5, abs=1e-4)
            assert tile[0].std(correction=0).item() == pytest.approx(0.25, rel=1e-2)
            fits = []
            for shift in itertools.product(range(4), repeat=dims):
                place = [slice(c * cell + s, c * cell + s + 7) for c, s in zip(corner, shift)]
                there = image[tuple(place)]
                there = (there - there.mean()) / there.std(correction=0)
                tile_there = (tile[0] - 0.5) * 4
                if (there - tile_there).abs().max() < 0.02:
                    fits.append(shift)
            assert len(fits) == 1
            starts.update(fits[0])
    assert starts == {0, 1, 2}
    still = module.tiles(images, grid, 0.3, 0.0)
    assert torch.equal(still, module.tiles(images, grid, 0.3, 0.0))


@BOTH
def test_a_mosaic_puts_tiles_back(dimensionality) -> None:
    module, _ = built("jigsaw", dimensionality)
    images = torch.rand(2, 1, *[6] * module.DIMS)
    whole = module.tiles(images, 1, 0.0, 0.0)
    assert torch.equal(module.mosaic(whole, 1), whole[:, 0])
    cut = torch.arange(2.0**module.DIMS).view(1, -1, 1, *[1] * module.DIMS)
    # tiles of one pixel, counted row by row
    assert module.mosaic(cut, 2).flatten().tolist() == list(range(2**module.DIMS))
    wide = module.mosaic(cut.expand(-1, -1, 3, *[2] * module.DIMS), 2)
    assert wide.shape == (1, 3, *[4] * module.DIMS)
    corners = wide[(0, 0, *[slice(None, None, 2)] * module.DIMS)]
    assert corners.flatten().tolist() == list(range(2**module.DIMS))


def test_brightness_and_contrast_of_a_tile_are_gone() -> None:
    module, _ = built("jigsaw")
    images = torch.rand(2, 1, 20, 20)
    first, second = (
        seeded(module.tiles, changed, 2, 0.2, 0.1) for changed in (images, 0.6 * images + 0.3)
    )
    assert torch.allclose(first, second, atol=2e-3)


def test_orders_are_permutations_far_from_each_other() -> None:
    module, _ = built("jigsaw")
    orders = module.distant_permutations(100, 9)
    assert torch.equal(orders, module.distant_permutations(100, 9))
    assert (orders.sort(1)[0] == torch.arange(9)).all()
    apart = (orders[:, None] != orders).sum(2) + 9 * torch.eye(100, dtype=torch.long)
    torch.manual_seed(0)
    drawn = torch.rand(100, 9).argsort(1)
    by_chance = (drawn[:, None] != drawn).sum(2) + 9 * torch.eye(100, dtype=torch.long)
    assert apart.min() >= 6 > by_chance.min()
    # greedy: no later choice was farther from what was taken before than the one that was made
    nearest = [min(int((orders[n] != o).sum()) for o in orders[:n]) for n in range(1, 100)]
    assert nearest == sorted(nearest, reverse=True)


def test_there_are_no_more_orders_than_there_are(capsys) -> None:
    module, _ = built("jigsaw")
    assert len({tuple(order) for order in module.distant_permutations(24, 4).tolist()}) == 24
    with pytest.raises(SystemExit) as stopped:
        module.distant_permutations(25, 4)
    assert stopped.value.code == 2
    assert "there are only 24 orders of 4 tiles" in capsys.readouterr().err


@BOTH
def test_jigsaw_shuffles_by_the_order_that_it_asks_for(dimensionality, monkeypatch) -> None:
    module, network = built("jigsaw", dimensionality, grid=2)
    # the same cuts whatever is drawn after them
    monkeypatch.setattr(module, "upright", lambda x, s: x[(..., *[slice(s.size)] * module.DIMS)])
    images = random_images(module, network)
    gap, crops = network.settings.gap, module.upright(images, network.settings)
    cut = seeded(module.tiles, crops, 2, gap, gap / 2)
    shuffled, which = seeded(network.shuffled, crops)
    for own, tiles, number in zip(shuffled, cut, which):
        for position, original in enumerate(network.orders[number].tolist()):
            assert torch.equal(own[position], tiles[original])
    loss, features = seeded(network, images)
    assert features.shape == (3 * 2**module.DIMS, network.encoder.width)
    rows = [torch.cat([network.encoder.embed(t[None])[0] for t in own]) for own in shuffled]
    chances = [chance_of(network.head(row), int(y)) for row, y in zip(rows, which)]
    assert loss.item() == pytest.approx(-sum(map(math.log, chances)) / 3, rel=1e-3)


@BOTH
def test_relative_position_pairs_the_middle_with_each_side(dimensionality, monkeypatch) -> None:
    module, network = built("relative-position", dimensionality)
    dims, total = module.DIMS, 3**module.DIMS
    seen = []

    class Head(nn.Module):
        def forward(self, pairs):
            seen.append(pairs)
            return torch.eye(total - 1).expand(len(pairs), -1, -1) * 50

    network.head = Head()
    # every patch is known by its number, row by row
    monkeypatch.setattr(network.encoder, "embed", lambda x: torch.arange(len(x))[:, None] % total)
    loss, _ = network(random_images(module, network))
    assert loss.item() == pytest.approx(0, abs=1e-6)  # what the head says is right
    sides = [s for s in itertools.product((-1, 0, 1), repeat=dims) if any(s)]
    assert seen[0].shape == (3, len(sides), 2) and len(sides) in (8, 26)
    for image in seen[0].tolist():
        for (middle, other), side in zip(image, sides):
            assert middle == total // 2
            assert other - middle == sum(s * 3**n for n, s in enumerate(reversed(side)))


@BOTH
def test_relative_position_is_a_mean_over_pairs(dimensionality) -> None:
    module, network = built("relative-position", dimensionality)
    images = random_images(module, network, 2)
    loss, _ = seeded(network, images)
    total = []
    patches = seeded(lambda: network.patches(module.upright(images, network.settings)))
    for own in patches:
        rows = [network.encoder.embed(patch[None])[0] for patch in own]
        middle = rows.pop(len(rows) // 2)
        for side, row in enumerate(rows):
            total.append(-math.log(chance_of(network.head(torch.cat([middle, row])), side)))
    assert loss.item() == pytest.approx(sum(total) / len(total), rel=1e-3)


# Rubik's cube


def test_the_cube_can_be_solved() -> None:
    module, network = built("rubiks-cube", "3d", mask_ratio=0.0)
    size, gap = network.settings.size, network.settings.gap
    crops = random_images(module, network)[..., :size, :size, :size]
    cut = seeded(module.tiles, crops, 2, gap, gap / 2)
    cubes, which, changes = seeded(network.scrambled, crops)
    assert 0 < changes.float().mean() < 1
    for own, solved, number, change in zip(cubes, cut, which, changes):
        for position, original in enumerate(network.orders[number].tolist()):
            cube = own[position]
            if change[1, position]:
                cube = torch.rot90(cube, 2, (2, 3))
            if change[0, position]:
                cube = torch.rot90(cube, 2, (1, 2))
            assert torch.equal(cube, solved[original])


def test_the_cube_is_masked_where_it_says() -> None:
    module, network = built("rubiks-cube", "3d", mask_ratio=0.7)
    cubes, _, changes = seeded(network.scrambled, random_images(module, network, 4))
    hidden = (cubes == 0).flatten(2).float().mean(2)
    assert 0 < changes[:, 2].float().mean() < 1
    assert (hidden[~changes[:, 2]] < 0.01).all()
    assert ((hidden[changes[:, 2]] - 0.7).abs() < 0.1).all()


def test_the_cube_has_three_losses() -> None:
    module, network = built("rubiks-cube", "3d")
    images = random_images(module, network)
    loss, _ = seeded(network, images)
    cubes, which, changes = seeded(
        lambda: network.scrambled(module.upright(images, network.settings))
    )
    order, kinds = 0.0, [0.0, 0.0, 0.0]
    for own, number, change in zip(cubes, which, changes):
        row = torch.cat([network.encoder.embed(cube[None])[0] for cube in own])
        order -= math.log(chance_of(network.order_head(row), int(number))) / 3
        guesses = network.change_head(row).view(3, 8)
        for kind, position in itertools.product(range(3), range(8)):
            chance = 1 / (1 + math.exp(-guesses[kind, position].item()))
            right = chance if change[kind, position] else 1 - chance
            kinds[kind] -= math.log(right) / 8 / 3
    assert loss.item() == pytest.approx(order + sum(kinds), rel=1e-3)
