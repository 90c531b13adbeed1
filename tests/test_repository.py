import ast
import re
import sys

import pytest
from conftest import REPOSITORY

FLOORS = ("models", "utils", "data", "scripts", "benchmarks")
"""From the ground up: a room imports only from the floors below its own."""
SCRIPTS = {"train", "predict", "evaluate", "export", "merge"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


def rooms(floor):
    return REPOSITORY.glob("*.py") if floor == "scripts" else (REPOSITORY / floor).glob("**/*.py")


def test_every_script_is_known():
    assert {path.stem for path in rooms("scripts")} == SCRIPTS


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_point_down(floor):
    below = set(FLOORS[: FLOORS.index(floor)])
    own = {floor} if floor != "scripts" else set()
    paths = list(rooms(floor))
    assert paths
    for path in paths:
        allowed = below | own  # which is no script: benchmarks run them as commands
        for name in imports(path):
            if name.startswith("."):
                level = len(name) - len(name.lstrip("."))
                assert level <= len(path.relative_to(REPOSITORY).parts) - 1, f"{path} imports {name}"
            else:
                top = name.split(".")[0]
                assert top not in {*FLOORS, *SCRIPTS} - allowed, f"{path} imports {name}"


def test_daconv_is_one_file_that_needs_torch_alone():
    names = {name.split(".")[0] or name for name in imports(REPOSITORY / "models" / "daconv.py")}
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


def test_the_readmes_map_leads_to_what_it_says():
    house = (REPOSITORY / "README.md").read_text(encoding="utf-8").split("## The house")[1].split("\n## ")[0]
    paths = re.findall(r"`([\w/]+\.py)`", house)
    assert len(paths) >= 7
    for path in paths:
        assert (REPOSITORY / path).is_file(), path
    for names, path in re.findall(r"((?:`\w+`(?:, | and | ))+)in `([\w/]+\.py)`", house):
        source = (REPOSITORY / path).read_text(encoding="utf-8")
        for name in re.findall(r"\w+", names.replace(" and ", " ")):
            assert re.search(rf"^(def|class) {name}\b", source, flags=re.MULTILINE), f"{path} has no {name}"


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
