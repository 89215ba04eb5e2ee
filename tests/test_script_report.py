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
from matplotlib.figure import Figure

from advisor import cli
from advisor.beside import curves, dry_run, examples, report
from advisor.beside.dry_run import estimate
from advisor.beside.outcome import COLOURS, boxes, finished, measures
from advisor.beside.script import opened
from advisor.files import FileError

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModuleType, Path]:
    """A finished run of two label fractions."""
    folder = tmp_path_factory.mktemp("ran")
    train = folder / "train-it.py"  # people do name files so
    train.write_text(text("simclr", "xray", "classification", "2d", backbone="cnn"))
    module = opened(train)
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
    assert "`label_fractions = (4.0, 1.0)`" in report


def test_label_fractions_that_the_script_left_out_are_no_change_of_settings(ran, tmp_path) -> None:
    module, out = ran
    shutil.copytree(out, tmp_path / "out")
    metrics = json.loads((out / "metrics.json").read_text())
    default = module.Settings().label_fractions
    manifest = out.parent / "data" / "manifest.csv"
    cases = module.prepare(module.read_manifest(manifest, settings(module)), settings(module), out)
    chosen = settings(module, seeds=metrics["settings"]["seeds"], label_fractions=default)
    kept = module.distinct(cases, chosen).label_fractions
    assert len(kept) < len(default)  # so few labels that two choose the same patients
    for fractions, changed in ((kept, False), (default, True)):
        metrics["settings"]["label_fractions"] = list(fractions)
        (tmp_path / "out" / "metrics.json").write_text(json.dumps(metrics))
        outcome = finished(module, manifest, tmp_path / "out")
        assert any("label_fractions" in each for each in report._changed(outcome)) == changed


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
    assert curves.calibration_error(confidence, right) == pytest.approx(expected)
    assert curves.calibration_error(np.ones(4), np.ones(4)) == 0


def test_confidence_is_of_the_most_probable_class_or_of_each_finding() -> None:
    rows = [{"class 0": "0.9", "class 1": "0.1"}, {"class 0": "0.4", "class 1": "0.6"}]
    single = script("simclr", "xray", "classification", "2d", backbone="cnn")
    sure, right = curves.certainty(single, [{**row, "label": "0"} for row in rows])
    assert sure.tolist() == [0.9, 0.6] and right.tolist() == [1, 0]
    several = script("simclr", "xray", "classification", "2d", backbone="cnn", multilabel=True)
    sure, right = curves.certainty(several, [{**row, "labels": "0"} for row in rows])
    assert sorted(zip(sure.tolist(), right.tolist())) == [(0.1, 0), (0.4, 1), (0.6, 0), (0.9, 1)]


def test_predictions_have_a_name_for_every_column(ran: tuple[ModuleType, Path]) -> None:
    module, out = ran
    rows = csv_rows(out)
    head = "start label_fraction seed path patient label".split()
    assert list(rows[0]) == [*head, "class 0", "class 1"]
    assert {row["start"] for row in rows} == set(module.STARTS)
    assert all(abs(float(r["class 0"]) + float(r["class 1"]) - 1) < 1e-4 for r in rows)
    assert all(re.fullmatch(r"\d(\.\d{1,5})?|\de-05", r["class 0"]) for r in rows)


def test_boxes_keep_their_pixels_in_large_images() -> None:
    module = script("simclr", "mri", "detection", "2d", backbone="cnn")
    found = [np.array([[12345.678, 3, 23456.789, 98765.4, 2, 0.87654321]]), np.zeros((0, 6))]
    (written,) = module.columns(found, [None, None]).values()
    assert written == ["12345.68 3.00 23456.79 98765.40 2 0.8765", "none"]
    assert boxes(module, written[0]) == pytest.approx(found[0], abs=1e-2)
    assert boxes(module, written[1]).shape == (0, 6)


# %% The verdict


