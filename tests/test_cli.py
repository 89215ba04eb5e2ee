"""The command line: what is asked, what is printed where, what is written, and how it fails."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from advisor import Knowledge, Profile, Recommendation, files, questionnaire, recommend
from advisor.cli import main
from advisor.explain import options
from advisor.names import SYNONYMS
from advisor.profile import TASKS, questions

CT = ["--modality", "ct", "--task", "segmentation", "--labeled", "40"]
MEDSSL = [sys.executable, "-m", "advisor"]
ENV = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


def run(*args: str, input: str | None = None) -> Result:
    """One call in this process, at 80 columns; only `sys.exit` may end it."""
    result = CliRunner().invoke(main, list(args), input=input, env={"COLUMNS": "80"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def answered() -> Recommendation:
    """The answer to the problem of most tests."""
    return recommend({"modality": "ct", "task": "segmentation", "labeled": 40})


def refused(*args: str, input: str | None = None) -> str:
    """The one line with which a call fails."""
    result = run(*args, input=input)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0].removeprefix("error: ")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- help and the shape of the command line


def test_the_first_screen_says_what_to_type() -> None:
    for args in ([], ["--help"], ["-h"]):
        result = run(*args)
        assert result.exit_code == 0
        first = result.stdout.splitlines()[:24]
        for command in ("medssl ask", "medssl recommend --modality", "medssl generate"):
            assert any(command in line for line in first)


def test_every_command_stands_under_a_heading() -> None:
    assert "Other:" not in run("--help").stdout


@pytest.mark.parametrize("command", ["recommend", "generate"])
def test_every_field_of_the_profile_is_an_option(command: str) -> None:
    flags = {flag for param in main.commands[command].params for flag in param.opts}
    assert {"--" + name.replace("_", "-") for name in Profile.model_fields} <= flags
    for asked in questions():
        assert asked.question.split()[0] in run(command, "--help").stdout


def test_versions() -> None:
    assert Knowledge.load().version in run("--version").stdout


def test_help_is_light() -> None:
    code = "import sys, advisor.cli; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENV
    )
    heavy = {"torch", "monai", "numpy", "jinja2", "durable", "rich", "advisor.plan"}
    assert not heavy & set(loaded.stdout.split())


def test_the_shell_can_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    env = {
        "_MEDSSL_COMPLETE": "bash_complete",
        "COMP_CWORD": "2",
        "COMP_WORDS": "medssl explain ma",
    }
    shown = CliRunner().invoke(main, [], prog_name="medssl", env=env).stdout
    assert "plain,mae" in shown


# --- recommend


def test_an_answer_fits_the_terminal_and_carries_no_escape_codes() -> None:
    for width in ("80", "120"):
        result = CliRunner().invoke(main, ["recommend", *CT], env={"COLUMNS": width})
        assert result.exit_code == 0 and result.stderr == ""
        assert "\x1b" not in result.stdout
        assert max(map(len, result.stdout.splitlines())) <= int(width)
        assert all(line == line.rstrip() for line in result.stdout.splitlines())
        headings = ("Strategies", "Why ", "What speaks against it", "What would change", "Next")
        assert all(any(x.startswith(h) for x in result.stdout.splitlines()) for h in headings)


def test_a_terminal_gets_style_and_no_color_takes_the_colours() -> None:
    pty = pytest.importorskip("pty")
    for no_color, coloured in (("1", False), ("", True)):
        env = {**ENV, "TERM": "xterm-256color", "NO_COLOR": no_color}
        leader, follower = pty.openpty()
        process = subprocess.Popen([*MEDSSL, "recommend", *CT], stdout=follower, env=env)
        os.close(follower)
        shown = b""
        while chunk := _chunk(leader):
            shown += chunk
        os.close(leader)
        assert process.wait() == 0
        assert (b"\x1b[32m" in shown) == coloured
        assert b"\x1b[1m" in shown


def _chunk(leader: int) -> bytes:
    try:
        return os.read(leader, 65536)
    except OSError:  # Linux says so when the other end is closed
        return b""


def test_all_lists_every_strategy() -> None:
    shown = run("recommend", *CT, "--all").stdout
    assert all(s.method in shown for s in answered().strategies)
    assert "--all" not in shown


def test_json_is_the_recommendation_and_nothing_else() -> None:
    result = run("recommend", *CT, "--format", "json")
    assert result.stderr == ""
    found = Recommendation.model_validate_json(result.stdout)
    assert found == answered()


@pytest.mark.parametrize("engine", ["auto", "reference"])
def test_engines_can_be_chosen(engine: str) -> None:
    found = json.loads(run("recommend", *CT, "--engine", engine, "--format", "json").stdout)
    assert engine == "auto" or found["engine"] == engine


def test_a_profile_comes_from_yaml_json_or_standard_input_and_options_win(here: Path) -> None:
    Path("p.yaml").write_text("modality: ct\ntask: segmentation\nmultilabel: no\nhours: unknown\n")
    Path("p.json").write_text('\ufeff{"modality": "ct", "task": "segmentation", "hours": null}')
    for name, input in (("p.yaml", None), ("p.json", None), ("-", Path("p.json").read_text())):
        args = ("--profile", name, "--labeled", "7", "--task", "Classification", "--format", "json")
        profile = json.loads(run("recommend", *args, input=input).stdout)["profile"]
        assert (profile["modality"], profile["task"]) == ("ct", "classification")
        assert (profile["labeled"], profile["hours"]) == (7, None)


def test_the_command_shown_gives_the_same_profile_again() -> None:
    given = {"modality": "mri", "task": "detection", "labeled": 3, "multi_view": True, "hours": 1.5}
    profile = Profile.parse(given)
    shown = run("recommend", *options(profile).split(), "--format", "json").stdout
    assert Profile.parse(json.loads(shown)["profile"]) == profile


def test_an_answer_is_saved_as_text_or_json_by_the_name_of_the_file(here: Path) -> None:
    for name in ("a.txt", "a.json"):
        result = run("recommend", *CT, "-o", name)
        assert result.exit_code == 0 and result.stdout == "" and name in result.stderr
    assert json.loads(Path("a.json").read_text())["schema_version"] == 1
    assert "Strategies" in Path("a.txt").read_text()
    assert run("recommend", *CT, "-o", "-").stdout.startswith(Path("a.txt").read_text()[:20])


# --- what goes wrong is one line


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["recommend"], "--modality and --task"),
        (["recommend", "--modality", "ct"], "task: missing"),
        (["recommend", "--modality", "cta", "--task", "detection"], "did you mean 'ct'?"),
        (
            ["recommend", "--modality", "ct", "--task", "segmentaton"],
            "did you mean 'segmentation'?",
        ),
        (["recommend", *CT, "--labeled", "-3"], "labeled: '-3' is not allowed: a whole number"),
        (["recommend", *CT, "--hours", "nan"], "hours:"),
        (["recommend", *CT, "--engine", "magic"], "magic"),
        (["recommend", *CT, "--labelled", "3"], "--labelled"),
        (["recommend", "--profile", "nowhere.yaml"], "nowhere.yaml: cannot be read: no such file"),
        (["recommend", "--profile", "."], ".: cannot be read: is a directory"),
        (["recommend", *CT, "-o", "no/where.txt"], "there is no folder no"),
        (["recommend", *CT, "-o", "."], "is a folder"),
        (["explain", "maee"], "did you mean 'mae'?"),
        (["explain", "needs:backbone"], "method's card"),
        (["explain"], "NAME"),
        (["recommend", *CT, "--why", "maee"], "did you mean 'mae'?"),
        (["recommend", "--modality", "ct", "--task", "seg"], "did you mean 'segmentation'?"),
        (["recommend", "--modality", "wsi", "--task", "detection"], "mean 'histopathology'?"),
        (["recommend", "--modality", "CXR", "--task", "detection"], "did you mean 'xray'?"),
        (["recommend", "--modality", "us", "--task", "detection"], "did you mean 'ultrasound'?"),
        (["recommend", "--modality", "brain mri", "--task", "detection"], "did you mean 'mri'?"),
        (["recommend", *CT, "--format", "markdown", "-o", "x.json"], ".json means json"),
        (["recommend", *CT, "--format", "json", "-o", "x.md"], "leave --format json out"),
        (["generate", *CT, "--method", "maee"], "did you mean 'mae'?"),
        (["generate", *CT, "--set", "nonsense=1"], "nonsense"),
        (["generate", *CT, "--set", "nonsense"], "NAME=VALUE"),
        (["generate", *CT, "--from", "rec.json"], "--from"),
        (["generate", *CT, "--method", "convirt"], "convirt"),
        (["generate", "--from", "nowhere.json"], "nowhere.json: cannot be read"),
        (["schema", "prophet"], "prophet"),
        (["rules", "check", "nowhere"], "nowhere"),
        (["recomend"], "recomend"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_told_in_one_line(here: Path, args: list[str], words: str) -> None:
    assert words in refused(*args)
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"modality": "ct",\n "task" "x"}', "p:2:9: not valid JSON"),
        ('{"modality": "ct", "modality": "mri"}', "'modality' is given twice"),
        ("modality: ct\nmodality: mri\n", "p:2: 'modality' is given twice"),
        ("modality: [ct\n", "not valid YAML"),
        ("- ct\n", "a mapping"),
        ("[1]", "a mapping"),
        ("[" * 100_000, "p: "),
        ("", "empty"),
        ("modality: ct\ntask: segmentation\nlabled: 4\n", "p: labled: there is no such field"),
        ("modality: ct\ntask: segmentation\nlabeled: many\n", "p: labeled: 'many'"),
    ],
)
def test_a_bad_profile_file_is_told_with_its_place(here: Path, text: str, words: str) -> None:
    Path("p").write_text(text)
    assert words in refused("recommend", "--profile", "p")


def test_a_profile_that_is_no_text(here: Path) -> None:
    Path("p").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refused("recommend", "--profile", "p")


def test_a_broken_rule_base_is_told_with_file_and_line(here: Path) -> None:
    Path("rules/advice").mkdir(parents=True)
    Path("rules/advice/labels.yaml").write_text("- id: x\n  prefer: [maee]\n")
    result = run("rules", "check", "rules")
    assert result.exit_code == 1
    assert "rules/advice/labels.yaml:" in result.stdout
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1


def test_a_missing_package_names_the_extra(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_demo(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    fake_demo(monkeypatch, run_demo)
    assert refused("demo") == 'torch is not installed; pip install "medssl-advisor[train]"'


def test_a_bug_may_show_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("a bug")

    fake_demo(monkeypatch, broken)
    with pytest.raises(ValueError, match="a bug"):
        run("demo", "--out", "does-not-exist")


def test_a_console_without_unicode_still_gets_an_answer() -> None:
    env = {**ENV, "PYTHONIOENCODING": "ascii"}
    shown = subprocess.run([*MEDSSL, "recommend", *CT], capture_output=True, check=True, env=env)
    assert shown.stdout.isascii() and b"Strategies" in shown.stdout and shown.stderr == b""


def test_a_reader_that_stops_early_is_no_error() -> None:
    command = " ".join([*MEDSSL, "recommend", *CT, "--all", "|", "head", "-n", "1"])
    shown = subprocess.run(
        command, shell=True, capture_output=True, text=True, check=False, env=ENV
    )
    assert shown.stderr == ""


# --- generate


def test_a_script_is_written_and_the_next_commands_are_told(here: Path) -> None:
    result = run("generate", *CT)
    assert result.exit_code == 0 and result.stdout == ""
    ast.parse(Path("train.py").read_text())
    shown = result.stderr.splitlines()
    told = [tuple(line.split()[:3]) for line in shown[shown.index("next:") + 1 :]]
    stages = [("python", "train.py", stage) for stage in ("pretrain", "finetune", "evaluate")]
    assert told == [("medssl", "preview", "train.py"), *stages, ("medssl", "report", "train.py")]
    assert "exists already" in refused("generate", *CT)
    before = Path("train.py").read_text()
    emitted = (s.method for s in answered().strategies if s.emits)
    _, second, *_ = emitted
    assert run("generate", *CT, "--method", second, "--force").exit_code == 0
    assert Path("train.py").read_text() != before


def test_a_script_on_standard_output_is_only_the_script(here: Path) -> None:
    result = run("generate", *CT, "-o", "-", "--set", "seeds=2")
    ast.parse(result.stdout)
    assert "seeds: int = 2" in result.stdout
    assert not list(here.iterdir())


def test_a_saved_answer_gives_the_same_script(here: Path) -> None:
    run("recommend", *CT, "-o", "rec.json")
    assert run("generate", *CT, "-o", "a.py").exit_code == 0
    assert run("generate", "--from", "rec.json", "-o", "b.py").exit_code == 0
    assert Path("a.py").read_text() == Path("b.py").read_text()


def test_an_answer_of_other_knowledge_is_told(here: Path) -> None:
    run("recommend", *CT, "-o", "rec.json")
    saved = json.loads(Path("rec.json").read_text())
    saved["knowledge"]["sha256"] = "0" * 64
    Path("rec.json").write_text(json.dumps(saved))
    assert "other knowledge" in run("generate", "--from", "rec.json", "-o", "-").stderr


def test_a_file_that_is_no_answer_is_told(here: Path) -> None:
    Path("rec.json").write_text('{"schema_version": 1}')
    assert "rec.json: not an answer saved by" in refused("generate", "--from", "rec.json")


def test_a_saved_answer_is_no_profile(here: Path) -> None:
    run("recommend", *CT, "-o", "a.json")
    said = refused("recommend", "--profile", "a.json")
    assert said.startswith("a.json: is a saved answer")
    assert "medssl diff" in said and "medssl generate --from" in said


def test_a_saved_answer_that_names_no_method_is_told(here: Path) -> None:
    saved = answered().model_dump_json()
    first = next(s.method for s in answered().strategies if s.emits)
    Path("bad.json").write_text(saved.replace(f'"{first}"', f'"{first}e"'))
    said = refused("generate", "--from", "bad.json", "-o", "-").splitlines()[-1]
    assert said == f"bad.json: there is no method '{first}e'; did you mean '{first}'?"
    other = next(s.method for s in answered().strategies if s.emits and s.method != first)
    assert run("generate", "--from", "bad.json", "--method", other, "-o", "-").exit_code == 0


def test_synonyms_name_what_there_is() -> None:
    known = {*Knowledge.load().modalities, *TASKS}
    assert set(SYNONYMS.values()) <= known and not set(SYNONYMS) & known


def test_the_next_best_is_taken_aloud_where_the_best_has_no_script(here: Path) -> None:
    found = recommend({"modality": "ct", "task": "classification"})
    first = found.strategies[0].model_copy(update={"emits": False})
    second = next(s.method for s in found.strategies[1:] if s.emits)
    without = found.model_copy(update={"strategies": (first, *found.strategies[1:])})
    Path("rec.json").write_text(without.model_dump_json())
    result = run("generate", "--from", "rec.json", "-o", "-")
    assert f"note: {first.method} ranks first" in result.stderr and second in result.stderr


def test_a_file_is_replaced_whole_or_not_at_all(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("a").write_text("old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(files.FileError, match="a: cannot be written: no space left"):
        files.write(Path("a"), "new", force=True)
    assert [p.name for p in here.iterdir()] == ["a"] and Path("a").read_text() == "old"


def test_a_link_stays_a_link_and_a_mode_stays(here: Path) -> None:
    Path("real").write_text("old")
    Path("real").chmod(0o640)
    Path("link").symlink_to("real")
    files.write(Path("link"), "new", force=True)
    assert Path("link").is_symlink() and Path("real").read_text() == "new"
    assert Path("real").stat().st_mode & 0o777 == 0o640


# --- looking things up


def test_methods_and_modalities_are_the_files(root: Path) -> None:
    for kind in ("methods", "modalities"):
        ids = sorted(p.stem for p in (root / "rules" / kind).glob("*.yaml"))
        assert sorted(c["id"] for c in json.loads(run(kind, "--format", "json").stdout)) == ids
        shown = run(kind).stdout
        assert all(f"  {id} " in shown for id in ids)


def test_the_shipped_rules_are_in_order() -> None:
    result = run("rules", "check")
    assert result.exit_code == 0, result.stdout
    assert f"{len(Knowledge.load().rules)} rules" in result.stdout


@pytest.mark.parametrize("what", ["profile", "recommendation", "difference", "rules"])
def test_schemas_are_json(what: str) -> None:
    result = run("schema", what)
    assert result.stderr == ""
    schema = json.loads(result.stdout)
    assert schema["type"] in ("object", "array")
    if what == "profile":
        assert list(schema["properties"]) == list(Profile.model_fields)


def test_explain_speaks_three_forms() -> None:
    assert json.loads(run("explain", "mae", "--format", "json").stdout)["kind"] == "method"
    assert run("explain", "mae", "--format", "markdown").stdout.startswith("# ")
    assert len(run("explain", "mae").stdout) < len(run("explain", "MAE", "--all").stdout)


# --- demo


def fake_demo(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    """Stands in for the real demo, which trains."""
    module = ModuleType("advisor.demo")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "advisor.demo", module)


def test_the_demo_does_not_touch_a_folder_with_something_in_it(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    fake_demo(monkeypatch, lambda *args: calls.append(args))
    assert run("demo").exit_code == 0
    Path("medssl-demo").mkdir()
    Path("medssl-demo/mine").touch()
    assert "medssl-demo" in refused("demo")
    assert run("demo", "--force", "--minutes", "2", "--data", "d").exit_code == 0
    out = Path("medssl-demo")
    assert calls == [(None, out, None, "mri", None), (Path("d"), out, 2.0, "mri", None)]


# --- ask

OPEN = len(Profile.model_fields)  # questions, of which segmentation spares one


def answers(*lines: str) -> str:
    return "".join(f"{line}\n" for line in lines)


def test_ask_works_over_a_pipe(here: Path) -> None:
    """By name, beginning and number; unknown by u, by enter and by done; then the script."""
    modality = list(Knowledge.load().modalities).index("ct") + 1
    given = answers(str(modality), "seg", "3d", "40", "u", "", "done", "", "my.py")
    shown = subprocess.run(
        [*MEDSSL, "ask"], input=given, capture_output=True, text=True, check=True, cwd=here,
        env=ENV,
    )  # fmt: skip
    assert "Strategies" in shown.stdout and "\x1b" not in shown.stdout + shown.stderr
    assert "wrote my.py" in shown.stderr
    header = Path("my.py").read_text().split('"""')[0]
    assert "modality ct; task segmentation; dimensionality 3d; labeled 40" in header


