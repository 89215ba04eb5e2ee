"""The losses of scripts against those of lightly (MIT), which others wrote: values and gradients.

Other tests hold a loss to our reading of its paper; these hold that reading to someone else's.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from emitted import built, random_images, script, seeded
from torch import nn
from torch.nn.functional import normalize

SHAPES = pytest.mark.parametrize(("count", "width"), [(2, 3), (5, 16), (32, 7)])
TEMPERATURES = pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])


@pytest.fixture(scope="module")
def lightly() -> ModuleType:
    """The package, with its losses and what belongs to them.

    lightly imports two operators of torchvision, which it uses in no loss that is asked for here.
    Releases of torchvision go with one build of torch each, so that it may be missing; stand-ins
    are there for the import alone.
    """
    pytest.importorskip("lightly", reason="lightly is missing: `make test` installs it")
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("torchvision") is None:
            operators = ModuleType("torchvision.ops")
            operators.roi_align = operators.StochasticDepth = None
            patch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
            patch.setitem(sys.modules, "torchvision.ops", operators)
        for name in ("loss", "models.utils", "utils.scheduler"):
            importlib.import_module(f"lightly.{name}")
    return sys.modules["lightly"]


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Double precision everywhere; scripts leave half precision by `float`, which would round."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).requires_grad_()


def agree(ours: torch.Tensor, theirs: torch.Tensor, inputs: Iterable[torch.Tensor]) -> None:
    """As numbers, and in which inputs get a gradient and in all of it."""
    torch.testing.assert_close(ours, theirs.view_as(ours), rtol=1e-10, atol=0)
    inputs = [x for x in inputs if x.requires_grad]
    found, expected = (
        torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
        for loss in (ours, theirs)
    )
    assert [g is None for g in found] == [g is None for g in expected]
    found, expected = (
        torch.cat([g.flatten() for g in gradients if g is not None])
        for gradients in (found, expected)
    )
    assert expected.norm() > 0
    assert (found - expected).norm() < 1e-10 * expected.norm()


def moved(network: nn.Module) -> None:
    """Slow copies, and tokens that start at 0, get values of their own."""
    names = ("target", "hidden_token")
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.startswith(names):
                weight.add_(0.05 * torch.randn_like(weight))


def with_bank(lightly: ModuleType, queue: torch.Tensor, temperature: float) -> nn.Module:
    """MoCo's loss, with this queue; lightly would begin with another one, in single precision."""
    loss = lightly.loss.NTXentLoss(temperature, memory_bank_size=tuple(queue.shape))
    loss.memory_bank.bank = queue.detach().clone()
    return loss


# contrastive losses


@SHAPES
@TEMPERATURES
def test_nt_xent(lightly, count, width, temperature) -> None:
    module = script("simclr", "mri", "segmentation")
    a, b = drawn(count, width), drawn(count, width, seed=1)
    ours = module.nt_xent(normalize(torch.cat([a, b])), temperature)
    agree(ours, lightly.loss.NTXentLoss(temperature)(a, b), (a, b))


def test_simclr(lightly) -> None:
    module, network = built("simclr")
    images = random_images(module, network)
    views = seeded(network.views, images)
    a, b = network.head(network.encoder.embed(torch.cat(views))).chunk(2)
    theirs = lightly.loss.NTXentLoss(network.settings.temperature)(a, b)
    agree(seeded(network, images)[0], theirs, network.parameters())


@SHAPES
@TEMPERATURES
def test_info_nce(lightly, count, width, temperature) -> None:
    module = script("moco-v2", "mri", "segmentation")
    queries, keys, queue = drawn(count, width), drawn(count, width, seed=1), drawn(9, width, seed=2)
    queue = normalize(queue.detach())
    ours = module.info_nce(normalize(queries), normalize(keys), queue, temperature)
    agree(ours, with_bank(lightly, queue, temperature)(queries, keys), (queries, keys))


def test_moco_v2_until_its_queue_has_been_replaced_twice(lightly) -> None:
    # lightly drops the rest of a batch that goes beyond the end of its queue: here none does
    module, network = built("moco-v2", queue_size=6)
    moved(network)
    images = random_images(module, network)
    # lightly replaces its first rows first, a script its last ones
    loss = with_bank(lightly, network.queue.flip(0), network.settings.temperature)
    for step in range(5):
        first, second = seeded(network.views, images + step)
        encoder, head = network.target.networks
        queries = network.head(network.encoder.embed(first))
        theirs = loss(queries, head(encoder.embed(second)))
        agree(seeded(network, images + step)[0], theirs, network.parameters())


