"""What a run tells: a report, calibration, the encoder for use elsewhere, and its cost before."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from emitted import options, pictures, run, script, settings, text, volumes

from advisor import cli
from advisor.beside import report
from advisor.beside.dry_run import estimate
from advisor.files import FileError

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModuleType, Path]:
    """A finished run of two label fractions."""
    module = script("simclr", "xray", "classification", "2d", backbone="cnn")
    folder = tmp_path_factory.mktemp("ran")
    manifest = pictures(folder / "data", count=20, labelled=16)
    run(module, "all", manifest, folder / "out", label_fractions=(4, 1.0))
    report.report(module, manifest, folder / "out")
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
    scope = {"images": images}
    exec(code, scope)
    encoder = module.Encoder(chosen).eval()
    kept = torch.load(out / "encoder.pt", weights_only=True)
    encoder.load_state_dict(
        {n.removeprefix("encoder."): v for n, v in kept.items() if n.startswith("encoder.")}
    )
    assert torch.equal(scope["features"], encoder.embed(images))


def test_the_calibration_error_is_the_mean_gap_of_bins() -> None:
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
    assert report.calibration_error(confidence, right) == pytest.approx(expected)
    assert report.calibration_error(np.ones(4), np.ones(4)) == 0


def test_confidence_is_of_the_most_probable_class_or_of_each_finding() -> None:
    rows = [{"class 0": "0.9", "class 1": "0.1"}, {"class 0": "0.4", "class 1": "0.6"}]
    single = script("simclr", "xray", "classification", "2d", backbone="cnn")
    sure, right = report.certainty(single, [{**row, "label": "0"} for row in rows])
    assert sure.tolist() == [0.9, 0.6] and right.tolist() == [1, 0]
    several = script("simclr", "xray", "classification", "2d", backbone="cnn", multilabel=True)
    sure, right = report.certainty(several, [{**row, "labels": "0"} for row in rows])
    assert sorted(zip(sure.tolist(), right.tolist())) == [(0.1, 0), (0.4, 1), (0.6, 0), (0.9, 1)]


def test_predictions_have_a_name_for_every_column(ran: tuple[ModuleType, Path]) -> None:
    module, out = ran
    with (out / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    head = "start labels seed path patient label".split()
    assert list(rows[0]) == [*head, "class 0", "class 1"]
    assert {row["start"] for row in rows} == set(module.STARTS)
    assert all(abs(float(r["class 0"]) + float(r["class 1"]) - 1) < 1e-4 for r in rows)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda out: (out / "metrics.json").unlink(), "is missing; run `evaluate` first"),
        (lambda out: (out / "metrics.json").write_text("{}"), "run it again"),
        (lambda out: (out / "metrics.json").write_text("{"), "metrics.json"),
    ],
)
def test_a_run_that_is_not_finished_has_no_report(spoil, said, ran, tmp_path) -> None:
    module, out = ran
    shutil.copytree(out, tmp_path / "out")
    spoil(tmp_path / "out")
    with pytest.raises(FileError, match=re.escape(said)):
        report.report(module, out.parent / "data" / "manifest.csv", tmp_path / "out")


def test_the_commands_read_a_script_and_name_what_is_wrong_in_it(tmp_path: Path) -> None:
    manifest, train = pictures(tmp_path / "data"), tmp_path / "train.py"
    where = ["--data", str(manifest), "--out", str(tmp_path / "out")]

    def said(command: str, source: str, *more: str) -> tuple[int, str]:
        train.write_text(source)
        done = CliRunner().invoke(cli.main, [command, str(train), *where, *more])
        return done.exit_code, done.output

    source = text("simclr", "xray", "classification", "2d", backbone="cnn")
    code, output = said("preview", source, "--size", "32")
    assert code == 0 and "first view" in output and "untrained weights" in output
    code, output = said("dry-run", source, "--size", "32", "--workers", "0", "--batch-size", "2")
    assert code == 0 and "hours" in output
    for command in ("preview", "dry-run"):
        code, output = said(command, source, "--sise", "32")
        assert code == 2 and "--sise" in output
    for spoilt, why in (
        (source.replace("def main(", "def main"), "train.py:"),
        (source.replace("import monai\n", "import torchwood\n"), "torchwood is not installed"),
        (source.replace("DIMS = 2", "DIMS = two"), "NameError: name 'two' is not defined"),
        ("DIMS = 2\n", "is no script of `medssl generate`"),
    ):
        code, output = said("report", spoilt)
        assert code == 2 and why in output and output.count("\n") == 1, output
    train.unlink()
    done = CliRunner().invoke(cli.main, ["report", str(train), *where])
    assert done.exit_code == 2 and "cannot be read: no such file" in done.output


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (("simclr", "xray", "classification", "2d", "cnn"), ["pretrain", "finetune"]),
        (("mae", "ct", "segmentation", "3d", "vit"), ["pretrain", "finetune"]),
        (("scratch", "xray", "classification", "2d", "cnn"), ["finetune"]),
    ],
)
def test_a_dry_run_tells_the_cost_and_trains_nothing(problem, told, tmp_path) -> None:
    module = script(*problem[:4], backbone=problem[4])
    write, target = (pictures, "label") if problem[3] == "2d" else (volumes, "mask")
    manifest, out = write(tmp_path / "data", target=target), tmp_path / "out"
    lines = list(estimate(module, manifest, out, options(module, seeds=2)))
    assert [line.split(":")[0] for line in lines[: len(told)]] == told
    encoder = sum(p.numel() for p in module.Encoder(settings(module)).parameters()) / 1e6
    for line in lines[: len(told)]:
        assert f"{encoder:.2f} of them the encoder's" in line and "s a step" in line
    runs = 2 * len(module.STARTS)
    assert f"{runs} runs" in lines[len(told) - 1]
    assert "decoded copies" in lines[len(told)] and "too much memory" in lines[-1]
    assert [path.name for path in out.iterdir()] == ["cache"]
