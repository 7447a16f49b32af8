"""What is wrong with a machine is said before Ray starts, by checks that change nothing."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from actors.connection import machine


@pytest.fixture
def short():
    """A folder whose path is short, whatever pytest's is."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="g") as folder:
        yield Path(folder)


# Folders


def test_a_short_folder_that_can_be_written_is_fit_and_left_empty(short):
    assert machine.folder_problem(short) == ""
    assert not list(short.iterdir())


def test_the_longest_path_of_a_socket_is_the_limit(short):
    longest = len(os.fsencode(short / machine._LONGEST_SOCKET))
    assert machine.folder_problem(short, socket_path_bytes=longest) == ""
    why = machine.folder_problem(short, socket_path_bytes=longest - 1)
    assert why == f"paths of sockets would have {longest} bytes there, of {longest - 1} at most"


def test_the_limit_is_the_systems(short):
    def bind(length):
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(f"{short}/".ljust(length, "x"))

    bind(machine.SOCKET_PATH_BYTES)
    with pytest.raises(OSError, match="too long"):
        bind(machine.SOCKET_PATH_BYTES + 1)


def test_bytes_count_not_characters(short):
    folder = short / ("é" * 20)
    folder.mkdir()
    ascii_folder = short / ("e" * 20)
    ascii_folder.mkdir()
    limit = len(os.fsencode(ascii_folder / machine._LONGEST_SOCKET))
    assert machine.folder_problem(ascii_folder, socket_path_bytes=limit) == ""
    assert machine.folder_problem(folder, socket_path_bytes=limit).startswith("paths of sockets")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda folder: folder / "none", "it cannot be used (No such file or directory)"),
        (lambda folder: folder / "file", "it cannot be used (Not a directory)"),
        (lambda folder: Path("relative"), "it is a relative path"),
        (lambda folder: Path("/proc"), "it cannot be used ("),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(make, why, short):
    (short / "file").touch()
    assert machine.folder_problem(make(short), socket_path_bytes=200).startswith(why)


def test_a_folder_on_a_full_disk_is_unfit(short):
    assert " MiB free, of 1099511627776 needed" in machine.folder_problem(short, free_bytes=2**60)


def test_the_named_folders_come_first_and_blanks_are_nothing():
    found = machine.folder_candidates({"RAY_TMPDIR": " ", "TMPDIR": "/a"})
    assert list(found.items())[:2] == [("TMPDIR", Path("/a")), ("/tmp", Path("/tmp"))]


def test_shared_memory_that_is_too_small_or_missing_is_said(short):
    assert machine.shared_memory_problem(1, short) == ""
    assert "needed" in machine.shared_memory_problem(2**60, short)
    assert "cannot be used" in machine.shared_memory_problem(1, short / "none")


# Token


def home_with(folder, kind):
    token = folder / ".ray" / "auth_token"
    if kind != "nothing":
        token.parent.mkdir()
    if kind == "a folder":
        token.mkdir()
    elif kind == "an empty file":
        token.touch()
    elif kind == "a token":
        token.write_text("a" * 64)
    elif kind == "a dangling link":
        token.symlink_to(folder / "none" / "none")
    elif kind == "a file in the folder's place":
        token.parent.rmdir()
        token.parent.touch()
    return folder


@pytest.mark.parametrize("kind", ["nothing", "a token", "an empty folder"])
def test_a_home_in_which_a_token_is_or_can_be_written_is_fit(kind, short):
    assert machine.home_problem(home_with(short, kind)) == ""


@pytest.mark.parametrize(
    "kind", ["a folder", "an empty file", "a dangling link", "a file in the folder's place"]
)
def test_a_home_without_a_token_that_can_be_read_says_why(kind, short):
    assert str(short / ".ray") in machine.home_problem(home_with(short, kind))


def test_a_home_that_is_missing_says_why(short):
    assert "cannot be written" in machine.home_problem(short / "none")
    assert machine.home_problem(None) == "there is no home directory"


@pytest.mark.parametrize("mode", ["", " ", "token", "TOKEN", "disabled"])
def test_modes_of_authentication_that_ray_knows(mode):
    assert machine.authentication_problem({"RAY_AUTH_MODE": mode}) == ""


def test_a_mode_that_ray_would_take_for_none_is_refused():
    assert "'tokens'" in machine.authentication_problem({"RAY_AUTH_MODE": "tokens"})


def test_a_token_file_that_is_named_must_hold_one(short):
    (short / "empty").touch()
    for name, why in (("empty", "it is empty"), ("none", "cannot be read")):
        given = {"RAY_AUTH_TOKEN_PATH": str(short / name)}
        assert why in machine.authentication_problem(given)
        assert machine.authentication_problem({**given, "RAY_AUTH_TOKEN": "x"}) == ""


# Limits


@pytest.mark.parametrize(("hard", "fits"), [(1024, True), (1023, False), (-1, True), (0, False)])
def test_open_files(hard, fits):
    assert (machine.open_files_problem(hard) == "") == fits


@pytest.mark.parametrize(
    ("limit", "in_use", "cpus", "fits"),
    [(660, 100, 2, True), (659, 100, 2, False), (-1, 10**6, 96, True), (2000, 0, 96, False)],
)
def test_threads(limit, in_use, cpus, fits):
    assert (machine.processes_problem(limit, in_use, cpus, "the limit") == "") == fits


# Environment


def test_requests_to_this_machine_take_no_proxy():
    assert machine.without_proxy({}) == {}
    found = machine.without_proxy({"http_proxy": "http://p", "NO_PROXY": "a.b,localhost"})
    assert found["no_proxy"] == found["NO_PROXY"] == "a.b,localhost,127.0.0.1,::1"


def test_a_read_only_folder_is_unfit(short):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a read-only folder")
    check = (
        f"import sys; sys.path.insert(0, {str(Path(machine.__file__).parents[2])!r}); "
        "from pathlib import Path; from actors.connection import machine; "
        f"print(machine.folder_problem(Path({str(short)!r})))"
    )
    mount = f'mount -t tmpfs -o ro tmpfs {short} && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-c", check],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr[-200:]}")
    assert done.stdout == "it cannot be used (Read-only file system)\n"