def in_batch(lightly: ModuleType, queries, keys, temperature: float) -> torch.Tensor:
    """MoCo v3 has no queue: to each query, the other keys of the batch are one.

    It multiplies by 2 t, which lightly has no loss for.
    """
    losses = []
    for n in range(len(keys)):
        queue = normalize(torch.cat([keys[:n], keys[n + 1 :]]))
        loss = with_bank(lightly, queue, temperature)
        losses.append(loss(queries[n : n + 1], keys[n : n + 1]))
    return 2 * temperature * sum(losses) / len(losses)


@SHAPES
@TEMPERATURES
def test_moco_v3_contrast(lightly, count, width, temperature) -> None:
    _, network = built("moco-v3", temperature=temperature)
    queries, keys = drawn(count, width), drawn(count, width, seed=1).detach()
    ours = network.contrast(normalize(queries), normalize(keys))
    agree(ours, in_batch(lightly, queries, keys, temperature), [queries])


def test_moco_v3(lightly) -> None:
    module, network = built("moco-v3")
    moved(network)
    images = random_images(module, network)
    views, (encoder, projector) = seeded(network.views, images), network.target
    queries = [network.predictor(network.projector(network.encoder.embed(v))) for v in views]
    keys = [projector(encoder.embed(v)).detach() for v in views]
    rate = network.settings.temperature
    theirs = sum(in_batch(lightly, q, k, rate) for q, k in zip(queries, keys[::-1]))
    agree(seeded(network, images)[0], theirs, network.parameters())


def test_dense_contrast(lightly) -> None:
    module, network = built("dense-contrast", dense_share=0.3)
    moved(network)
    images = random_images(module, network)
    first, second = seeded(network.views, images)
    encoder, whole, dense = network.target.networks
    places = network.encoder(first)[-1].flatten(2).mT
    others = encoder(second)[-1].flatten(2).mT
    rate, (of_images, of_places) = network.settings.temperature, network.queues
    of_image = with_bank(lightly, of_images, rate)(
        network.whole(places.mean(1)), whole(others.mean(1))
    )
    keys = lightly.models.utils.select_most_similar(places, others, dense(others))
    # in lightly's own recipe single places would enter the queue; in the paper, pooled ones
    of_place = with_bank(lightly, of_places, rate)(
        network.dense(places).flatten(0, 1), keys.flatten(0, 1)
    )
    agree(seeded(network, images)[0], 0.7 * of_image + 0.3 * of_place, network.parameters())


@SHAPES
@pytest.mark.parametrize("rounds", [1, 3, 10])
@pytest.mark.parametrize("epsilon", [0.03, 0.05, 0.5])
def test_swav_codes(lightly, count, width, rounds, epsilon) -> None:
    _, network = built("swav", projection_dim=width, epsilon=epsilon, sinkhorn_iterations=rounds)
    rows = normalize(drawn(count, width).detach())
    theirs = lightly.loss.swav_loss.sinkhorn(rows @ network.prototypes.T, rounds, epsilon)
    torch.testing.assert_close(network.codes(rows), theirs, rtol=1e-10, atol=1e-14)


def test_swav_with_its_queue(lightly) -> None:
    module, network = built("swav")
    images, chosen = random_images(module, network), network.settings
    loss = lightly.loss.SwaVLoss(chosen.temperature, chosen.sinkhorn_iterations, chosen.epsilon)
    for step in range(3):  # the queue holds random rows, then both kinds, then features alone
        views = torch.cat(seeded(network.views, images + step))
        rows = normalize(network.head(network.encoder.embed(views)))
        scores = (rows @ network.prototypes.T).chunk(2)
        queued = [queue @ network.prototypes.T for queue in network.queues]
        # lightly's is the mean over both views, the paper's (eq. 1) the sum
        theirs = 2 * loss(list(scores), [], queued)
        agree(seeded(network, images + step)[0], theirs, network.parameters())


# losses without negatives