@pytest.mark.parametrize(
    ("low", "high", "seeds", "word"),
    [
        (0.0012, 0.05, 2, "helped"),
        (0.0006, 0.05, 2, "helped"),
        (0.0004, 0.05, 2, "made no clear difference"),
        (-0.0014, -0.0003, 5, "made no clear difference"),
        (-0.05, -0.0006, 2, "hurt"),
        (0.0012, 0.05, 1, "was tried with one seed, which says nothing of others"),
        (-0.05, -0.02, 1, "was tried with one seed, which says nothing of others"),
        (np.nan, np.nan, 2, "made no clear difference"),
    ],
)
def test_a_difference_is_claimed_only_if_its_digits_and_two_seeds_show_it(
    low: float, high: float, seeds: int, word: str
) -> None:
    module = script("simclr", "xray", "classification", "2d", backbone="cnn")
    result = {
        "labelled_cases": 8,
        "pretrained": {"value": 0.6},
        "scratch": {"value": 0.6},
        "difference": {"value": (low + high) / 2, "low": low, "high": high},
    }
    sentence = module.verdict(result, 9, settings(module, seeds=seeds))
    assert sentence.startswith(f"With 8 labelled cases, pre-training {word}: AUROC 0.600 against")
    assert sentence.count(". ") == 0 and sentence.endswith(".") and "-0.000" not in sentence


def test_from_scratch_one_seed_says_nothing_of_others() -> None:
    module = script("scratch", "xray", "classification", "2d", backbone="cnn")
    result = {"labelled_cases": 8, "scratch": {"value": 0.6, "low": 0.5, "high": 0.7}}
    said = [module.verdict(result, 9, settings(module, seeds=n)) for n in (1, 3)]
    assert said[0].endswith("9 test patients, 1 seed, which says nothing of others).")
    assert said[1].endswith("9 test patients, 3 seeds).")


# %% Tables and pictures of every task


def run_of(
    tmp_path: Path, task: str, dimensionality: str, target: str, multilabel: bool = False
) -> tuple[ModuleType, Path, Path]:
    module = script("simclr", "mri", task, dimensionality, backbone="cnn", multilabel=multilabel)
    write = pictures if dimensionality == "2d" else volumes
    manifest, out = write(tmp_path / "data", target=target), tmp_path / "out"
    run(module, "all", manifest, out, finetune_steps=1, batch_size=2)
    return module, manifest, out


def drawn(monkeypatch: pytest.MonkeyPatch, outcome) -> Figure:
    kept = []
    monkeypatch.setattr(examples, "save", lambda figure, _: kept.append(figure))
    examples.examples(outcome)
    return kept[0]


@pytest.mark.parametrize("dimensionality", ["2d", "3d"])
def test_boxes_are_drawn_where_they_are(dimensionality, tmp_path, monkeypatch) -> None:
    module, manifest, out = run_of(tmp_path, "detection", dimensionality, "boxes")
    rows = csv_rows(out)
    with (out / "predictions.csv").open("w", newline="") as stream:  # found exactly, but one class
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        truths = {r["path"]: r["boxes"] for r in csv.DictReader(manifest.read_text().splitlines())}
        for row in rows:
            truth = truths[Path(row["path"]).name]
            writer.writerow({**row, "boxes with scores": f"{truth} 0.7512"})
    outcome = finished(module, manifest, out)
    for axis in [a for a in drawn(monkeypatch, outcome).axes if a.images]:
        image = np.asarray(axis.images[0].get_array())
        true, found = axis.patches
        np.testing.assert_allclose(true.get_bbox().bounds, found.get_bbox().bounds, atol=0.02)
        assert [t.get_text() for t in axis.texts] == ["0", "0: 0.75"]
        (left, top), (right, bottom) = (np.round(true.get_bbox().get_points() + 0.5)).astype(int)
        inside = np.zeros(image.shape, bool)
        inside[top:bottom, left:right] = True
        assert image[inside].mean() > image[~inside].mean() + 0.15
        outer = np.zeros(image.shape, bool)  # a rim around it is as dark as the rest
        outer[max(0, top - 3) : bottom + 3, max(0, left - 3) : right + 3] = True
        assert image[inside].mean() > image[outer & ~inside].mean() + 0.15
    for found in measures(outcome, outcome.rows(outcome.shown())).items():
        assert found == ("AP of class 0", pytest.approx(1))


