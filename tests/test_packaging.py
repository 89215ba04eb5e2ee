"""The wheel holds what the checkout holds, and works where neither the checkout nor torch is."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest

PROFILE = ["--modality", "ct", "--task", "segmentation", "--labeled", "40", "--unlabeled", "3000"]


def run(*command: str | Path, cwd: Path) -> str:
    """The standard output of a command in a folder, away from any PYTHONPATH of this process."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COVERAGE"))}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="session")
def built(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source archive, and the wheel made from it, so that what the archive lacks is missed."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, cwd=root)
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="session")
def installed(
    root: Path, built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The scripts folder of an environment with the wheel and its run-time dependencies only."""
    home = tmp_path_factory.mktemp("installed") / "with a space"
    venv.create(home, with_pip=True)
    scripts = home / ("Scripts" if os.name == "nt" else "bin")
    pip = [scripts / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "-c", root / "constraints.txt", built[1], cwd=home)
    return scripts


@pytest.mark.parametrize("folder", ["rules", "templates"])
def test_the_wheel_holds_what_the_checkout_holds(
    root: Path, built: tuple[Path, Path], tmp_path: Path, folder: str
) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        wheel.extractall(tmp_path)
    assert tree(tmp_path / "advisor" / folder) == tree(root / folder)
    code = {
        name for name in tree(root / "advisor") if not name.startswith(("rules/", "templates/"))
    }
    assert code <= set(tree(tmp_path / "advisor"))
    assert {path.name.split("-")[0] for path in tmp_path.iterdir()} == {"advisor", "medssl_advisor"}


def test_the_train_extra_names_what_the_templates_import(root: Path) -> None:
    named = {re.split(r"[^\w-]", line)[0].lower() for line in requires("medssl-advisor") or []}
    imported = set()
    for path in (root / "templates").rglob("*.j2"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add((node.module or "").partition(".")[0])
    distributions = {"PIL": "pillow", "openslide": "openslide-python"}
    foreign = {distributions.get(name, name) for name in imported - sys.stdlib_module_names}
    assert foreign - {"slots"} <= named


def test_the_source_archive_holds_no_environment(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"Makefile", "constraints.txt", "LICENSE", "tests/test_packaging.py"} <= names
    assert not [name for name in names if "site-packages" in name or "__pycache__" in name]


def test_the_installed_command_recommends(installed: Path, tmp_path: Path) -> None:
    out = run(installed / "medssl", "recommend", *PROFILE, "--format", "json", cwd=tmp_path)
    answer = json.loads(out)
    assert answer["schema_version"] == 1
    assert answer["strategies"][0]["rank"] == 1


def test_the_installed_command_writes_a_script(installed: Path, tmp_path: Path) -> None:
    run(installed / "medssl", "generate", *PROFILE, "-o", "train.py", cwd=tmp_path)
    script = ast.parse((tmp_path / "train.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(script) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert "torch" in {alias.name for node in imports for alias in node.names}
    assert not [n for n in imports if "advisor" in (getattr(n, "module", None) or "")]


def test_nothing_heavy_was_needed(installed: Path, tmp_path: Path) -> None:
    look = "import importlib.util as u; print([m for m in ('torch', 'monai') if u.find_spec(m)])"
    assert run(installed / "python", "-c", look, cwd=tmp_path).strip() == "[]"
    where = run(installed / "python", "-c", "import advisor; print(advisor.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)
