"""The demo prints commands that can be pasted, and fails with a line and nothing left behind."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from advisor import demo
from advisor.cli import main
from advisor.dataset import Found

TASK = "Task04_Hippocampus"
BRAIN = {
    "modality": "mri",
    "task": "segmentation",
    "dimensionality": "2d",
    "labeled": 8,
    "unlabeled": 100,
    "classes": 3,
    "backbone": "cnn",
    "batch_size": 8,
    "gpus": 0,
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "_need", lambda *_, **__: None)
    return tmp_path


def medssl(*words: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == code, done.output
    return done


def test_without_network_one_line_says_so_and_no_folder_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    datasets = pytest.importorskip("monai.apps")

    def offline(*_: object, **__: object) -> None:
        try:
            raise OSError(-2, "Name or service not known")
        except OSError as error:
            raise Exception("Error processing URL: a page of wrapped errors") from error

    monkeypatch.setattr(datasets.DecathlonDataset, "__init__", offline)
    said = medssl("demo", "--decathlon", TASK, "--out", "d6", code=2).stderr
    assert said.startswith(f"error: {TASK} cannot be downloaded (Name or service not known); ")
    assert f"{TASK}.tar" in said and "--data" in said and said.count("\n") == 1
    assert list(Path().iterdir()) == []
    said = medssl("demo", "--decathlon", "Task04_Hipocampus", code=2).stderr
    assert said.endswith(f"did you mean '{TASK}'?\n") and list(Path().iterdir()) == []


def test_a_folder_that_was_there_stays_when_the_demo_fails() -> None:
    Path("empty").mkdir()
    for out in ("empty", "new"):
        medssl("demo", "--data", "nowhere", "--out", out, code=2)
    assert [path.name for path in Path().iterdir()] == ["empty"]


def test_a_folder_and_a_download_exclude_each_other() -> None:
    said = medssl("demo", "--data", "d", "--decathlon", TASK, code=2).stderr
    assert "--data and --decathlon exclude each other" in said


def test_the_command_that_is_shown_gives_what_is_shown_below_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = demo.Demo("A brain.", Found("segmentation", "2d", ("a", "b"), ()), (2, 8))
    demo._answer(BRAIN, given, Path(), 1.0)
    shown = capsys.readouterr().out
    command = next(line for line in shown.splitlines() if line.startswith("$ "))
    again = medssl(*shlex.split(command)[2:]).stdout
    listed = again.partition("\n\nWhy ")[0]
    assert "= tied" in listed and listed in shown


def test_the_script_is_run_and_reported_by_commands_that_can_be_pasted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[list[str]] = []

    class Done:
        returncode = 3

    found = Found("segmentation", "2d", ("a", "b"), ())
    monkeypatch.setattr(demo, "_brain", lambda _: demo.Demo("A brain.", found, (2, 8)))
    monkeypatch.setattr(demo.subprocess, "run", lambda words: ran.append(words) or Done())
    with pytest.raises(SystemExit) as stopped:
        demo.run(None, Path("my demo"))
    assert stopped.value.code == 3
    command = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("$ "))
    assert command[0] == "python" and ran == [[sys.executable, *command[1:]]]
    assert Path(command[1]).exists()