def test_pairs_are_shown_before_and_after(tmp_path, monkeypatch) -> None:
    module, manifest, out = run_of(tmp_path, "registration", "2d", "pair")
    kept = {}
    monkeypatch.setattr(examples, "draw", lambda *given: kept.update(given[1]))
    text = report.report(module, manifest, out).read_text()
    assert text.count("Dice before registration") == 1 and "frozen features" not in text
    for moving, fixed, moved, before, after in zip(*kept.values(), strict=True):
        assert torch.equal(before, (moving - fixed).abs()) and before.any()
        assert torch.equal(after, (moved - fixed).abs())
        assert not torch.equal(moved, moving)


def test_neighbours_are_of_other_patients(tmp_path, monkeypatch) -> None:
    module, manifest, out = run_of(tmp_path, "retrieval", "2d", "label")
    outcome = finished(module, manifest, out)
    axes = np.array(drawn(monkeypatch, outcome).axes).reshape(4, 6)
    for place, row in enumerate(axes):
        query = outcome.test[place].target
        assert row[0].get_title() == f"query: {query}"
        for axis in row[1:4]:  # there are four test patients
            alike = axis.get_title() == query
            assert axis.title.get_color() == (examples.TRUE if alike else "tab:red")
        shown = [np.asarray(axis.images[0].get_array()) for axis in row[:4]]
        assert not any(np.array_equal(shown[0], other) for other in shown[1:])
        assert not row[4].images


def test_regression_is_told_in_the_unit_of_the_target(tmp_path, monkeypatch) -> None:
    module, manifest, out = run_of(tmp_path, "regression", "2d", "target")
    outcome = finished(module, manifest, out)
    rows = [row for row in csv_rows(out) if row["start"] == "scratch"]
    truth, found = (np.array([float(row[n]) for row in rows]) for n in ("target", "predicted"))
    axis = drawn(monkeypatch, outcome).axes[1]
    assert axis.get_title() == "scratch, label fraction 1, seed 0"
    assert axis.collections[0].get_offsets().tolist() == np.column_stack([truth, found]).tolist()
    text = report.report(module, manifest, out).read_text()
    cell = re.search(r"\| mean absolute error \| .* \| (.*) \|", text)[1]
    assert float(cell) == pytest.approx(np.abs(truth - found).mean(), rel=1e-3)


def test_several_findings_have_a_score_each(tmp_path: Path) -> None:
    module, manifest, out = run_of(tmp_path, "classification", "2d", "labels", multilabel=True)
    text = report.report(module, manifest, out).read_text()
    assert "AUROC of class 0" in text and "AUROC of class 1" in text


def test_scores_of_classes_average_to_the_metric(ran: tuple[ModuleType, Path]) -> None:
    module, out = ran
    outcome = finished(module, out.parent / "data" / "manifest.csv", out)
    found = measures(outcome, outcome.rows(outcome.shown()))
    assert list(found) == ["AUROC of class 0", "AUROC of class 1"]
    score = outcome.metrics["results"][1]["pretrained"]["value"]
    assert np.mean(list(found.values())) == pytest.approx(score, abs=1e-3)


def test_examples_say_what_is_true_and_what_was_predicted(ran, monkeypatch) -> None:
    module, out = ran
    outcome = finished(module, out.parent / "data" / "manifest.csv", out)
    assert outcome.shown().fraction == 1.0  # of all patients, which are more than 4
    figure = drawn(monkeypatch, outcome)
    assert figure.get_suptitle() == "pretrained, label fraction 1, seed 0"
    form = r"true [01], predicted ([01]): 0\.\d\d, ([01]): 0\.\d\d"
    assert all(re.fullmatch(form, a.get_title()) for a in figure.axes if a.images)


def test_curves_can_be_told_apart(ran, tmp_path, monkeypatch) -> None:
    module, out = ran
    shutil.copytree(out, tmp_path / "out")
    one = tmp_path / "out" / "pretrain.csv"
    one.write_text("".join(one.read_text().splitlines(keepends=True)[:2]))
    outcome = finished(module, out.parent / "data" / "manifest.csv", tmp_path / "out")
    kept = []
    monkeypatch.setattr(curves, "save", lambda figure, _: kept.append(figure))
    curves.curves(outcome)
    few, many = outcome.metrics["results"]
    few["labelled_cases"], many["labelled_cases"] = 3, 300
    curves.curves(outcome)
    first, tuned, scores = kept[0].axes
    assert first.lines[0].get_marker() == "o"  # a line through one point is not seen
    looks = {(line.get_color(), line.get_linestyle()) for line in tuned.lines}
    assert {(COLOURS[start], s) for start in module.STARTS for s in ("-", "--")} <= looks
    assert scores.get_xscale() == "linear" and kept[1].axes[2].get_xscale() == "log"
    pretrained, scratch = (bars.lines[0].get_xdata() for bars in scores.containers)
    assert (pretrained < scratch).all()


