"""Embeddings are weighted means of hidden states in any batch, and are computed once."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, causal_lm, examples
from in_process import done_by
from pool_files import row, write

from g2is_ray.chat.encoder import IGNORED
from g2is_ray.config import ModelSettings
from g2is_ray.errors import InputError, SettingError
from g2is_ray.features.embeddings import EmbeddingComputer, EmbeddingWriter
from g2is_ray.features.store import FeatureSet
from g2is_ray.features.writer import FeaturePart
from g2is_ray.workspace.workspace import Workspace
from jobs.session import Session

WORKSPACE = ["--workspace", "ws"]


def computer(model, token_budget=80):
    return EmbeddingComputer(model, pad_id=0, token_budget=token_budget)


def reference_embedding(model, one):
    """Return the weighted mean of one row's hidden states, as RDS+ defines it."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor([one.input_ids]), output_hidden_states=True)
    states = output.hidden_states[-1][0].double().numpy()
    count = len(states)
    return sum(i * state for i, state in enumerate(states, 1)) / (count * (count + 1) / 2)


@pytest.mark.parametrize("token_budget", [1, 80, 10_000])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_embedding_is_the_weighted_mean_of_hidden_states_whatever_the_batch(name, token_budget):
    model, rows = causal_lm(name), examples()
    found = computer(model, token_budget).compute(rows)
    wanted = np.stack([reference_embedding(model, one) for one in rows])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_supervision_does_not_matter():
    rows = examples(3)
    wanted = computer(causal_lm()).compute(rows)
    for one in rows:
        one.labels[1:] = [IGNORED] * (len(one.labels) - 1)
    np.testing.assert_array_equal(computer(causal_lm()).compute(rows), wanted)


def test_an_example_that_never_fits_is_refused_with_its_length():
    model = causal_lm()

    def refuse(*given):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    one = computer(model)
    model.model.layers[-1].register_forward_hook(refuse)
    with pytest.raises(
        SettingError, match=r"example of 23 tokens .* itself: set max_tokens lower$"
    ):
        one.compute(examples())


# ---- of a workspace ---------------------------------------------------------------


@pytest.fixture
def held(empty_folder, in_process, g2is, tiny_model):
    """A workspace that has only a pool in three parts and a target."""
    write("pool.jsonl", *(row(i) for i in range(20)))
    write("val.jsonl", *(row(i) for i in range(30, 35)))
    read = ["--model", tiny_model, "--part-rows", "8", "--max-tokens", "64"]
    g2is("ingest", "--pool", "pool.jsonl", "--target", "law=val.jsonl", *read, *WORKSPACE)
    return Workspace("ws")


def test_only_a_lost_part_is_recomputed(held, in_process, g2is):
    g2is("embeddings", *WORKSPACE)
    parts = [f"embeddings/part-0000{part}" for part in range(3)]
    assert done_by(in_process) == [*parts, "targets/law/embeddings/part-00000"]
    whole = FeatureSet(held, "embeddings").read_all()
    held.storage.write_bytes("embeddings/part-00001.npy", b"half")
    g2is("embeddings", *WORKSPACE)
    assert done_by(in_process)[4:] == parts[1:2]
    np.testing.assert_array_equal(FeatureSet(held, "embeddings").read_all(), whole)
    assert held.stage("embeddings").require()["rows"] == 20


def test_only_appended_rows_are_embedded(held, in_process, g2is):
    g2is("embeddings", *WORKSPACE)
    before = FeatureSet(held, "embeddings").read_all()
    write("more.jsonl", *(row(i) for i in range(20, 25)))
    g2is("ingest", "--append", "more.jsonl", *WORKSPACE)
    g2is("embeddings", *WORKSPACE)
    assert done_by(in_process)[4:] == ["embeddings/part-00003"]
    grown = FeatureSet(held, "embeddings").read_all()
    assert len(grown) == 25
    np.testing.assert_array_equal(grown[:20], before)


def test_rds_selects_with_pool_target_and_embeddings_alone(held, g2is):
    g2is("embeddings", *WORKSPACE)
    g2is("select", "--selector", "rds", "--fraction", "0.3", "--baselines", "random", *WORKSPACE)
    assert sorted(held.storage.names("selections")) == ["law", "law@random"]
    assert held.stage("selections/law").require()["selected"] == 6


def test_a_model_without_finite_embeddings_fails_the_stage(held, tiny_model):
    execution, model = Session("ws", {}).execution, ModelSettings(model=tiny_model)
    writer = EmbeddingWriter(held, model=model, execution=execution, max_tokens=64)
    writer._computer._decoder.norm.weight.data.fill_(float("nan"))
    with pytest.raises(
        InputError, match=r"^embeddings: 8 of 20 examples cannot be used, more than"
    ):
        writer.write(FeaturePart(examples="pool", stage="embeddings", part=0))