@pytest.mark.parametrize("method", ["byol", "simsiam"])
def test_negative_cosine(lightly, method) -> None:
    module, network = built(method)
    moved(network)
    images = random_images(module, network)
    views = seeded(network.views, images)
    online = [network.projector(network.encoder.embed(view)) for view in views]
    fixed = online
    if method == "byol":
        encoder, projector = network.target
        fixed = [projector(encoder.embed(view)) for view in views]
    loss = lightly.loss.NegativeCosineSimilarity()
    both = sum(loss(network.predictor(z), x.detach()) for z, x in zip(online, fixed[::-1]))
    # BYOL's distance of unit vectors is 2 - 2 cos for each view; SimSiam's mean is raised to 0
    theirs = 4 + 2 * both if method == "byol" else 1 + both / 2
    agree(seeded(network, images)[0], theirs, network.parameters())


@SHAPES
@pytest.mark.parametrize("weight", [0.005, 0.3])
def test_barlow_twins(lightly, count, width, weight) -> None:
    _, network = built("barlow-twins", redundancy_weight=weight)
    a, b = 3 * drawn(count, width) + 1, drawn(count, width, seed=1)
    agree(network.loss(a, b), lightly.loss.BarlowTwinsLoss(weight)(a, b), (a, b))


@SHAPES
@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 2.0, 3.0)])
def test_vicreg(lightly, count, width, weights) -> None:
    names = ("invariance_weight", "variance_weight", "covariance_weight")
    _, network = built("vicreg", **dict(zip(names, weights)))
    a, b = 0.8 * drawn(count, width), drawn(count, width, seed=1)
    agree(network.loss(a, b), lightly.loss.VICRegLoss(*weights)(a, b), (a, b))


@pytest.mark.parametrize("method", ["barlow-twins", "vicreg"])
def test_redundancy_of_whole_networks(lightly, method) -> None:
    module, network = built(method)
    images, chosen = random_images(module, network), network.settings
    z = [network.projector(network.encoder.embed(v)) for v in seeded(network.views, images)]
    if method == "vicreg":
        weights = chosen.invariance_weight, chosen.variance_weight, chosen.covariance_weight
        loss = lightly.loss.VICRegLoss(*weights)
    else:
        loss = lightly.loss.BarlowTwinsLoss(chosen.redundancy_weight)
    agree(seeded(network, images)[0], loss(*z), network.parameters())


# self-distillation


def dino_loss(lightly: ModuleType, settings) -> nn.Module:
    return lightly.loss.DINOLoss(
        settings.out_dim,
        student_temp=settings.student_temperature,
        center_momentum=settings.center_momentum,
    )


@pytest.mark.parametrize("backbone", ["cnn", "vit"])
@pytest.mark.parametrize("crops", [0, 3])
def test_dino_and_its_centre(lightly, backbone, crops) -> None:
    changed = {"local_crops": crops, "center_momentum": 0.8, "teacher_temperature": 0.07}
    module, network = built("dino", backbone=backbone, **changed)
    moved(network)
    images, loss = random_images(module, network), dino_loss(lightly, network.settings)
    for step in range(3):
        large, small = seeded(network.views, images + step)
        encoder, head = network.target
        taught = head(encoder.embed(torch.cat(large))).detach().chunk(2)
        # the head normalises all views together
        embedded = torch.cat([network.encoder.embed(view) for view in (*large, *small)])
        seen = network.head(embedded).chunk(2 + crops)
        theirs = loss(taught, seen, network.temperature.item())
        agree(seeded(network, images + step)[0], theirs, network.parameters())
        torch.testing.assert_close(network.centred.centre, loss.center[0, 0])
        network.after_step((step + 1) / 30)  # within the warm-up of the temperature
    assert network.temperature > 0.045


def masks(alike: bool) -> torch.Tensor:
    """Which of 16 patches of six views are hidden; of one view none, unless all are alike."""
    counts = [5] * 6 if alike else [5, 1, 16, 0, 2, 9]
    order = torch.rand(6, 16, generator=torch.Generator().manual_seed(3)).argsort(1)
    return order < torch.tensor(counts)[:, None]


def outputs(count: int, seed: int) -> torch.Tensor:
    """Cosines with 16 prototypes."""
    return drawn(count, 16, seed=seed).tanh()


