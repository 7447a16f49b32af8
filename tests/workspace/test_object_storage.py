"""Workspaces and pools on object storage: a real S3 server, and what it may refuse."""

import contextlib
import json

import numpy as np
import pytest
import s3fs
from fsspec.config import conf
from object_store import BUCKET, faulty
from pool_files import row

from g2is_ray.data.reading import read_examples
from g2is_ray.data.sources import describe, expand
from g2is_ray.errors import (
    InputError,
    MissingError,
    SettingError,
    StorageError,
    WorkspaceError,
)
from g2is_ray.features.store import FeatureSet, feature_files
from g2is_ray.workspace.workspace import Workspace, part_name


@pytest.fixture
def workspace(s3):
    return Workspace(s3.url)


@pytest.fixture
def as_user(monkeypatch):
    """Goes on with other keys."""

    def become(**keys):
        for name, value in keys.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()

    return become


# What other processes write and remove


def other_process(url):
    """The same workspace as another process sees it: through an instance of its own."""
    s3fs.S3FileSystem.clear_instance_cache()
    return Workspace(url)


def test_what_others_write_and_remove_is_seen_at_once(workspace):
    workspace.storage.write_bytes("s/a", b"1")
    assert workspace.storage.names("s") == ["a"]
    assert not workspace.storage.exists("s/b")
    other = other_process(workspace.url)
    other.storage.write_bytes("s/b", b"2")
    assert workspace.storage.exists("s/b")
    assert workspace.storage.names("s") == ["a", "b"]
    other.storage.remove("s")
    assert not workspace.storage.exists("s/b")
    assert workspace.storage.names("s") == []


def test_the_mark_of_an_empty_folder_is_no_file(s3, workspace):
    key = workspace.storage.location("s/").removeprefix(f"s3://{BUCKET}/")
    s3.client().put_object(Bucket=BUCKET, Key=key, Body=b"")
    assert workspace.storage.names("s") == []


# Checking what is done


@pytest.fixture
def finished_workspace(workspace):
    """A workspace with a finished stage of one part."""
    x = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    workspace.stage("gradients").commit(part_name(0), feature_files(0, x), {"rows": 5})
    workspace.stage("gradients").conclude({"parts": 1, "rows": 5, "invalid": 0})
    return workspace


def test_what_is_done_is_checked_without_reading_it(s3, finished_workspace):
    s3.requests.clear()
    assert finished_workspace.stage("gradients").finished()
    read = [request for request in s3.requests if '"GET' in request]
    assert read
    assert not [request for request in read if ".npy" in request]


@pytest.mark.parametrize("alter", [lambda data: data[:-1], lambda data: data[:-1] + b"x"])
def test_a_truncated_or_altered_object_counts_as_not_done(alter, finished_workspace):
    path = f"gradients/{part_name(0)}.npy"
    storage = finished_workspace.storage
    storage.write_bytes(path, alter(storage.read_bytes(path)))
    assert finished_workspace.stage("gradients").finished() is None


def test_a_workspace_copied_elsewhere_is_as_done_as_before(s3, finished_workspace, tmp_path):
    s3fs.S3FileSystem().get(f"{s3.url}/", f"{tmp_path}/", recursive=True)
    assert Workspace(str(tmp_path)).stage("gradients").finished()


def test_dimensions_are_known_without_copying_the_pool(s3, finished_workspace):
    s3.requests.clear()
    assert FeatureSet(finished_workspace, "gradients").dimensions == 8
    assert not [request for request in s3.requests if f"{part_name(0)}.npy" in request]


# Refusals


