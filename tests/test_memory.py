"""What saves memory changes nothing else: activations computed again, batches in pieces."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from emitted import script, settings
from test_script_learning import DIFFERENT, module_for
from torch import nn

from advisor import recommend
from advisor.plan import make_plan


@pytest.mark.parametrize("method", ["mae", "byol", "spark", "swin-unetr"])
def test_activations_computed_again_give_the_same_gradients(method) -> None:
    module = module_for(method, "segmentation", "3d")
    small = {"size": 32} if method == "swin-unetr" else {}
    found = []
    for again in (0, 1):
        chosen = settings(module, recompute=again, **small)
        torch.manual_seed(0)
        network = module.Method(chosen).train()
        images = torch.rand(2, chosen.channels, *[module.region(chosen)] * 3)
        forgets = [b for b in network.modules() if "forward" in vars(b)]
        checkpoints = [b for b in network.modules() if getattr(b, "use_checkpoint", False)]
        assert bool(forgets or checkpoints) == bool(again)
        calls: Counter[nn.Module] = Counter()
        for layer in network.encoder.modules():
            if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
                layer.register_forward_hook(lambda layer, *_, calls=calls: calls.update([layer]))
        torch.manual_seed(1)
        loss, _ = network(images)
        before = calls.total()
        loss.backward()
        assert (calls.total() > 1.3 * before) == bool(again)  # layers run once more
        found.append([loss, *(p.grad for p in network.parameters() if p.requires_grad)])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_a_small_card_computes_volumes_again() -> None:
    for memory, wanted in ((8, 1), (40, 0)):
        profile = {"modality": "ct", "task": "segmentation", "gpu_memory_gb": memory}
        values = {s.name: s.value for s in make_plan(recommend(profile), "mae").settings}
        assert values["recompute"] == wanted


class Squares(nn.Module):
    """A loss that is a mean over images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(1.0, 4.0))
        self.sizes: list[int] = []

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.sizes.append(len(images))
        return (images @ self.weight).square().mean(), images


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 100])
def test_pieces_add_up_to_the_whole_batch(at_once: int) -> None:
    module = script("mae", "mri", "segmentation", "3d")
    images = torch.rand(7, 3, generator=torch.Generator().manual_seed(0))
    whole, network = Squares(), Squares()
    expected, _ = whole(images)
    expected.backward()
    loss, _ = module.backward(network, [images], settings(module, images_at_once=at_once))
    assert max(network.sizes) <= at_once and sum(network.sizes) == 7
    assert torch.allclose(loss, expected.detach())
    assert torch.allclose(network.weight.grad, whole.weight.grad)


def test_only_losses_of_single_images_may_be_cut() -> None:
    """What sums over the batch holds its images together, so its script has no such option."""
    for method, task, dimensionality in DIFFERENT:
        module = module_for(method, task, dimensionality)
        together = hasattr(module, "Summed")
        assert ("images_at_once" in module.Settings.__dataclass_fields__) != together, method
    assert hasattr(module_for("simclr", "segmentation", "3d"), "Summed")
    assert not hasattr(module_for("mae", "segmentation", "3d"), "Summed")
