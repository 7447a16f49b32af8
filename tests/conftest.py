"""What several test files share: the bundled model, and the command as a user runs it."""

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from main_job import command, run, write_inputs

if TYPE_CHECKING:
    from object_store import ObjectStore

os.environ["HF_HUB_OFFLINE"] = "1"  # else the hub is asked for a missing model for a minute
# Set before torch is imported: on a busy machine, its threads that wait by spinning take the
# time of those that work (162 s became 12 s for one file of tests).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def tiny_model() -> str:
    """Folder of the bundled model."""
    return str(REPOSITORY / "examples" / "tiny-lm")


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with nothing in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def _s3_server() -> Iterator["ObjectStore"]:
    from object_store import serving

    with serving() as store:
        yield store


@pytest.fixture
def s3(_s3_server: "ObjectStore", monkeypatch: pytest.MonkeyPatch) -> "ObjectStore":
    """A real S3 server, which the environment points to, with an empty place `url` on it."""
    import s3fs

    for name, value in _s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # an instance keeps the keys it was made with
    _s3_server.requests.clear()
    _s3_server.url = f"s3://bucket/{uuid.uuid4().hex}"  # where nothing is yet
    return _s3_server


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Input files of the main job."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace that the main job has finished; a test that changes it copies it first."""
    workspace = tmp_path_factory.mktemp("finished")
    run(command(inputs, workspace))
    return workspace


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """The command sends log lines to stderr, which pytest replaces after each test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def g2is(capsys: pytest.CaptureFixture[str], logging_as_before: None) -> Callable[..., str]:
    """Runs `g2is` with arguments that it is to accept; returns what it printed."""
    from jobs.cli import main

    def run(*arguments: object) -> str:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert status == 0, err
        return out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], logging_as_before: None) -> Callable[..., str]:
    """Runs `g2is` with arguments that it is to refuse; returns the one sentence it says."""
    from jobs.cli import main

    def run(*arguments: object) -> str:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert status == 2, err
        assert "Traceback" not in err
        *_, last = err.splitlines()
        assert last.startswith("g2is: error: ")
        assert err.count("g2is: error: ") == 1
        assert not out
        return last.removeprefix("g2is: error: ")

    return run
