"""Run by torchrun: gradients of every method on two processes, against one on the joined batch.

What is drawn at random is replaced by functions of the image itself, so that an image meets the
same views and masks wherever it is; all else, DistributedDataParallel included, is the script's.
"""

from __future__ import annotations

import json

import torch
import torch.distributed as dist
from test_script_learning import DIFFERENT, module_for, smallest, structured
from torch import nn
from torch.nn.parallel import DistributedDataParallel

RAND = torch.rand
CALLS: list[str] = []


def key(image: torch.Tensor) -> int:
    return int(image.double().abs().sum() * 1000) % 1_000_003


def fixed(module, network: nn.Module) -> None:
    """Makes the random parts depend on nothing but the image."""

    def crop(images, settings):
        return images[(..., *[slice(settings.size)] * module.DIMS)]

    def distort(images, settings):
        CALLS.append("distort")  # the second view differs from the first
        second = len(CALLS) % 2
        return images * (1 + 0.3 * second) + 0.05 * second * images**2

    module.crop, module.distort = crop, distort

    def per_image(function):
        def call(x):
            rows = []
            for image in x:
                torch.manual_seed(key(image))
                rows.append(function(image[None]))
            return torch.cat(rows)

        return call

    if hasattr(network, "corrupt"):
        network.corrupt = per_image(network.corrupt)
    if hasattr(network, "turned"):
        network.turned = lambda x: (x, torch.tensor([key(image) % 4 for image in x]))
        network.cut_out = per_image(network.cut_out)


def gradients(module, network: nn.Module, images: torch.Tensor, wrapped: nn.Module) -> torch.Tensor:
    CALLS.clear()
    network.zero_grad()
    loss, _ = wrapped(images)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.requires_grad])


def masked_alike(network: nn.Module, images: torch.Tensor):
    """For MAE the order of patches: the same draw for an image wherever it is."""

    def by_image(*shape, **more):
        return torch.stack(
            [RAND(shape[1], generator=torch.Generator().manual_seed(key(i))) for i in images]
        ).double()

    return by_image if hasattr(network, "hidden_token") else RAND


def main() -> None:
    dist.init_process_group("gloo")
    rank, errors = dist.get_rank(), {}
    initialized = dist.is_initialized
    for case in DIFFERENT:
        module = module_for(*case)
        chosen = smallest(module)
        torch.manual_seed(0)
        network = module.Method(chosen).double().train()
        state = {n: v.clone() for n, v in network.state_dict().items()}
        fixed(module, network)
        images = structured(module, chosen).double()
        images = images + 0.1 * torch.rand(images.shape, dtype=torch.float64)
        part = images[rank * 2 : rank * 2 + 2]
        size = (..., *[slice(chosen.size)] * module.DIMS)
        torch.rand = masked_alike(network, part[size])
        two = gradients(module, network, part, DistributedDataParallel(network))
        network.load_state_dict(state)
        dist.is_initialized = lambda: False  # the script then takes itself for a single process
        torch.rand = masked_alike(network, images[size])
        one = gradients(module, network, images, network)
        torch.rand, dist.is_initialized = RAND, initialized
        errors["-".join(case)] = float((two - one).norm() / one.norm())
    if rank == 0:
        print(json.dumps(errors))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
