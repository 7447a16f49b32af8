"""Storage: whole files or none, wherever they lie, and local copies of remote ones."""

import hashlib
import json
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest

from g2is_ray.errors import SettingError, WorkspaceError
from g2is_ray.workspace.storage import Storage, array_bytes


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path / "ws"))


@pytest.fixture(params=["local", "memory", "s3"])
def any_storage(request, tmp_path):
    if request.param == "s3":
        yield Storage(request.getfixturevalue("s3").url)
        return
    held = Storage(str(tmp_path / "ws") if request.param == "local" else "memory://g2is-test")
    yield held
    held.remove("")


def test_what_is_written_is_read(any_storage):
    array = np.arange(12, dtype=np.float16).reshape(3, 4)
    any_storage.write_bytes("a/b/c.npy", array_bytes(array))
    any_storage.write_json("a/b/c.json", {"é": [1, None]})
    np.testing.assert_array_equal(any_storage.read_array("a/b/c.npy"), array)
    assert any_storage.read_json("a/b/c.json") == {"é": [1, None]}
    assert any_storage.names("a/b") == ["c.json", "c.npy"]
    assert any_storage.names("a/none") == []
    assert any_storage.exists("a/b/c.npy")
    assert not any_storage.exists("a/b/d.npy")


def test_a_folder_is_had_locally_whole(any_storage):
    any_storage.write_bytes("adapter/x.json", b"1")
    any_storage.write_bytes("adapter/y.json", b"2")
    with any_storage.local_folder("adapter") as found:
        held = {path.name: path.read_bytes() for path in found.iterdir()}
    assert held == {"x.json": b"1", "y.json": b"2"}


def test_removing_what_is_not_there_is_no_error(any_storage):
    any_storage.write_bytes("a/x", b"1")
    any_storage.remove("a")
    any_storage.remove("a")
    assert not any_storage.exists("a/x")


def test_a_storage_survives_pickling_and_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = Storage("relative")
    storage.write_bytes("x", b"1")
    packed = pickle.dumps(storage)
    monkeypatch.chdir("/")
    assert pickle.loads(packed).read_bytes("x") == b"1"


def test_a_file_is_replaced_whole_or_not_at_all(storage, monkeypatch):
    storage.write_bytes("x", b"old")

    def fail(file):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(KeyboardInterrupt):
        storage.write_bytes("x", b"new and longer")
    assert storage.read_bytes("x") == b"old"
    assert storage.names("") == ["x"]


@pytest.mark.parametrize("url", ["nowhere://x", "nowhere://x/y::z"])
def test_an_unknown_kind_of_storage_is_refused(url):
    with pytest.raises(SettingError, match="nowhere"):
        Storage(url)


def test_a_missing_file_is_named(any_storage):
    with pytest.raises(WorkspaceError, match=r"pool/x is missing"):
        any_storage.read_bytes("pool/x")


def test_a_folder_in_the_place_of_a_file_is_named(storage):
    storage.write_bytes("x/y", b"")
    with pytest.raises(WorkspaceError, match=r"ws/x cannot be read: Is a directory"):
        storage.read_bytes("x")


def test_a_file_in_the_place_of_a_folder_is_named(storage):
    storage.write_bytes("x", b"")
    with pytest.raises(WorkspaceError, match=r"ws/x/y cannot be written"):
        storage.write_bytes("x/y", b"")


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY", array_bytes(np.ones(9))[:-1]])
def test_a_damaged_array_is_named(data, storage):
    storage.write_bytes("g/part-00000.npy", data)
    with pytest.raises(WorkspaceError, match=r"g/part-00000\.npy is damaged"):
        storage.read_array("g/part-00000.npy")


def test_an_array_of_objects_is_not_unpickled(storage):
    path = Path(storage.location("x.npy"))
    path.parent.mkdir()
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(WorkspaceError, match="damaged"):
        storage.read_array("x.npy")


# Arrays mapped into memory


def mapped(storage, path):
    """The array of a file, from a copy where the storage is not local."""
    if storage.is_local:
        return storage.map_array(path)
    data = storage.read_bytes(path)
    held = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return storage.map_copies({path: held}, "arrays")[0]


def test_a_mapped_array_is_what_was_written_and_read_only(any_storage):
    any_storage.write_bytes("a.npy", array_bytes(np.arange(6)))
    array = mapped(any_storage, "a.npy")
    assert isinstance(array, np.memmap)
    assert not array.flags.writeable
    assert array.tolist() == [0, 1, 2, 3, 4, 5]


def test_missing_and_damaged_arrays_are_named_when_mapped(any_storage):
    any_storage.write_bytes("a.npy", array_bytes(np.arange(6))[:-8])
    with pytest.raises(WorkspaceError, match=r"a\.npy is damaged"):
        mapped(any_storage, "a.npy")
    any_storage.remove("a.npy")
    with pytest.raises(WorkspaceError, match=r"a\.npy is missing"):
        mapped(any_storage, "a.npy")


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A folder with 256 KiB of space, and a function that gives it more."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk can be mounted here: {error}")
    grow = ["mount", "-o", "remount,size=16m", str(folder)]
    try:
        yield folder, lambda: subprocess.run(grow, check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_keeps_what_is_finished_and_goes_on_with_space(
    small_disk, tmp_path, g2is, refused, tiny_model
):
    folder, grow = small_disk
    rng = np.random.default_rng(0)
    pool = tmp_path / "pool.jsonl"
    with pool.open("w") as file:
        for i in range(60):
            turn = {"role": "assistant", "content": rng.bytes(1500).hex()}
            file.write(json.dumps({"id": f"r{i}", "messages": [turn]}) + "\n")
    arguments = ["ingest", "--pool", pool, "--model", tiny_model, "--max-tokens", "64"]
    arguments += ["--part-rows", "10", "--workspace", folder / "ws"]
    sentence = refused(*arguments)
    assert sentence.startswith(f"the disk is full, writing {folder}/ws/pool/part-0000")
    kept = {path: path.stat().st_ino for path in (folder / "ws/pool").iterdir()}
    finished = [path for path in kept if path.suffix == ".json"]
    assert 1 <= len(finished) < 6
    assert not [path for path in kept if path.suffix == ".tmp"]
    grow()
    g2is(*arguments)
    for receipt in finished:
        for path in (receipt, receipt.with_suffix(".parquet")):
            assert path.stat().st_ino == kept[path]
    assert json.loads((folder / "ws/pool/receipt.json").read_text())["rows"] == 60
