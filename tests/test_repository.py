import ast
import re
import sys

import pytest
from conftest import REPOSITORY

ALLOWED = {"models": set(), "utils": set(), "data": {"utils"}}
SCRIPTS = {"train", "merge", "predict", "evaluate"}


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package):
    for path in (REPOSITORY / package).glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                allowed = ALLOWED[package] | ({"models"} if path.name == "predictor.py" else set())  # the door
                assert top not in (ALLOWED.keys() | SCRIPTS) - allowed, f"{path} imports {name}"


def test_daconv_is_one_file_that_needs_torch_alone():
    source = ast.parse((REPOSITORY / "models" / "daconv.py").read_text(encoding="utf-8"))
    names = {
        name.split(".")[0]
        for node in ast.walk(source)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "." * node.level]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert names <= {"torch", *sys.stdlib_module_names}, names


def readme_commands():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:sh|bash)\n(.*?)```", readme, flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_readmes_commands_name_existing_scripts_and_options():
    commands = [command for command in readme_commands() if ".py" in command]
    assert commands
    for command in commands:
        for script, words in re.findall(r"python ((?:\w+/)*\w+\.py)([^&|]*)", command):
            source = (REPOSITORY / script).read_text(encoding="utf-8")
            for option in re.findall(r"(?<=\s)--?[a-z][\w-]*", words):
                assert f'"{option}"' in source, f"{script} has no {option}"


def test_ci_runs_the_readmes_test_command():
    tests = [command for command in readme_commands() if "pytest" in command]
    assert len(tests) == 1
    assert tests[0] in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")


def test_every_example_photo_has_its_source():
    examples = REPOSITORY / "data" / "examples"
    card = (examples / "README.md").read_text(encoding="utf-8")
    photos = [path.name for path in examples.iterdir() if path.suffix == ".jpg"]
    assert 6 <= len(photos) <= 10 and all(f"`{name}`" in card for name in photos)


def test_the_readmes_python_runs(monkeypatch):
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert blocks
    monkeypatch.chdir(REPOSITORY)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
