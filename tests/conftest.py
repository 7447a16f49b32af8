"""Fixtures that several test files share, and the order and the groups of the tests."""

import functools
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from main_job import command, logging_kept, run, write_inputs

if TYPE_CHECKING:
    from object_store import ObjectStore
    from ray.cluster_utils import Cluster

os.environ["HF_HUB_OFFLINE"] = "1"  # else the hub is asked for a missing model for a minute
os.environ["RAY_AUTH_MODE"] = "disabled"  # read once by Ray, so set before it is imported
# Set before torch is imported. Two test processes share two cores, and on a busy machine threads
# that wait by spinning take the time of those that work (162 s became 12 s for one file of tests).
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

REPOSITORY = Path(__file__).parent.parent

# The same examples in every run; a folder is written over from example to example.
for name, examples in (("quick", 15), ("thorough", 100)):
    settings.register_profile(
        name,
        derandomize=True,
        deadline=None,
        max_examples=examples,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
settings.load_profile("quick")  # `--hypothesis-profile thorough` replaces it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of the Ray group first, because the group takes longest."""
    items.sort(key=lambda item: _group(item.nodeid) != "ray")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the Ray tests in one process of pytest-xdist, and each other file in one too.

    The tests of the Ray group share one Ray, and the finished workspace with those that read it.
    `--dist loadgroup` would do, but pytest-xdist 3.8 cannot mark the items of pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return ByGroup(config, log)


def _group(nodeid: str) -> str:
    """The Ray group, for a test of a file with such tests; or the test's file."""
    file = nodeid.partition("::")[0]
    return "ray" if _is_of_ray(file) else file


@functools.cache
def _is_of_ray(file: str) -> bool:
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    return re.search(r"\bmark\.(ray|cluster)\b|\bfinished\b[,):]", text) is not None


@pytest.fixture(scope="session")
def tiny_model() -> str:
    """Folder of the bundled model."""
    return str(REPOSITORY / "examples" / "tiny-lm")


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with nothing in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that this process reads from workspaces."""
    from g2is_ray.workspace.storage import Storage

    found: list[str] = []
    read = Storage.read_bytes
    monkeypatch.setattr(
        Storage, "read_bytes", lambda self, path: (found.append(path), read(self, path))[1]
    )
    return found


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stages of features whose rows this process reads from the first to the last."""
    from g2is_ray.features.store import FeatureSet

    found: list[str] = []
    blocks = FeatureSet.blocks
    monkeypatch.setattr(
        FeatureSet, "blocks", lambda self: (found.append(self.stage), blocks(self))[1]
    )
    return found


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


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All stages run in this process, without Ray; the items that their pools process."""
    from in_process import work_in_process

    return work_in_process(monkeypatch)


@pytest.fixture(scope="session")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace that the main job has finished in this process.

    A test that writes into the workspace copies it first: the end of the session fails otherwise.
    """
    from in_process import work_in_process

    workspace = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        work_in_process(patch)
        run(command(inputs, workspace))
    before = contents(workspace)
    yield workspace
    after = contents(workspace)
    changed = [str(file) for file in before | after if before.get(file) != after.get(file)]
    assert not changed, f"tests changed the finished workspace: {changed}; copy it first"


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """The modification time and the bytes of every file in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.fixture(scope="session")
def ray_head() -> Iterator["Cluster"]:
    """The one Ray of the session: a node of two CPUs on this machine, with a dashboard."""
    from ray_nodes import start_node

    head = start_node()
    yield head
    head.shutdown()


@pytest.fixture(scope="session")
def ray_address(ray_head: "Cluster") -> str:
    """HOST:PORT of the session's Ray, for `--address`."""
    return str(ray_head.address)


@pytest.fixture
def logging_as_before() -> Iterator[None]:
    """The root logger's handlers are restored after the test."""
    with logging_kept():
        yield


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
