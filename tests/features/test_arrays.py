"""Array files of any supported kind are read without running code from them, and checked."""

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file as save_torch

from g2is_ray.errors import InputError
from g2is_ray.features.arrays import gradients_from, neighbors_from

pytestmark = pytest.mark.usefixtures("empty_folder")

X = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)


class RunsCode:
    """Makes the file `ran` when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def write_npy(array, name="x.npy"):
    np.save(name, array, allow_pickle=True)
    return name


def write_pt(value, name="x.pt"):
    torch.save(value, name)
    return name


def write_bytes(data, name):
    with open(name, "wb") as file:  # noqa: PTH123
        file.write(data)
    return name


WRITERS = {
    "npy": lambda: write_npy(X),
    "npy in Fortran order": lambda: write_npy(np.asfortranarray(X)),
    "npy of big-endian float64": lambda: write_npy(X.astype(">f8")),
    "safetensors": lambda: save_numpy({"any": X}, "x.safetensors") or "x.safetensors",
    "pt": lambda: write_pt(torch.tensor(X)),
    "pt of a dictionary": lambda: write_pt({"any": torch.tensor(X)}),
    "pt of a parameter": lambda: write_pt(torch.nn.Parameter(torch.tensor(X))),
    "pt of a transposed view": lambda: write_pt(torch.tensor(X.T.copy()).T),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_each_kind_of_file_gives_the_same_float32_rows(write):
    found = gradients_from(write())
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, X)


NARROW = [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8]


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_narrow_number_types_keep_their_values(dtype, suffix):
    narrow = torch.tensor(X).to(dtype)
    if suffix == "pt":
        torch.save(narrow, "x.pt")
    else:
        save_torch({"x": narrow}, "x.safetensors")
    np.testing.assert_array_equal(gradients_from(f"x.{suffix}"), narrow.float().numpy())


def with_entry(value):
    changed = X.astype(np.float64)
    changed[3, 1] = value
    return write_npy(changed)


UNUSABLE = {
    "missing": (lambda: "none.npy", "no such file"),
    "a folder": (lambda: ".", "no such file"),
    "another kind": (lambda: write_bytes(b"1,2", "x.csv"), r"'\.csv'"),
    "empty npy": (lambda: write_bytes(b"", "x.npy"), "empty"),
    "empty pt": (lambda: write_bytes(b"", "x.pt"), "damaged"),
    "empty safetensors": (lambda: write_bytes(b"", "x.safetensors"), "cannot be read"),
    "garbage npy": (lambda: write_bytes(b"garbage!" * 9, "x.npy"), "NumPy"),
    "garbage pt": (lambda: write_bytes(b"garbage!" * 9, "x.pt"), "damaged"),
    "garbage safetensors": (lambda: write_bytes(b"\xff" * 99, "x.safetensors"), "cannot be read"),
    "one axis": (lambda: write_npy(X[0]), r"shape \[4\]"),
    "three axes": (lambda: write_npy(X[None]), r"shape \[1, 6, 4\]"),
    "no rows": (lambda: write_npy(X[:0]), r"shape \[0, 4\]"),
    "no columns": (lambda: write_npy(X[:, :0]), r"shape \[6, 0\]"),
    "complex": (lambda: write_npy(X.astype(np.complex64)), "complex64"),
    "conjugate": (lambda: write_pt(torch.tensor(X + 1j).conj()), "complex"),
    "truth values": (lambda: write_npy(X > 0), "bool"),
    "texts": (lambda: write_npy(X.astype(str)), "<U"),
    "nan": (lambda: with_entry(np.nan), "row 3 has entries that are not finite"),
    "infinity": (lambda: with_entry(np.inf), "row 3 has entries that are not finite"),
    "beyond float32": (lambda: with_entry(1e300), "row 3 has entries that are not finite"),
    "a list": (lambda: write_pt([1, 2]), "holds a list"),
    "a number": (lambda: write_pt({"x": 3}), "holds a int"),
    "two tensors": (lambda: write_pt({"b": torch.ones(2), 3: 1}), r"\['3', 'b'\]"),
    "no tensor": (lambda: save_numpy({}, "x.safetensors") or "x.safetensors", r"holds \[\]"),
    "sparse": (lambda: write_pt(torch.tensor(X).to_sparse()), "Sparse|sparse"),
    "no data": (lambda: write_pt(torch.empty(6, 4, device="meta")), "meta"),
}


@pytest.mark.parametrize(("write", "problem"), UNUSABLE.values(), ids=UNUSABLE)
def test_an_unusable_file_is_refused_with_its_name_and_reason(write, problem):
    file = write()
    with pytest.raises(InputError, match=problem) as refusal:
        gradients_from(file)
    assert str(refusal.value).startswith(f"{file}: ")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("suffix", ["npy", "safetensors", "pt"])
@pytest.mark.parametrize("kept", [9, 60, -1])
def test_a_truncated_file_is_refused(suffix, kept):
    np.save("x.npy", X)
    save_numpy({"x": X}, "x.safetensors")
    torch.save(torch.tensor(X), "x.pt")
    with open(f"x.{suffix}", "rb") as file:  # noqa: PTH123
        data = file.read()[:kept]
    with pytest.raises(InputError, match=rf"^x\.{suffix}: "):
        gradients_from(write_bytes(data, f"x.{suffix}"))


def test_an_archive_named_npy_is_refused():
    np.savez("x.npz", x=X)
    os.rename("x.npz", "x.npy")  # noqa: PTH104
    with pytest.raises(InputError, match=r"x\.npy: "):
        gradients_from("x.npy")


CODE = {
    "pt": lambda: write_pt(RunsCode()),
    "pt of a dictionary": lambda: write_pt({"x": RunsCode()}),
    "bare pickle": lambda: write_bytes(pickle.dumps(RunsCode()), "x.pt"),
    "bare pickle as npy": lambda: write_bytes(pickle.dumps(RunsCode()), "x.npy"),
    "npy of objects": lambda: write_npy(np.array([[RunsCode()]], dtype=object)),
}


@pytest.mark.parametrize("write", CODE.values(), ids=CODE)
def test_code_in_a_file_is_never_run(write, empty_folder):
    file = write()
    assert not (empty_folder / "ran").exists()
    with pytest.raises(InputError) as refusal:
        gradients_from(file)
    assert not (empty_folder / "ran").exists()
    assert "weights_only" not in str(refusal.value)  # torch advises to load it unsafely
    assert "allow_pickle" not in str(refusal.value)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.uint64])
def test_a_graph_is_read_as_row_numbers(dtype):
    graph = np.array([[1, 2], [0, 2], [0, 1]], dtype=dtype)
    found = neighbors_from(write_npy(graph), 3)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, graph)


def test_a_graph_may_lack_neighbors():
    graph = np.array([[1, -1], [0, -1], [-1, -1]])
    np.testing.assert_array_equal(neighbors_from(write_npy(graph), 3), graph)


@pytest.mark.parametrize(
    ("graph", "problem"),
    [
        (np.array([[1], [3], [0]]), "names row 3, but --train has only 3 rows"),
        (np.array([[1], [2**63 + 5], [0]], dtype=np.uint64), "names row 9223372036854775813"),
        (np.array([[1], [0]]), "has 2 rows, but --train has 3"),
        (np.array([[1.0], [2.0], [0.0]]), "needs row numbers, but holds float64"),
        (np.array([[True], [True], [False]]), "needs row numbers, but holds bool"),
    ],
    ids=["row beyond", "row beyond int64", "too few rows", "floats", "truth values"],
)
def test_a_graph_that_does_not_fit_is_refused(graph, problem):
    with pytest.raises(InputError, match=problem):
        neighbors_from(write_npy(graph), 3)