def test_every_question_can_be_left_open_but_two(here: Path) -> None:
    result = run("ask", input=answers("ct", "segmentation", *[""] * (OPEN - 3), "", "n"))
    assert result.exit_code == 0
    for asked in questions():
        if asked.name != "multilabel":  # not a matter of segmentation
            assert asked.question.split(",")[0][:30] in result.stderr
    assert not list(here.iterdir())


def test_what_is_settled_is_not_asked() -> None:
    said, profile = converse("xray", "regression", *[""] * 8, "0", *[""] * 4)
    assert profile.gpus == 0
    assert "flat, volumes or films" not in said and "How many classes" not in said
    assert "several labels" not in said and "memory" not in said


def converse(*lines: str) -> tuple[str, Profile]:
    """Everything said in a conversation, and what came out; every line has to be read."""
    said: list[str] = []
    given = iter(lines)

    def say(line: str, strong: bool = False) -> None:
        said.append(line)

    profile = questionnaire.converse(Knowledge.load(), say, lambda prompt: next(given))
    assert list(given) == []
    return "\n".join(said), profile


def test_back_takes_the_last_answer_back_and_offers_it_again() -> None:
    said, profile = converse("b", "ct", "seg", "b", "b", "xr", "", "40", "b", "", "done", "")
    assert "this is the first question" in said and "enter: segmentation" in said
    assert (profile.modality, profile.task, profile.labeled) == ("xray", "segmentation", 40)


