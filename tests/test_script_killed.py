"""Runs that are killed, or lose their disk or their readers: the same command goes on alike."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import resource
import signal
from pathlib import Path
from types import ModuleType

import pytest
import torch
from children import before, die, in_child
from emitted import pictures, run, script, volumes
from test_script_learning import CASES, DIMENSIONS, module_for

PROBLEM = ("models-genesis", "mri", "segmentation", "2d")
STEPS = 6
# rows of the history and checkpoints come at other steps, so that a mean of losses spans the kill
SHORT = {"batch_size": 2, "checkpoint_every": 2, "log_every": 3}
IMAGES = {"2d": 12, "3d": 6}  # of the training patients
# every method in 2D and 3D, where it can on the networks of segmentation, which are smaller
# (but Swin UNETR's, whose decoder asks for more voxels)
SMALLER = set(CASES) - {("swin-unetr", "segmentation", "3d")}
EVERY = [
    (method, "segmentation" if (method, "segmentation", d) in SMALLER else "classification", d)
    for method, d in DIMENSIONS
]

Manifests = dict[tuple[str, str], Path]


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    """Small images, by dimensionality and task."""
    return {
        (dimensionality, task): write(tmp_path_factory.mktemp("data"), target=target)
        for dimensionality, write in (("2d", pictures), ("3d", volumes))
        for task, target in (("classification", "label"), ("segmentation", "mask"))
    }


def pretrain(module: ModuleType, manifest: Path, out: Path, **more: int) -> None:
    epochs = STEPS * SHORT["batch_size"] // IMAGES[f"{module.DIMS}d"]
    size = 16 if module.DIMS == 3 and hasattr(module, "SegResNet") else 32
    run(module, "pretrain", manifest, out, **{**SHORT, "epochs": epochs, "size": size, **more})


def step_of(out: Path) -> int:
    return torch.load(out / "pretrain.pt", weights_only=True)["step"]


def assert_same(first: Path, second: Path) -> None:
    """Two runs left the same weights, states of the optimizer and history, to the bit."""
    for name in ("pretrain.pt", "encoder.pt"):
        one, other = (torch.load(out / name, weights_only=True) for out in (first, second))
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    one, other = ((out / "pretrain.csv").read_text().splitlines() for out in (first, second))
    assert [r.split(",")[:5] for r in one] == [r.split(",")[:5] for r in other]  # without seconds
    assert not list(second.rglob("*.part"))


def die_while_saving(number: int) -> None:
    """When half of the `number`th checkpoint is on the disk."""
    save, count = torch.save, 0

    def half(content, stream) -> None:
        nonlocal count
        count += 1
        save(content, stream)
        if count == number:
            stream.flush()
            os.truncate(stream.name, os.path.getsize(stream.name) // 2)
            die()

    torch.save = half


@pytest.mark.parametrize(("method", "task", "dimensionality"), EVERY)
def test_killed_at_any_step_it_goes_on_alike(
    method: str, task: str, dimensionality: str, manifests: Manifests, tmp_path: Path
) -> None:
    """Between gradient and update, between update and history, or amid a checkpoint."""
    module, manifest = module_for(method, task, dimensionality), manifests[dimensionality, task]
    chance = random.Random(f"{method}-{dimensionality}")
    where, step = chance.choice(["update", "history", "saving"]), chance.randint(3, STEPS)

    def doomed() -> None:
        if where == "saving":
            die_while_saving(chance.randint(2, 3))
        elif where == "history":
            before(module, "health", 2, die)
        else:
            before(module.nn.utils, "clip_grad_norm_", step, die)
        pretrain(module, manifest, tmp_path / "killed")

    assert in_child(doomed).code == -signal.SIGKILL
    assert 0 < step_of(tmp_path / "killed") < STEPS
    pretrain(module, manifest, tmp_path / "killed")
    pretrain(module, manifest, tmp_path / "whole")
    assert_same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(
    ("function", "number", "file", "done"),
    [
        ("save", 2, "pretrain.pt", 2),
        ("save", 4, "encoder.pt", STEPS),
        ("serialised", 1, "encoder.safetensors", STEPS),
        ("health", 2, "pretrain.csv", 4),
    ],
)
def test_a_full_disk_costs_no_checkpoint(
    function: str, number: int, file: str, done: int, manifests: Manifests, tmp_path: Path
) -> None:
    module, manifest, out = script(*PROBLEM), manifests["2d", "segmentation"], tmp_path / "full"

    def fill() -> None:
        """Files cannot grow from here on; of a new row or file the first bytes still fit."""
        size = (out / "pretrain.csv").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 3, resource.RLIM_INFINITY))

    def doomed() -> None:
        before(module, function, number, fill)
        pretrain(module, manifest, out)

    ended = in_child(doomed)
    reason = f"[Errno {errno.EFBIG}] {os.strerror(errno.EFBIG)}"
    todo = "make room, then the same command continues"
    assert ended == (2, f"error: {out / file} cannot be written ({reason}): {todo}\n")
    assert step_of(out) == done and not list(out.rglob("*.part"))
    pretrain(module, manifest, out)
    pretrain(module, manifest, tmp_path / "whole")
    assert_same(tmp_path / "whole", out)


@pytest.mark.parametrize("cause", [signal.SIGKILL, signal.SIGBUS])
def test_a_reader_that_is_killed_ends_the_run_with_one_line(
    cause: signal.Signals, manifests: Manifests, tmp_path: Path
) -> None:
    module, manifest, out = script(*PROBLEM), manifests["2d", "segmentation"], tmp_path / "out"

    def kill() -> None:
        reader = multiprocessing.active_children()[0].pid
        os.kill(reader, cause)
        os.waitid(os.P_PID, reader, os.WEXITED | os.WNOWAIT)  # it is dead, and nobody knows yet

    def doomed() -> None:
        before(module, "backward", 4, kill)
        pretrain(module, manifest, out, workers=1)

    ended = in_child(doomed)
    *others, last = ended.said.replace("\0", "").splitlines()  # PyTorch's own line ends so
    assert ended.code == 2 and "Traceback" not in ended.said
    assert last.startswith("error: DataLoader worker (pid ") and "lower --workers" in last
    assert "shared memory" in last if cause == signal.SIGBUS else not others
    assert step_of(out) == 2
    pretrain(module, manifest, out)  # workers=0
    pretrain(module, manifest, tmp_path / "whole")
    assert_same(tmp_path / "whole", out)


def test_an_error_of_a_reader_keeps_its_traceback(manifests: Manifests, tmp_path: Path) -> None:
    """Only what the machine has done is told in a line; a mistake in the script is to be found."""
    module = script(*PROBLEM)

    def doomed() -> None:
        def broken(*_) -> None:
            raise RuntimeError("wrong")

        module.unpacked = broken
        pretrain(module, manifests["2d", "segmentation"], tmp_path / "out", workers=1)

    ended = in_child(doomed)
    assert ended.code == 1 and "Traceback" in ended.said and "RuntimeError: wrong" in ended.said


def test_steps_of_long_runs_are_written_in_full(tmp_path: Path) -> None:
    module = script(*PROBLEM)
    watch = module.Watch(tmp_path / "pretrain.pt", 0, False, module.Settings())
    watch(1_234_567, 1.0, 1.0, torch.rand(4, 8))
    module.Watch(tmp_path / "pretrain.pt", 1_234_567, False, module.Settings())
    assert (tmp_path / "pretrain.csv").read_text().splitlines()[1].startswith("1234567,1,1,")


def test_a_collapse_is_noticed_across_a_kill(manifests: Manifests, tmp_path: Path) -> None:
    """Five rows of equal features stop a run, whether or not it was killed after the third."""
    module = script("byol", "xray", "classification", "2d", backbone="cnn")
    manifest, out = manifests["2d", "classification"], tmp_path / "out"

    def collapsing() -> None:
        forward = module.Method.forward
        module.Method.forward = lambda self, x: (forward(self, x)[0], torch.ones(2, 4))
        pretrain(module, manifest, out, log_every=1, checkpoint_every=1, epochs=2)

    def doomed() -> None:
        before(module, "health", 4, die)
        collapsing()

    assert in_child(doomed).code == -signal.SIGKILL and step_of(out) == 3
    ended = in_child(collapsing)
    assert ended.code == 2 and "all features are alike at step 5" in ended.said
