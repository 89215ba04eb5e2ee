"""The shape of the package: imports point one way, importing is light, files have one way in."""

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import advisor

PACKAGE = Path(advisor.__file__).parent
MODULES = [p for p in sorted(PACKAGE.glob("*.py")) if p.stem not in ("__init__", "__main__")]

# A module may import only what stands before it; `audit` and `__init__` may import anything,
# and only commands import `audit`.
ORDER = """
    engine names profile base cards reading folder packs checkpoints layers ranges
    facts conditions references lint
    knowledge
    scoring whatif answer ranking
    page words explain handbook evidence defence compare difference
    parts layout origin plan render project regenerated
    files dataset beside questionnaire shell demo audit lookup running scripts cli
""".split()


def imported(path: Path) -> Iterator[str]:
    """First names under the package that a file imports at run time, wherever in the file."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            inside = ".".join(("advisor", *path.parent.relative_to(PACKAGE).parts))
            start = inside if node.level == 1 else "advisor" if node.level else ""
            stem = ".".join(filter(None, (start, node.module)))
            names = [f"{stem}.{a.name}" for a in node.names] if stem == "advisor" else [stem]
        else:
            continue
        yield from (n.split(".")[1] for n in names if n.startswith("advisor."))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_imports_point_one_way(path: Path) -> None:
    assert path.stem in ORDER, f"give {path.name} its place in ORDER"
    before = ORDER[: ORDER.index(path.stem)]
    assert set(imported(path)) <= set(before)


def test_the_engine_imports_nothing_of_the_rest() -> None:
    for path in (PACKAGE / "engine").glob("*.py"):
        assert set(imported(path)) <= {"engine"}, path.name


def test_only_the_engine_knows_durable_rules_and_only_render_knows_jinja() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert ("import jinja2" in text) <= (path.name == "render.py"), path.name
        known = path.relative_to(PACKAGE).as_posix() == "engine/durable.py"
        assert ("from durable" in text or "import durable" in text) <= known, path.name


def test_rules_and_templates_are_found_in_one_place() -> None:
    """`home` alone knows where the package is; no other file looks from its own place."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert ("__file__" in text) <= (path.name == "knowledge.py"), path.name
        assert "importlib.resources" not in text, path.name


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


HEAVY = {"torch", "monai", "numpy", "jinja2", "durable", "rich", "click"}


def test_importing_advisor_is_light() -> None:
    loaded = run("import sys, advisor; print(*sys.modules)").split()
    assert not HEAVY & set(loaded)


def test_asking_needs_no_template_and_no_terminal() -> None:
    ask = "advisor.recommend({'modality': 'ct', 'task': 'segmentation'}, engine='reference')"
    loaded = run(f"import sys, advisor; {ask}; print(*sys.modules)").split()
    assert not HEAVY & set(loaded)


def test_the_public_names_are_sorted_and_complete() -> None:
    public = {
        name
        for name, thing in vars(advisor).items()
        if not (name.startswith("_") or inspect.ismodule(thing))
        and getattr(thing, "__module__", "").startswith("advisor")
    }
    assert list(advisor.__all__) == sorted(public)


def test_public_names_are_documented_and_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
    for name in advisor.__all__:
        assert inspect.getdoc(getattr(advisor, name)), name


def test_generate_takes_answers_a_profile_or_a_recommendation() -> None:
    answers = {"modality": "ct", "task": "segmentation", "labeled": 40}
    script = advisor.generate(answers)
    assert script == advisor.generate(advisor.Profile.parse(answers))
    assert script == advisor.generate(advisor.recommend(answers))
    compile(script, "train.py", "exec")


def test_settings_are_changed_in_python_as_on_the_command_line() -> None:
    answers = {"modality": "ct", "task": "segmentation", "labeled": 40}
    changed = {"seeds": "2", "label_fractions": "0.1,1.0"}
    script = advisor.generate(answers, "mae", changed)
    assert "seeds: int = 2" in script and script != advisor.generate(answers, "mae")
    plan = advisor.make_plan(advisor.recommend(answers), "mae", changed)
    assert {s.value for s in plan.settings if s.source == "--set"} == {2, (0.1, 1.0)}


def test_a_printed_answer_is_short_and_its_pages_are_those_of_the_command() -> None:
    answer = advisor.recommend({"modality": "ct", "task": "segmentation", "labeled": 40})
    lines = str(answer).splitlines()
    assert lines[0] == answer.verdict and len(lines) < 10 and len(str(answer)) < 1000
    assert [line.split()[1] for line in lines[1:6]] == [s.method for s in answer.strategies[:5]]
    assert [line.split()[0][-1] == "=" for line in lines[1:6]] == [
        bool(s.tied_with) for s in answer.strategies[:5]
    ]
    none = answer.model_copy(update={"strategies": ()})
    assert str(none) == answer.verdict
    assert advisor.as_text(answer).startswith(answer.verdict[:20])
    assert advisor.as_markdown(answer).startswith(f"# {answer.verdict[:20]}")
    whole = advisor.as_markdown(answer, everything=True)
    assert all(f"| {s.method} |" in whole for s in answer.strategies)
    assert advisor.Recommendation.model_validate_json(answer.model_dump_json()) == answer
