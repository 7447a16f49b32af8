"""A worker with other code than the driver's, or with a GPU that does not work, is refused."""

import pytest
import ray
import torch

from actors.pool import version_check
from g2is_ray import __version__

CODE = {"version": "1.2.0", "digest": "aaaa", "place": "/here"}


def said(gpu="", **code):
    return {"host": "10.0.0.7", "is_local": False, "gpu": gpu, "code": {**CODE, **code}}


def test_a_worker_of_the_same_code_is_taken_wherever_it_lies():
    assert version_check.problem(said(place="/there"), CODE) == ""


def test_another_version_is_named_with_node_and_both_versions():
    why = version_check.problem(said(version="1.1.0"), CODE)
    assert why.startswith("node 10.0.0.7 has g2is-ray 1.1.0 (")
    assert "this command is 1.2.0" in why


def test_edited_sources_of_the_same_version_are_named():
    why = version_check.problem(said(digest="bbbb"), CODE)
    assert why.startswith("node 10.0.0.7 has other sources of g2is-ray 1.2.0")


def test_a_checkout_that_is_edited_during_a_local_run_does_not_end_it():
    assert version_check.problem(said(digest="bbbb") | {"is_local": True}, CODE) == ""


def test_the_handshake_of_an_older_version_is_another_versions():
    assert "older version of g2is-ray than 1.2.0" in version_check.problem(
        ("n", "10.0.0.7", ""), CODE
    )


def test_a_gpu_that_does_not_work_is_named():
    why = version_check.problem(said(gpu="torch 2.6.0+cpu cannot use it: no CUDA"), CODE)
    assert why.startswith("node 10.0.0.7 declares a GPU to Ray, but torch 2.6.0+cpu cannot use it")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_torch_without_a_gpu_says_why(monkeypatch):
    assert version_check.gpu_problem().startswith(f"torch {torch.__version__} cannot use it: ")
    monkeypatch.setenv(version_check.UNCHECKED_GPU, "1")
    assert version_check.gpu_problem() == ""


def test_the_digest_is_of_the_sources(tmp_path):
    for package in ("g2is_ray", "actors", "jobs"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "a.py").write_text("x = 1\n")

    def digest():
        version_check.own_code.cache_clear()
        return version_check.own_code(tmp_path)

    first = digest()
    (tmp_path / "jobs" / "__pycache__").mkdir()
    (tmp_path / "jobs" / "__pycache__" / "a.pyc").write_bytes(b"x")
    assert digest() == first
    assert first["version"] == __version__
    (tmp_path / "jobs" / "a.py").write_text("x = 2\n")
    assert digest() != first


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        ("ModuleNotFoundError: No module named 'actors'", True),
        ("ModuleNotFoundError: No module named 'actors.pool.version_check'", True),
        ("ImportError: cannot import name 'handshake' from 'actors.pool.version_check' (/x)", True),
        (
            "AttributeError: Can't get attribute 'handshake' on <module "
            "'actors.pool.version_check' from '/x'>",
            True,
        ),
        ("ModuleNotFoundError: No module named 'actorsystem'", False),
        ("ImportError: cannot import name 'x' from 'transformers' (/x)", False),
        ("ValueError: bad", False),
    ],
)
def test_code_that_is_missing_on_a_node_is_named(text, ours):
    why = version_check.missing_code(ray.exceptions.RayError(f"The actor died.\n{text}\n"))
    assert bool(why) == ours
    assert (text in why) == ours
