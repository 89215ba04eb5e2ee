"""States of the optimizer that are spread over processes: the same weights, in less memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import ModuleType

import torch
from children import Work, before, in_children
from emitted import pictures, run, script

from advisor import recommend
from advisor.plan import make_plan

PROBLEM = ("moco-v2", "mri", "segmentation", "2d", "cnn")  # with a queue, and a slow copy


def test_the_part_comes_with_its_setting() -> None:
    answer = recommend({"modality": "xray", "task": "classification"}, engine="reference")
    for value in ("0", "1"):
        plan = make_plan(answer, "moco-v2", {"shard_optimizer": value})
        names = {s.name for s in plan.settings}
        assert ("loops/optimizer_sharded" in plan.parts) == (value == "1")
        assert ("loops/optimizer" in plan.parts) == (value == "0")
        assert ("shard_optimizer" in names) == (value == "1")


def pretrained(module: ModuleType, manifest: Path, out: Path, sharded: int, world: int) -> None:
    """Four steps; what there was after two is kept beside."""
    beside = out.with_name(f"{out.name}-at-two")

    def work(rank: int) -> Work:
        def pretrain() -> None:
            made: list[torch.optim.Optimizer] = []
            build = module.optimizer_of
            module.optimizer_of = lambda *given: made.append(build(*given)) or made[0]
            if rank == 0 and not out.exists():
                before(module, "save", 2, lambda: shutil.copytree(out, beside))
            more = {"batch_size": 6, "epochs": 2, "checkpoint_every": 2, "log_every": 1, "size": 32}
            run(module, "pretrain", manifest, out, shard_optimizer=sharded, **more)
            (inner,) = (getattr(each, "optim", each) for each in made)
            (out / f"held-{rank}").write_text(str(len(inner.state)))

        return pretrain

    for ended in in_children([work(rank) for rank in range(world)]):
        assert ended.code == 0, ended.said


def checkpoint(out: Path) -> dict:
    return torch.load(out / "pretrain.pt", weights_only=True)


def assert_same(one: dict, other: dict) -> None:
    for name in ("network", "optimizer", "step"):
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)


def test_sharded_and_whole_runs_are_the_same_and_continue_each_other(tmp_path: Path) -> None:
    module = script(*PROBLEM, shard_optimizer="1")
    manifest = pictures(tmp_path / "data", target="mask")
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    pretrained(module, manifest, whole, 0, 2)
    pretrained(module, manifest, sharded, 1, 2)
    assert_same(checkpoint(whole), checkpoint(sharded))
    states = len(checkpoint(whole)["optimizer"]["state"])
    held = [[int((out / f"held-{r}").read_text()) for r in (0, 1)] for out in (whole, sharded)]
    assert held[0] == [states, states]
    assert sum(held[1]) == states and 0 < held[1][0] < states

    for first, then in ((whole, 1), (sharded, 0)):
        half = first.with_name(f"{first.name}-at-two")
        assert checkpoint(half)["step"] == 2
        alone = shutil.copytree(half, tmp_path / f"{first.name}-alone")
        pretrained(module, manifest, half, then, 2)
        assert_same(checkpoint(whole), checkpoint(half))
        pretrained(module, manifest, alone, then, 1)  # views are drawn by process, so no equality
        assert checkpoint(alone)["step"] == 4
        rows = (alone / "pretrain.csv").read_text().splitlines()
        assert rows[:3] == (first / "pretrain.csv").read_text().splitlines()[:3] and len(rows) == 5