def test_a_missing_bucket_is_named(s3, refused, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool.jsonl").write_text(json.dumps(row(1)) + "\n")
    arguments = ["ingest", "--pool", "pool.jsonl", "--model", tiny_model]
    assert refused(*arguments, "--workspace", "s3://not-made/run") == (
        "s3://not-made/run/workspace.json cannot be written: The specified bucket does not exist; "
        "check the URL, the credentials and what they allow"
    )


def test_wrong_credentials_are_refused_in_one_sentence(s3, as_user, refused):
    as_user(AWS_ACCESS_KEY_ID="nobody")
    with s3.checking_access():
        sentence = refused("status", "--workspace", s3.url)
    assert sentence == (
        f"{s3.url}/workspace.json cannot be read: Forbidden; check the URL, the credentials and "
        "what they allow"
    )


def test_no_credentials_are_refused_in_one_sentence(s3, monkeypatch, refused):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    assert "workspace.json cannot be read: Unable to locate credentials; check" in refused(
        "status", "--workspace", s3.url
    )
    with pytest.raises(InputError, match=r"pool\.jsonl: cannot be opened \(Unable to locate"):
        expand([f"{s3.url}/pool.jsonl"])
    with pytest.raises(InputError, match=r"pool\.jsonl: cannot be read \(Unable to locate"):
        describe(f"{s3.url}/pool.jsonl")
    with pytest.raises(InputError, match=r"pool\.jsonl: cannot be read to its end \(Unable to"):
        list(read_examples([f"{s3.url}/pool.jsonl"]))


def test_who_may_only_read_is_told_what_cannot_be_written_or_removed(s3, workspace, as_user):
    workspace.storage.write_bytes("s/a", b"1")
    as_user(**s3.read_only_user())
    reader = Workspace(s3.url)
    with s3.checking_access():
        assert reader.storage.read_bytes("s/a") == b"1"
        with pytest.raises(StorageError, match=r"s/a cannot be written: Access Denied"):
            reader.storage.write_bytes("s/a", b"2")
        with pytest.raises(StorageError, match=r"/s cannot be removed: it is still there"):
            reader.storage.remove("s")


def test_a_piece_is_not_taken_for_undone_because_the_store_refuses(s3, finished_workspace, as_user):
    as_user(AWS_ACCESS_KEY_ID="nobody")
    with s3.checking_access(), pytest.raises(StorageError, match="Forbidden"):
        Workspace(s3.url).stage("gradients").verified(part_name(0))


def test_a_missing_package_is_named():
    with pytest.raises(SettingError, match=r"gs://bucket/run cannot be opened: .*gcsfs"):
        Workspace("gs://bucket/run")
    with pytest.raises(InputError, match=r"gs://bucket/pool\.jsonl: cannot be opened .*gcsfs"):
        expand(["gs://bucket/pool.jsonl"])


def test_a_missing_file_is_missing_and_not_refused(workspace):
    with pytest.raises(WorkspaceError) as caught:
        workspace.storage.read_bytes("x")
    assert isinstance(caught.value, MissingError)


@pytest.fixture
def store(monkeypatch):
    """Has the environment point to a faulty store; gives the list of requests that it gets."""
    with contextlib.ExitStack() as at_end:

        def begin(*arguments, **options):
            environment, requests = at_end.enter_context(faulty(*arguments, **options))
            for name, value in environment.items():
                monkeypatch.setenv(name, value)
            return requests

        yield begin


@pytest.mark.parametrize("region", ["eu-west-1", ""])
def test_a_bucket_of_another_region_is_named_with_its_region(region, store, refused):
    store(301, code="PermanentRedirect", region=region)
    where, remedy = ("the region eu-west-1", "eu-west-1") if region else ("another region", "the ")
    sentence = refused("status", "--workspace", "s3://far/run")
    assert sentence.startswith(
        "s3://far/run/workspace.json cannot be read: the bucket far is in "
        f"{where}, but it was looked for in us-east-1; set AWS_DEFAULT_REGION to {remedy}"
    )
    with pytest.raises(InputError, match=f"cannot be opened .the bucket far is in {where}"):
        expand(["s3://far/pool.jsonl"])


def test_a_store_that_does_not_answer_is_given_up_after_some_tries(store, refused, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")  # both as a user may set them
    monkeypatch.setitem(conf, "s3", {"config_kwargs": {"read_timeout": 0.1}})
    requests = store(200, hangs=True)
    sentence = refused("status", "--workspace", "s3://slow/run")
    assert sentence.startswith("s3://slow/run/workspace.json cannot be read: Read timeout on endp")
    assert len(requests) == 4


def test_a_store_that_does_not_answer_has_seconds_for_each_try():
    assert s3fs.S3FileSystem.read_timeout == 15
    assert s3fs.S3FileSystem.connect_timeout == 5


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "AccessDenied"), (400, "ExpiredToken"), (403, "InvalidAccessKeyId"), (503, "SlowDown")],
)
def test_any_refusal_is_one_sentence(status, code, store, refused, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store(status, code=code)
    for command in ("status", "run"):
        sentence = refused(command, "--workspace", "s3://bucket/run")
        assert sentence.startswith("s3://bucket/run/workspace.json cannot be read: ")
        assert sentence.endswith("; check the URL, the credentials and what they allow")


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "S3://", "gs:///x"])
def test_a_bucket_without_a_name_is_refused(url):
    with pytest.raises(
        SettingError, match=r"cannot be opened: it names no bucket; write ..://BUCK"
    ):
        Workspace(url)
    with pytest.raises(InputError, match=r"cannot be opened .it names no bucket; write ..://BUCK"):
        expand([url])


def test_capitals_in_a_kind_of_storage_do_not_matter(s3, workspace):
    workspace.storage.write_bytes("pool.jsonl", json.dumps(row(1)).encode())
    loud = s3.url.replace("s3://", "S3://")
    assert Workspace(loud).url == s3.url
    assert expand([f"{loud}/pool.jsonl"]) == [f"{s3.url}/pool.jsonl"]


# Pools


def test_pools_are_read_from_a_bucket_by_glob_and_folder(s3, workspace):
    for name in ("a", "b"):
        workspace.storage.write_bytes(f"pool/{name}.jsonl", json.dumps(row(1, id=name)).encode())
    files = [f"{s3.url}/pool/{name}.jsonl" for name in ("a", "b")]
    for source in ("pool", "pool/*.jsonl"):
        assert expand([f"{s3.url}/{source}"]) == files
    assert [example.id for example in read_examples(files)] == ["a", "b"]
    described = describe(files[0])
    assert described["name"] == "a.jsonl"
    workspace.storage.write_bytes("pool/a.jsonl", json.dumps(row(2, id="a")).encode())
    changed = describe(files[0])
    assert (changed["size"], changed["tag"] != described["tag"]) == (described["size"], True)
