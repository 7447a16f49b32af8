"""What Python would import in place of the project's packages is named before anything starts."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import g2is
from jobs.startup import machine_error

ROOT = Path(__file__).parents[2]


def run_with(folder):
    """Runs the command with a folder before the project's on Python's path."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "g2is", "status", "ws"],
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
    )


def package(folder, name, kind="package"):
    """Somebody's own package or module; returns what is named of it."""
    if kind == "module":
        (folder / f"{name}.py").write_text("")
        return folder / f"{name}.py"
    (folder / name).mkdir(parents=True)
    if kind == "package":
        (folder / name / "__init__.py").write_text("")
    return folder / name


@pytest.mark.parametrize("kind", ["package", "module"])
@pytest.mark.parametrize("name", ["jobs", "actors", "g2is_ray"])
def test_a_package_that_hides_the_projects_is_named(name, kind, tmp_path):
    other = package(tmp_path, name, kind)
    done = run_with(tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"g2is: error: {other} is imported in place of g2is-ray's")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["jobs", "actors"])
def test_a_package_in_the_current_folder_would_hide_it_from_workers(name, empty_folder, refused):
    other = package(empty_folder, name)
    sentence = refused("run", "--workspace", "ws")
    assert sentence.startswith(f"{other} is imported in place of g2is-ray's package {name}")
    assert not (empty_folder / "ws").exists()


def test_a_folder_of_data_hides_nothing(empty_folder, refused):
    package(empty_folder, "jobs", "folder")
    assert refused("run", "--workspace", "ws").startswith("pool is not set")


def test_the_checkouts_own_folder_hides_nothing(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert g2is.hidden_packages() == g2is.hidden_from_workers() == ""


PRINT = """
import os, sys, g2is
g2is._open_standard_streams()
with open(sys.argv[1], "w") as file:
    print("printed")
    print("printed", file=sys.stderr)
    file.write("written")
"""


@pytest.mark.parametrize("closed", ["2>&-", "<&-", ">&-", "<&- >&- 2>&-"])
def test_what_is_printed_to_closed_streams_gets_into_no_file(closed, tmp_path):
    command = f'exec "$@" {closed}'
    subprocess.run(
        ["sh", "-c", command, "sh", sys.executable, "-c", PRINT, str(tmp_path / "file")],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "file").read_text() == "written"


def test_an_error_of_the_machine_is_a_sentence_and_others_are_bugs():
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/x")
    assert "No space left on device (/tmp/x)" in machine_error(full)
    assert machine_error(OSError(errno.EBADF, "bad")) == ""