# %% What is missing or wrong


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda out: (out / "metrics.json").unlink(), "is missing; run `evaluate` first"),
        (lambda out: (out / "metrics.json").write_text("{}"), "run it again"),
        (lambda out: (out / "metrics.json").write_text("{"), "metrics.json"),
        (lambda out: shorten(out / "predictions.csv"), "is of other test cases than"),
    ],
)
def test_a_run_that_is_not_finished_has_no_report(spoil, said, ran, tmp_path) -> None:
    module, out = ran
    shutil.copytree(out, tmp_path / "out")
    spoil(tmp_path / "out")
    with pytest.raises(FileError, match=re.escape(said)):
        report.report(module, out.parent / "data" / "manifest.csv", tmp_path / "out")


def shorten(file: Path) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:3]))


def csv_rows(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


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
        usage = f"medssl {command} SCRIPT --data CSV --out FOLDER [--SETTING VALUE ...]"
        for words, why in ((("--sise", "32"), "--sise 32"), (("--size", "nine"), "'nine'")):
            code, output = said(command, source, *words)
            assert code == 2 and output.startswith("error: ") and output.count("\n") == 1
            assert why in output and output.endswith(f"; usage: {usage}\n")
        code, output = said(command, source, "--size", "-1")
        assert code == 2 and output.startswith("error: --size -1: must be")
        assert "usage" not in output
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
    assert all("GB at most so far (CPU)" in line for line in lines[: len(told)])
    assert "decoded copies" in lines[len(told)] and "too much memory" in lines[-1]
    assert [path.name for path in out.iterdir()] == ["cache"]
    kept = {path: path.read_bytes() for path in (out / "cache").iterdir()}
    module.prepare(module.read_manifest(manifest, settings(module)), settings(module), out)
    assert kept and all(path.read_bytes() == content for path, content in kept.items())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 9. GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("unable to mmap 1310 bytes from file <x>: Cannot allocate memory (12)"),
        RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
        OSError(12, "Cannot allocate memory"),
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
    ],
    ids=lambda error: str(error)[:20],
)
def test_a_dry_run_says_that_memory_does_not_suffice(error, tmp_path, monkeypatch) -> None:
    def step(*_: object) -> None:
        raise error

    train, manifest = tmp_path / "train.py", pictures(tmp_path / "data")
    train.write_text(text("simclr", "xray", "classification", "2d", backbone="cnn"))
    monkeypatch.setattr(dry_run, "_rehearsed", step)
    given = ["dry-run", str(train), "--data", str(manifest), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.main, [*given, "--workers", "2", "--size", "32"])
    assert done.exit_code == 2
    said = done.output.splitlines()[-1]  # after the script's note on small batches
    gpu = isinstance(error, torch.cuda.OutOfMemoryError)
    where = "this GPU" if gpu else "this machine"
    assert said.startswith(f"error: not enough memory on {where} for these settings: ")
    assert "--batch-size" in said and ("--workers" in said) != gpu


def test_another_error_of_a_dry_run_shows_itself(tmp_path, monkeypatch) -> None:
    def step(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    module = script("simclr", "xray", "classification", "2d", backbone="cnn")
    manifest = pictures(tmp_path / "data")
    monkeypatch.setattr(dry_run, "_rehearsed", step)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(dry_run.estimate(module, manifest, tmp_path / "out", options(module)))


def test_amounts_are_told_in_units_that_suit_them() -> None:
    short = [dry_run._time(n) for n in (0.001, 1 / 60, 0.5)]
    assert short == ["under a minute", "1 minute", "30 minutes"]
    long = [dry_run._time(n) for n in (0.999, 1.26, 9.96, 240)]
    assert long == ["1.0 hours", "1.3 hours", "10 hours", "240 hours"]
    sizes = [dry_run._size(n) for n in (251e3, 18.4e6, 2.51e9)]
    assert sizes == ["under 1 MB", "18.4 MB", "2.51 GB"]