def test_an_answer_that_no_longer_applies_is_dropped() -> None:
    _, profile = converse("ct", "seg", "3d", "done", "1", "xray", "")
    assert (profile.modality, profile.dimensionality) == ("xray", None)


def test_the_summary_lets_one_answer_be_changed_by_number_or_name() -> None:
    _, profile = converse("ct", "seg", "done", "4", "12", "gpus", "2", "b", "3", "")
    assert (profile.labeled, profile.gpus) == (12, 3)


def test_a_question_mark_says_more_and_nonsense_is_asked_again() -> None:
    said, profile = converse("?", "nonsense", "u", "cl", "2d", "many", "-1", "5", "done", "")
    assert "Type the name" in said and "'nonsense' is none of" in said
    assert "labeled: 'many' is not allowed" in said and "labeled: '-1' is not allowed" in said
    assert (profile.modality, profile.labeled) == ("ultrasound", 5)


def test_three_means_three_dimensions() -> None:
    _, profile = converse("ct", "seg", "3", "done", "")
    assert profile.dimensionality == "3d"


def test_done_needs_modality_and_task() -> None:
    assert "task has to be answered first" in converse("ct", "done", "seg", "done", "")[0]


@pytest.mark.parametrize("lines", [[], ["ct"], ["ct", "seg", "done"], ["ct", "seg", "done", ""]])
def test_the_end_of_input_writes_nothing(here: Path, lines: list[str]) -> None:
    result = run("ask", input=answers(*lines))
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("error: the input ended")
    assert not list(here.iterdir())


def test_a_script_is_never_replaced_without_a_yes(here: Path) -> None:
    Path("train.py").write_text("mine")
    start = ("ct", "seg", "done", "")
    for reply, kept in (("", True), ("no", True), ("yes", False)):
        more = ("n",) if kept else ()
        assert run("ask", input=answers(*start, "", reply, *more)).exit_code == 0
        assert (Path("train.py").read_text() == "mine") == kept


def test_ctrl_c_stops_with_one_line(here: Path) -> None:
    """Also where these tests run in the background of a shell, whose children are deaf to it."""
    process = subprocess.Popen(
        [*MEDSSL, "ask"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=here,
        env=ENV, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stdin and process.stderr
    while not process.stderr.readline().startswith("1 of"):
        pass
    time.sleep(0.2)  # until it waits for the answer
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=20)
    assert process.returncode == 130
    assert shown.splitlines()[-1] == "error: stopped; nothing was written"
    assert "Traceback" not in shown and not list(here.iterdir())
