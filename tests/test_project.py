"""A project has all that a newcomer needs, and a script knows what it was emitted from."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from advisor import origin, project, recommend
from advisor.cli import main
from advisor.parts import part
from advisor.plan import make_plan
from advisor.render import render

ROOT = Path(__file__).parent.parent
CT = ("--modality", "ct", "--task", "segmentation", "--labeled", "40")
PROFILE = {"modality": "ct", "task": "segmentation", "labeled": 40}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def medssl(*words: str, code: int = 0) -> Result:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == code, done.output
    return done


def script(*more: str) -> Path:
    medssl("generate", *CT, "--method", "mae", *more)
    return Path("train.py")


# --- the project


def test_a_project_holds_everything_and_agrees_with_itself() -> None:
    medssl("generate", *CT, "--project", "p")
    found = {path.name for path in Path("p").iterdir()}
    assert found == {
        "train.py", "manifest.csv", "requirements.txt", "train.sbatch", "README.md",
        "recommendation.json", "explanation.md",
    }  # fmt: skip
    saved = json.loads(Path("p/recommendation.json").read_text())
    assert saved["profile"]["labeled"] == 40
    assert Path("p/manifest.csv").read_text() == "path,mask,patient,split\n"
    assert saved["verdict"] in Path("p/README.md").read_text()
    assert saved["strategies"][0]["name"] in Path("p/explanation.md").read_text()
    again = CliRunner().invoke(main, ["generate", "--from", "p/recommendation.json", "-o", "-"])
    assert again.stdout.rstrip() == Path("p/train.py").read_text().rstrip()


def test_the_readme_names_the_stages_that_the_script_has() -> None:
    for method, first in (("mae", ["pretrain"]), ("scratch", []), ("imagenet", ["convert"])):
        answered = recommend({"modality": "xray", "task": "classification"})
        if not any(s.emits and s.method == method for s in answered.strategies):
            continue
        plan = make_plan(answered, method)
        readme = project.files(answered, plan)["README.md"]
        named = re.findall(r"^python train.py (\w+)", readme, re.MULTILINE)
        assert named == [*first, "finetune", "evaluate"], method
        body = "\n".join(part(name).body for name in plan.parts)
        for stage in named:
            assert f"{stage}(" in body, stage


def test_a_project_and_a_batch_file_alone_give_a_job_the_same_time() -> None:
    medssl("generate", *CT, "--hours", "6", "--project", "p")
    medssl("generate", *CT, "--hours", "6", "--slurm")
    assert "#SBATCH --time=06:00:00" in Path("p/train.sbatch").read_text()
    assert Path("p/train.sbatch").read_text() == Path("train.sbatch").read_text()


XRAY = ("--modality", "xray", "--task", "classification")


@pytest.mark.parametrize(
    ("more", "asked"),
    [
        (("--method", "public-checkpoint"), True),
        (("--method", "public-checkpoint", "--set", "weights=w.pt"), False),
        (("--method", "imagenet"), False),
    ],
)
def test_a_script_that_asks_for_weights_is_shown_with_them(more: tuple[str], asked: bool) -> None:
    said = medssl("generate", *XRAY, *more, "--slurm").stderr
    medssl("generate", *XRAY, *more, "--project", "p")
    told = {
        line.strip(): line.endswith(" --weights FILE")
        for line in [*said.splitlines(), *Path("p/README.md").read_text().splitlines()]
        if line.strip().startswith("python train.py")
    }
    assert len(told) == 3 and set(told.values()) == {asked}
    for text in (said, Path("p/README.md").read_text(), Path("train.sbatch").read_text()):
        assert ("WEIGHTS=FILE sbatch train.sbatch" in text) == asked
    for name, out in (("scontrol", "node1"), ("srun", "")):
        Path(name).write_text(f'#!/bin/bash\necho "{out}$@"\n')
        Path(name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{Path.cwd()}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    job = {"args": ["bash", "train.sbatch"], "text": True, "capture_output": True}
    plain = subprocess.run(env=environment, **job)
    assert ("name the downloaded checkpoint" in plain.stderr) == asked == bool(plain.returncode)
    given = subprocess.run(env={**environment, "WEIGHTS": "a b.pt"}, **job)
    assert given.returncode == 0 and given.stdout.endswith("--weights a b.pt\n") == asked


def test_what_is_there_is_never_replaced() -> None:
    Path("p").mkdir()
    medssl("generate", *CT, "--project", "p")  # an empty folder may be used
    before = {path: path.read_bytes() for path in Path("p").iterdir()}
    done = medssl("generate", *CT, "--project", "p", "--force", code=2)
    assert "exists already" in done.stderr and "\n" not in done.stderr.strip()
    assert {path: path.read_bytes() for path in Path("p").iterdir()} == before
    assert "no folder" in medssl("generate", *CT, "--project", "no/p", code=2).stderr
    assert [path.name for path in Path().iterdir()] == ["p"]  # and nothing half made is left


def test_a_project_cut_short_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert "no space left" in medssl("generate", *CT, "--project", "p", code=2).stderr
    assert list(Path().iterdir()) == []


def test_options_that_contradict_each_other_are_refused() -> None:
    assert "--project" in medssl("generate", *CT, "--project", "p", "-o", "a.py", code=2).stderr
    assert "--project" in medssl("generate", *CT, "--project", "p", "--slurm", code=2).stderr
    assert "-o" in medssl("generate", *CT, "--slurm", "-o", "-", code=2).stderr
    assert list(Path().iterdir()) == []


def test_requirements_are_what_the_script_imports_in_ranges_that_hold_the_tested_versions() -> None:
    plan = make_plan(recommend(PROFILE), "mae")
    lines = project.requirements(plan).splitlines()
    named = {re.split("[<>]", line)[0] for line in lines}
    imported = set(re.findall(r"^(?:import|from) (\w+)", render(plan), re.MULTILINE))
    installed = imported - set(sys.stdlib_module_names)
    assert named == {"pillow" if n == "PIL" else n for n in installed} | {"einops"}
    extra = {re.split("[<>=;]", line)[0].strip(): line for line in requires("medssl-advisor") or ()}
    tested = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    for line in [*project.RANGES.values(), *project.COMPANIONS.values()]:
        name, low, high = re.fullmatch(r"([\w-]+)>=([\d.]+),<(\d+)", line).groups()
        assert f">={low}" in extra[name], f"{name}: pyproject.toml says {extra[name]}"
        if name in tested:
            assert int(tested[name].split(".")[0]) < int(high), name


# --- the batch file

SRUN = """#!/bin/bash
shift
for SLURM_PROCID in 0 1; do export SLURM_PROCID; "$@" || code=$?; done; exit ${code:-0}
"""
PYTHON = """#!/bin/bash
echo "$RANK of $WORLD_SIZE at $MASTER_ADDR:$MASTER_PORT gpu $LOCAL_RANK: $*" >> calls
exit ${EXIT:-0}
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo node1; echo node2; else echo "$*" >> calls; fi
"""


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (143, True), (2, False)])
def test_a_batch_job_starts_one_process_a_gpu_and_goes_on_when_it_was_stopped(
    code: int, requeued: bool, here: Path
) -> None:
    said = medssl("generate", *CT, "--slurm", "--hours", "1.5", "--gpus", "4", "-o", "my.py").stderr
    assert said.endswith("\n  sbatch my.sbatch\n")
    text = Path("my.sbatch").read_text()
    assert (
        "\n# sbatch my.sbatch; " in text
        and "--ntasks-per-node=4" in text
        and "--time=01:30:00" in text
    )
    for name, body in (("srun", SRUN), ("python", PYTHON), ("scontrol", SCONTROL)):
        (here / name).write_text(body)
        (here / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "77", "SLURM_NTASKS": "2"}
    path = f"{here}:{os.environ['PATH']}"
    environment = {**os.environ, **slurm, "PATH": path, "EXIT": str(code), "OUT": "a b"}
    done = subprocess.run(["bash", "my.sbatch"], env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    calls = Path("calls").read_text().splitlines()
    command = "my.py all --data manifest.csv --out a b"
    assert calls[:2] == [f"{n} of 2 at node1:20077 gpu 0: {command}" for n in (0, 1)]
    assert calls[2:] == (["requeue 77"] if requeued else [])


# --- emitting again


def test_an_untouched_script_is_as_emitted_and_comes_out_alike() -> None:
    file = script("--set", "epochs=3")
    done = medssl("regenerate", str(file), "--check")
    assert "would emit the same script" in done.stdout
    assert "Changed in the file" not in done.stdout
    medssl("regenerate", str(file), "-o", "again.py")
    assert Path("again.py").read_text() == file.read_text()


def test_what_a_user_changes_is_named_and_only_that() -> None:
    file = script()
    text = file.read_text().replace("mask_ratio: float = 0.75", "mask_ratio: float = 0.6")
    assert "def save(" in text and "mask_ratio: float = 0.6" in text
    text = text.replace("def save(", "def own_helper():\n    pass\n\n\ndef save(")
    file.write_text("# my own remark\n" + text)
    done = medssl("regenerate", str(file), "--check", code=1)
    assert done.stdout.startswith("You have changed settings, loop; this version would emit the")
    changed = done.stdout.partition("Changed in the file")[2].partition("As it was emitted")[0]
    assert re.findall(r"[\w/-]+", changed)[-2:] == ["settings", "loop"]
    assert re.search(r"mask_ratio\s+0\.6\s+0\.75", done.stdout)


def test_parts_may_be_moved() -> None:
    file = script()
    text, made = file.read_text(), origin.read(file.read_text(), "train.py")
    body = part("methods/mae").body
    file.write_text(
        text.replace(body, "").replace('if __name__ == "__main__"', f"{body}\n\n\nif 1")
    )
    kept = origin.unchanged(file.read_text(), made, "train.py")
    assert {name for name, same in kept.items() if not same} == {"protocol"}


def test_what_stands_between_the_parts_counts_but_for_comments() -> None:
    file = script()
    text = file.read_text()
    file.write_text(text.replace("import argparse", "# my own remark\n\nimport argparse"))
    assert "the same script" in medssl("regenerate", str(file), "--check").stdout
    file.write_text(text.replace("import argparse", "import argparse\nimport pdb"))
    done = medssl("regenerate", str(file), "--check", code=1)
    assert "what stands between them" in done.stdout and "- import pdb" in done.stdout


def test_what_this_version_would_change_is_told_by_part() -> None:
    file = script()
    text = file.read_text()
    save = "torch.save(content, stream)"
    assert save in part("loop").body
    older = text.replace(save, "torch.save(content, file)")
    made = origin.read(text, "train.py")
    segments = [s for s in origin._segments(older) if s in older]  # as an older version emitted it
    start = next(i for i, s in enumerate(segments) if s.startswith("def rank_and_world"))
    loop = origin.fingerprint(segments[start : start + made.parts["loop"].nodes])
    file.write_text(older.replace(made.parts["loop"].digest, loop.digest))
    done = medssl("regenerate", str(file), "--check", code=1)
    assert "loop: differs" in done.stdout and "Changed in the file" not in done.stdout
    assert done.stdout.startswith("This version would emit other parts")
    assert "- torch.save(content, file)" in done.stdout
    assert "+ torch.save(content, stream)" in done.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("print(1)\n", "nothing is known of what it was emitted from"),
        (f"x = 1\n\n\n{origin.MARK}\n# {{not json\n", "is damaged"),
        (f'x = 1\n\n\n{origin.MARK}\n# {{"parts": "loop x"}}\n', "is damaged"),
    ],
)
def test_a_file_that_tells_nothing_is_refused_in_one_line(text: str, said: str) -> None:
    Path("own.py").write_text(text)
    error = medssl("regenerate", "own.py", "--check", code=2).stderr
    assert said in error and len(error.splitlines()) == 1


def test_broken_python_is_named_with_its_line() -> None:
    file = script()
    file.write_text("def (:\n" + file.read_text())
    assert (
        "train.py:1: is not valid Python"
        in medssl("regenerate", "train.py", "--check", code=2).stderr
    )


def test_the_words_of_a_script_survive_wrapping() -> None:
    plan = make_plan(recommend({**PROFILE, "hours": 12.5}), "mae", {"label_fractions": "1,0.5"})
    made = origin.read(render(plan), "x")
    assert made.model_copy(update={"parts": {}}) == plan.origin
    assert set(made.parts) == {"settings", *plan.parts}