@pytest.mark.parametrize("alike", [True, False])
def test_ibot_patch_loss(lightly, alike) -> None:
    _, network = built("ibot", teacher_temperature_start=0.07)
    hidden, chosen = masks(alike), network.settings
    loss = lightly.loss.IBOTPatchLoss(
        chosen.out_dim,
        network.temperature.item(),
        chosen.student_temperature,
        center_momentum=chosen.center_momentum,
    )
    for step in range(3):
        taught, seen = (outputs(int(hidden.sum()), 2 * step + n) for n in range(2))
        ours = network.patch_loss(taught.detach(), seen, hidden)
        agree(ours, loss(taught.detach(), seen, hidden.view(6, 4, 4)), [seen])
        if alike:
            torch.testing.assert_close(network.centred_patches.centre, loss.center.value[0])
        else:  # a script's centre weighs views alike, as its loss does, lightly's all patches
            loss.center.center = network.centred_patches.centre[None].clone()


def known_as(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """What a teacher has to say for a loss that begins with softmax(x / temperature)."""
    return probabilities.log() * temperature


@pytest.mark.parametrize("method", ["ibot", "dino-v2"])
@pytest.mark.parametrize("views", [2, 5])
def test_image_loss(lightly, method, views) -> None:
    _, network = built(method)
    known, seen = outputs(6, 0).detach().softmax(1), outputs(3 * views, 1)
    chosen = network.settings
    loss = lightly.loss.DINOLoss(chosen.out_dim, student_temp=chosen.student_temperature)
    theirs = loss(known_as(known, 0.04).chunk(2), seen.chunk(views), 0.04)
    agree(network.image_loss(known.unflatten(0, (2, 3)), seen), theirs, [seen])


@pytest.mark.parametrize("temperature", [0.04, 0.07])
@pytest.mark.parametrize("rounds", [1, 3])
def test_dino_v2_patch_loss(lightly, temperature, rounds) -> None:
    """lightly has it with a centre only; balanced targets are those of its SwAV."""
    _, network = built("dino-v2", teacher_temperature_start=temperature, sinkhorn_iterations=rounds)
    hidden, chosen = masks(False), network.settings
    taught, seen = (outputs(int(hidden.sum()), n) for n in range(2))
    known = lightly.loss.swav_loss.sinkhorn(taught.detach(), rounds, temperature)
    torch.testing.assert_close(network.known(taught.detach()), known, rtol=1e-10, atol=1e-20)
    loss = lightly.loss.IBOTPatchLoss(chosen.out_dim, temperature, chosen.student_temperature)
    theirs = loss(known_as(known, temperature), seen, hidden.view(6, 4, 4))
    agree(network.patch_loss(taught.detach(), seen, hidden), theirs, [seen])


@SHAPES
def test_koleo(lightly, count, width) -> None:
    _, network = built("dino-v2")
    x = drawn(count, width)
    agree(network.spread(x), lightly.loss.KoLeoLoss()(x), [x])


def test_a_teacher_follows_along_a_cosine(lightly) -> None:
    module = script("byol", "mri", "segmentation")
    online, slow = nn.Linear(3, 4), nn.Linear(3, 4)
    ours, theirs = module.frozen(slow), module.frozen(slow)
    for step in range(5):
        module.follow(ours, online, start=0.9, progress=step / 4)
        rate = lightly.utils.scheduler.cosine_schedule(step, 5, 0.9, 1.0)
        lightly.models.utils.update_momentum(online, theirs[0], rate)
    for found, expected in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(found, expected)


# reconstruction


@pytest.mark.parametrize("channels", [1, 3])
def test_mae(lightly, channels) -> None:
    module, network = built("mae", channels=channels)
    images, side = random_images(module, network), network.settings.patch_size
    torch.manual_seed(1)
    crops = module.crop(images, network.settings)
    visible, hidden = network.drawn(crops)
    utils = lightly.models.utils
    target = utils.get_at_index(utils.patchify(crops, side), hidden[..., 0])
    target = utils.normalize_mean_var(target)
    found = network.rebuilt(network.encoded(crops, visible), visible, hidden)
    # channels come last in lightly's patches, and first in those of a script
    found = found.unflatten(2, (channels, -1)).mT.flatten(2)
    theirs = nn.MSELoss()(found, target)  # as in lightly's recipe, which has no class for it
    agree(seeded(network, images)[0], theirs, network.parameters())
