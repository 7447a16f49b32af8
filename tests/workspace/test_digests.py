"""What files and models are: their content, read once."""

import os
import shutil
from pathlib import Path

import pytest

from g2is_ray.errors import InputError
from g2is_ray.models.identity import model_identity
from g2is_ray.workspace import digests
from g2is_ray.workspace.digests import file_digest

YEAR = 365 * 86400 * 10**9


@pytest.fixture(autouse=True)
def cache(empty_folder, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(empty_folder / "cache"))
    monkeypatch.setattr(digests, "_SETTLED_NS", -YEAR)  # so that no test waits for the clock
    return empty_folder / "cache" / "g2is-ray" / "digests"


@pytest.fixture
def large():
    path = Path("large")
    path.write_bytes(b"0" * 2**21)
    return path


@pytest.fixture
def reads(monkeypatch):
    """Files that were read to the end."""
    found = []
    digest = digests.hashlib.file_digest

    def counted(file, name):
        found.append(file.name)
        return digest(file, name)

    monkeypatch.setattr(digests.hashlib, "file_digest", counted)
    return found


def test_a_large_file_is_read_once(large, reads):
    assert file_digest(large) == file_digest(large)
    assert len(reads) == 1


def test_a_file_that_was_changed_in_its_middle_is_read_again(large, reads):
    before, stamps = file_digest(large), large.stat()
    with large.open("r+b") as file:
        file.seek(2**20)
        file.write(b"1")
    os.utime(large, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))  # as `touch -r` does
    assert file_digest(large) != before
    assert len(reads) == 2


def test_a_file_that_was_replaced_is_read_again(large, reads):
    before = file_digest(large)
    other = large.with_name("other")
    other.write_bytes(b"1" * 2**21)
    os.utime(other, ns=(large.stat().st_atime_ns, large.stat().st_mtime_ns))
    other.replace(large)
    assert file_digest(large) != before


def test_what_was_written_just_now_is_not_kept(large, cache, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED_NS", YEAR)
    file_digest(large)
    assert not cache.exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"state": 1}', "\x00"])
def test_a_damaged_cache_is_not_believed(text, large, cache):
    digest = file_digest(large)
    (entry,) = cache.iterdir()
    entry.write_text(text)
    assert file_digest(large) == digest


def test_a_cache_that_cannot_be_written_is_done_without(large, monkeypatch):
    Path("file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", "file")
    assert file_digest(large) == file_digest(large)


def test_a_file_that_changes_while_it_is_read_is_refused(large, monkeypatch):
    def changing(file, name):
        large.write_bytes(b"2" * 2**22)
        return digests.hashlib.sha256()

    monkeypatch.setattr(digests.hashlib, "file_digest", changing)
    with pytest.raises(InputError, match="changes while it is read; wait"):
        file_digest(large)


# Models


@pytest.fixture
def model(tiny_model, empty_folder):
    return Path(shutil.copytree(tiny_model, empty_folder / "model"))


def test_a_copy_is_the_same_model(model, tiny_model):
    (model / "README.md").write_text("notes")
    (model / "optimizer.bin").write_text("not loaded")
    assert model_identity(str(model)) == model_identity(tiny_model)


FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_makes_another_model(name, model):
    before = model_identity(str(model))
    data = bytearray((model / name).read_bytes())
    data[len(data) // 2] ^= 1
    (model / name).write_bytes(data)
    assert model_identity(str(model)) != before


def test_a_further_file_makes_another_model(model):
    before = model_identity(str(model))
    (model / "chat_template.jinja").write_text("{{ messages }}")
    assert model_identity(str(model)) != before


def test_a_model_of_the_hub_is_told_by_its_commit(empty_folder, monkeypatch):
    hub, commit = empty_folder / "hub", "0" * 39 + "1"
    snapshot = hub / "models--org--name" / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (hub / "models--org--name" / "refs").mkdir()
    (hub / "models--org--name" / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert model_identity("org/name") == f"org/name@{commit}"
    assert model_identity("org/none") == "org/none"
