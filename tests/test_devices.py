"""On a GPU, nothing of a step may stay behind on the CPU; no GPU is needed to find out.

Networks and images are on PyTorch's meta device, whose tensors have shapes but no content, and
what would mix them with tensors on the CPU is refused, as it is on GPUs.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from emitted import pictures, script, settings, volumes
from test_script_learning import DIFFERENT, TARGETS, module_for, smallest
from torch.fx.experimental import _config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
aten = torch.ops.aten
# these GPUs allow as well: indices on the CPU, and copies from there to here
MIXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten.copy_.default,
}


class OneDevice(TorchDispatchMode):
    """Refuses operations on two devices; numbers that are read from the meta device are 0."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        devices = {t.device for t in tensors if t.ndim or t.device == META}
        if len(devices) > 1 and (func not in MIXING or args[0].device != META):
            raise RuntimeError(f"{func} on two devices: {', '.join(map(str, devices))}")
        if META in devices:
            if func is aten._local_scalar_dense.default:
                return type(torch.zeros((), dtype=args[0].dtype).item())()
            if func is aten._to_copy.default and kwargs.get("device", META) != META:
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return func(*args, **kwargs)


@pytest.fixture(autouse=True)
def _without_content(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What needs content, or a precision of the device, does without."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    with _config.patch(meta_nonzero_assume_all_nonzero=True):  # masks choose all
        yield


@pytest.mark.parametrize("case", DIFFERENT, ids="-".join)
def test_a_step_of_pretraining_is_on_one_device(case) -> None:
    module = module_for(*case)
    chosen = smallest(module)
    network = module.Method(chosen).train().to(META, memory_format=module.MEMORY)
    count = len(inspect.signature(network.forward).parameters)
    shape = (4, chosen.channels, *[module.region(chosen)] * module.DIMS)
    with OneDevice():
        loss, features = network(*[torch.empty(shape, device=META) for _ in range(count)])
        loss.backward()
        if hasattr(network, "after_step"):
            network.after_step(0.5)
    assert loss.device == features.device == META


@pytest.mark.parametrize("dimensionality", ["2d", "3d"])
@pytest.mark.parametrize("task", TARGETS)
def test_fine_tuning_and_prediction_are_on_one_device(
    task: str, dimensionality: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("scratch", "mri", task, dimensionality)
    write = pictures if dimensionality == "2d" else volumes
    manifest, chosen = write(tmp_path, target=TARGETS[task]), settings(module)
    cases = module.prepare(module.read_manifest(manifest, chosen), chosen, tmp_path / "out")
    model, data, _ = module.fine_tuning(module.Model(chosen), cases, 1.0, 0, chosen)
    model = model.to(META, memory_format=module.MEMORY)
    loader = torch.utils.data.DataLoader(data, batch_sampler=[[(0, 0), (1, 0)]])
    batch = [part.to(META) for part in next(iter(loader))]
    test = [case for case in cases if case.target and case.split == "test"]
    monkeypatch.setattr(module, "this_device", lambda: META)
    if task == "detection":  # torchvision's own code for it wants content
        monkeypatch.setattr(module, "batched_nms", lambda boxes, *_: torch.arange(len(boxes)))
    for name in {"predict", "on_all", "found_mask"} & vars(module).keys():
        # inference mode hides single operations
        monkeypatch.setattr(module, name, torch.no_grad()(inspect.unwrap(getattr(module, name))))
    with OneDevice():
        loss, features = model.train()(*batch)
        loss.backward()
        predicted = module.predict(model.eval(), test[:1], chosen)
    assert loss.device == features.device == META
    assert len(predicted) == 1


@pytest.mark.parametrize("mixed", [torch.add, torch.mm, torch.gather], ids=lambda f: f.__name__)
def test_two_devices_are_refused(mixed) -> None:
    """Otherwise the tests above would find nothing."""
    there, here = torch.empty(4, 4, device=META), torch.zeros(4, 4)
    with OneDevice(), pytest.raises(RuntimeError, match="on two devices"):
        mixed(there, 0, here.long()) if mixed is torch.gather else mixed(there, here)
