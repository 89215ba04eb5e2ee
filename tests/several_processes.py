"""Run by torchrun: gradients of every method on several processes, against one on the joined batch.

Every process draws the random numbers of the whole batch and keeps those of its own images, so an
image meets the same views and masks wherever it is; all else is the script's. Methods draw one
number per image, with the batch as the first dimension, and only such draws are cut.
`CASES=simclr-classification-2d,mae-segmentation-3d` in the environment names some of them.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from unittest.mock import patch

import torch
import torch.distributed as dist
from test_script_learning import DIFFERENT, module_for, smallest, structured
from torch import nn
from torch.nn.parallel import DistributedDataParallel

EACH = 4  # images of a process


@contextmanager
def joint_draws() -> Iterator[None]:
    """Within, what is drawn for `EACH` images is this process's part of a draw for all of them."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = slice(rank * EACH, (rank + 1) * EACH)

    def enlarged(shape) -> tuple[int, ...] | None:
        return (world * EACH, *shape[1:]) if len(shape) and shape[0] == EACH else None

    def creating(function: Callable) -> Callable:  # rand(4, 2), rand((4, 2))
        def drawn(*shape, **more):
            shape = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
            whole = enlarged(shape)
            return function(*whole, **more)[mine] if whole else function(*shape, **more)

        return drawn

    def alike(function: Callable) -> Callable:
        def drawn(like, **more):
            whole = enlarged(like.shape)
            return (
                function(like.new_empty(whole), **more)[mine] if whole else function(like, **more)
            )

        return drawn

    def integers(*bounds_and_shape, **more):
        *bounds, shape = bounds_and_shape
        whole = enlarged(shape)
        return RANDINT(*bounds, whole, **more)[mine] if whole else RANDINT(*bounds, shape, **more)

    def filling(function: Callable) -> Callable:
        def drawn(tensor, *bounds, **more):
            whole = enlarged(tensor.shape)
            if not whole:
                return function(tensor, *bounds, **more)
            return tensor.copy_(function(tensor.new_empty(whole), *bounds, **more)[mine])

        return drawn

    with (
        patch.multiple(torch, rand=creating(torch.rand), randn=creating(torch.randn)),
        patch.multiple(torch, rand_like=alike(torch.rand_like), randn_like=alike(torch.randn_like)),
        patch.object(torch, "randint", integers),
        patch.multiple(
            torch.Tensor,
            **{n: filling(getattr(torch.Tensor, n)) for n in ("uniform_", "normal_", "bernoulli_")},
        ),
    ):
        yield


RANDINT = torch.randint


def gradients(
    network: nn.Module, batch: list[torch.Tensor], wrapped: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of two steps, for the second meets what the first has left; and what both have left."""
    found = []
    for step in (1, 2):
        torch.manual_seed(step)
        network.zero_grad()
        loss, _ = wrapped(*batch)
        loss.backward()
        found += [p.grad.flatten() for p in network.parameters() if p.requires_grad]
        if hasattr(network, "after_step"):
            network.after_step(step / 4)
    left = [b.double().flatten() for b in network.buffers()]
    return torch.cat(found), torch.cat([torch.ones(1), *left])


def comparison(case: tuple[str, str, str]) -> Callable[[], float]:
    """The steps of all processes now; when called, those of one, and how far apart they are.

    The distance is a share of the length of the vector.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    module = module_for(*case)
    # convolutions over volumes in double precision are slow, and 16 voxels hold all that they do
    convolved = hasattr(module, "SegResNet") and module.DIMS == 3
    chosen = smallest(module, **({"size": 16} if convolved else {}))
    torch.manual_seed(0)
    network = module.Method(chosen).train()
    state = {n: v.clone() for n, v in network.state_dict().items()}
    inputs = len(inspect.signature(network.forward).parameters)
    batch = []
    for _ in range(inputs):
        images = structured(module, chosen, world * EACH)
        batch.append(images + 0.1 * torch.rand(images.shape))
    mine = [images[rank * EACH : (rank + 1) * EACH] for images in batch]
    with joint_draws():
        several = gradients(network, mine, DistributedDataParallel(network))

    def alone() -> float:
        network.load_state_dict(state)
        # the script then takes itself for a single process
        with patch.object(dist, "is_initialized", lambda: False):
            one = gradients(network, batch, network)
        return max(float((a - b).norm() / b.norm()) for a, b in zip(several, one, strict=True))

    return alone


def main() -> None:
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # scripts leave half precision so; here it would round
    named = os.environ.get("CASES", "")
    chosen = [case for case in DIFFERENT if not named or "-".join(case) in named.split(",")]
    rank, world, errors = dist.get_rank(), dist.get_world_size(), {}
    for start in range(0, len(chosen), world):  # of so many cases each process does one alone
        cases = chosen[start : start + world]
        for number, alone in enumerate([comparison(case) for case in cases]):
            if number == rank:
                errors["-".join(cases[number])] = alone()
    parts = [None] * world
    dist.all_gather_object(parts, errors)
    if rank == 0:
        print(json.dumps(dict(chain.from_iterable(part.items() for part in parts))))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
