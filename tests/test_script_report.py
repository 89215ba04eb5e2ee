"""What a run tells: a report, calibration, the encoder for use elsewhere, and its cost before."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pytest
import torch
from emitted import options, pictures, run, script, settings, volumes

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModuleType, Path]:
    """A finished run of two label fractions."""
    module = script("simclr", "xray", "classification", "2d", backbone="cnn")
    folder = tmp_path_factory.mktemp("ran")
    manifest = pictures(folder / "data", count=20, labelled=16)
    run(module, "all", manifest, folder / "out", label_fractions=(4, 1.0))
    return module, folder / "out"


def test_the_report_says_what_metrics_hold(ran: tuple[ModuleType, Path]) -> None:
    _, out = ran
    metrics, report = (
        json.loads((out / "metrics.json").read_text()),
        (out / "report.md").read_text(),
    )
    assert all(sentence in report for sentence in metrics["verdict"])
    for result in metrics["results"]:
        for start in ("pretrained", "scratch", "difference"):
            value, low, high = (f"{result[start][k]:.3f}" for k in ("value", "low", "high"))
            row = f"| {result['labelled_cases']} | {start} | {value} | {low} to {high} |"
            assert row in report
    named = re.findall(r"!\[.*\]\((.*)\)", report)
    assert named == ["curves.png", "calibration.png", "examples.png"]
    assert all((out / name).read_bytes()[:4] == PNG for name in named)
    assert "`seeds = 1`" in report and torch.__version__ in report


def test_the_loader_in_the_report_gives_the_encoders_features(ran: tuple[ModuleType, Path]) -> None:
    module, out = ran
    code = re.search(r"```python\n(.*?)```", (out / "report.md").read_text(), re.S)[1]
    chosen = settings(module)
    images = torch.rand(2, 1, chosen.size, chosen.size)
    code = code.replace("as file", "as opened").replace("file.", "opened.")
    scope = {"images": images}
    exec(code, scope)
    encoder = module.Encoder(chosen).eval()
    kept = torch.load(out / "encoder.pt", weights_only=True)
    encoder.load_state_dict(
        {n.removeprefix("encoder."): v for n, v in kept.items() if n.startswith("encoder.")}
    )
    assert torch.equal(scope["features"], encoder.embed(images))


def test_the_calibration_error_is_the_mean_gap_of_bins() -> None:
    module = script("simclr", "xray", "classification", "2d", backbone="cnn")
    rng = np.random.default_rng(0)
    confidence = np.append(rng.uniform(0, 1, 500), [0.0, 0.1, 1.0])
    right = (rng.uniform(0, 1, 503) < confidence**2).astype(float)
    expected = 0.0
    for number in range(10):
        inside = [
            i
            for i, c in enumerate(confidence)
            if number / 10 < c <= (number + 1) / 10 or (number == 0 and c == 0)
        ]
        if inside:
            gap = abs(np.mean(confidence[inside]) - np.mean(right[inside]))
            expected += gap * len(inside) / len(confidence)
    assert module.calibration_error(confidence, right) == pytest.approx(expected)
    assert module.calibration_error(np.ones(4), np.ones(4)) == 0


def test_confidence_is_of_the_most_probable_class_or_of_each_finding() -> None:
    single = script("simclr", "xray", "classification", "2d", backbone="cnn")
    predicted, truth = np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([[1.0, 0.0], [1.0, 0.0]])
    sure, right = single.certainty(predicted, truth)
    assert sure.tolist() == [0.9, 0.6] and right.tolist() == [1, 0]
    several = script("simclr", "xray", "classification", "2d", backbone="cnn", multilabel=True)
    sure, right = several.certainty(predicted, truth)
    assert sorted(zip(sure.tolist(), right.tolist())) == [(0.1, 0), (0.4, 1), (0.6, 0), (0.9, 1)]


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (("simclr", "xray", "classification", "2d", "cnn"), ["pretrain", "finetune"]),
        (("mae", "ct", "segmentation", "3d", "vit"), ["pretrain", "finetune"]),
        (("scratch", "xray", "classification", "2d", "cnn"), ["finetune"]),
    ],
)
def test_a_dry_run_tells_the_cost_and_trains_nothing(problem, told, tmp_path, capsys) -> None:
    module = script(*problem[:4], backbone=problem[4])
    write, target = (pictures, "label") if problem[3] == "2d" else (volumes, "mask")
    manifest, out = write(tmp_path / "data", target=target), tmp_path / "out"
    words = ["train.py", "all", "--data", str(manifest), "--out", str(out), "--dry-run"]
    with patch.object(sys, "argv", words + options(module, seeds=2)):
        module.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[: len(told)]] == told
    encoder = sum(p.numel() for p in module.Encoder(settings(module)).parameters()) / 1e6
    for line in lines[: len(told)]:
        assert f"{encoder:.2f} of them the encoder's" in line and "s a step" in line
    runs = 2 * len(module.STARTS)
    assert f"{runs} runs" in lines[len(told) - 1]
    assert "decoded copies" in lines[len(told)] and "too much memory" in lines[-1]
    assert [path.name for path in out.iterdir()] == ["cache"]
