"""The floors of the code, and what the repository may not hold."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
FLOORS = ["g2is_ray", "actors", "jobs"]  # from the lowest
ALLOWED_TO_IMPORT = {
    "g2is_ray": {"g2is_ray"},
    "actors": {"g2is_ray", "actors", "ray"},
    "jobs": {"g2is_ray", "actors", "jobs", "ray"},
}
LADDER = [
    ["errors", "config"],
    ["workspace"],
    ["chat"],
    ["data"],
    ["contamination"],
    ["models"],
    ["features"],
    ["training"],
    ["graph", "selector"],
    ["selection"],
    ["comparison"],
    ["report"],
]
"""Rooms of the library. Each imports only itself and rooms on the steps above it."""

# Folders of one person's machine; /home/ray and such are a container's or an example's.
PERSONAL = re.compile(r"/Users/\w|/home/(?!ray\b|ubuntu\b|user\b)\w|/[r]oot/")


def imports(file: Path) -> set[str]:
    """Top-level names that a file imports anywhere, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} has a relative import"
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_imports_only_itself_and_floors_below(floor):
    files = sorted((REPOSITORY / floor).rglob("*.py"))
    assert files
    ruled = {*FLOORS, "ray", "tests"}
    for file in files:
        assert imports(file) & ruled <= ALLOWED_TO_IMPORT[floor], file


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_are_found_wherever_they_stand(floor, tmp_path):
    file = tmp_path / "module.py"
    file.write_text(f"def f():\n    import {floor}.x as y\n    from {floor} import z\n")
    assert imports(file) == {floor}


def rooms_imported(file: Path) -> set[str]:
    """Rooms of the library that a file imports anywhere; a name of its face is none."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("g2is_ray."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "g2is_ray":
            found |= {alias.name for alias in node.names}
    return found


def test_a_room_imports_only_rooms_above_it():
    library = REPOSITORY / "g2is_ray"
    above: set[str] = {"__version__"}
    for step in LADDER:
        for room in step:
            allowed = above | ({"errors", "config"} if room == "config" else {room})
            files = [*(library / room).rglob("*.py"), *library.glob(f"{room}.py")]
            assert files, f"there is no room {room}"
            for file in files:
                assert rooms_imported(file) <= allowed, file
        above |= set(step)
    rooms = {path.stem for path in library.iterdir() if path.suffix in ("", ".py")}
    assert rooms - {"__init__", "__pycache__"} == above - {"__version__"}


def test_no_module_bears_the_name_of_one_of_the_standard_library():
    found = [*REPOSITORY.glob("*.py"), *REPOSITORY.glob("*/__init__.py")]
    names = {path.parent.name if path.name == "__init__.py" else path.stem for path in found}
    for floor in ("jobs", "actors"):  # `python jobs/cli.py` puts the folder before the library
        names |= {path.stem for path in (REPOSITORY / floor).rglob("*.py")}
    assert {"cli", "pool", "jobs"} <= names
    assert not names & sys.stdlib_module_names


def tracked_files() -> list[Path]:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=REPOSITORY, check=True, capture_output=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"git cannot list the files: {error}")
    return [REPOSITORY / name for name in listed.decode().split("\0") if name]


def test_no_file_names_a_place_on_somebodys_machine():
    found = []
    for file in tracked_files():
        if file == Path(__file__) or not file.is_file() or file.suffix == ".jsonl":
            continue
        text = file.read_bytes().decode("utf-8", "ignore")
        found += [f"{file}: {match[0]}" for match in PERSONAL.finditer(text)]
    assert not found


def test_no_source_file_is_two_rooms():
    long = {
        file.name: lines
        for floor in FLOORS
        for file in (REPOSITORY / floor).rglob("*.py")
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert not long
