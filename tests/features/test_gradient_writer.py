"""Gradients of a part are right at one checkpoint or several, by one thread or two."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.config import (
    ExecutionSettings,
    GradientSettings,
    LoraSettings,
    ModelSettings,
    ReadSettings,
    SeedSettings,
)
from g2is_ray.data.examples import write_examples
from g2is_ray.errors import InputError, SettingError
from g2is_ray.features.gradient_writer import GradientWriter
from g2is_ray.features.store import FeatureSet
from g2is_ray.features.writer import FeaturePart
from g2is_ray.models import checkpoints, loading
from g2is_ray.workspace.workspace import Workspace

ROWS, RATES = 12, [3e-4, 1e-4]


@pytest.fixture
def workspace(tmp_path, tiny_model):
    """A pool in two parts, read and tokenized."""
    file = tmp_path / "pool.jsonl"
    pairs = [{"prompt": f"Add {n} and 7.", "completion": f"It is {n + 7}."} for n in range(ROWS)]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    made = Workspace(str(tmp_path / "workspace"))
    encoder = ChatEncoder(loading.load_tokenizer(ModelSettings(model=tiny_model)), max_tokens=48)
    write_examples(made, "pool", [str(file)], encoder, ReadSettings(part_rows=ROWS // 2))
    return made


def warm_up(workspace, tiny_model, *, count=1, std=0.05):
    """Write checkpoints with random weights and moments, as a warm-up does."""
    files = {}
    base = loading.load_base(ModelSettings(model=tiny_model), torch.device("cpu"))
    model = loading.add_adapter(base, LoraSettings(lora_r=2), seed=0)
    parameters = loading.lora_parameters(model)
    for number in range(1, count + 1):
        torch.manual_seed(number)
        moments = {}
        for name, parameter in parameters.items():
            torch.nn.init.normal_(parameter, std=std)
            moments[name] = (
                torch.randn(parameter.shape) * 1e-3,
                torch.rand(parameter.shape) * 1e-4,
            )
        files |= checkpoints.files(number, loading.adapter_files(model), moments)
    workspace.stage("warmup").commit("receipt", files, {"learning_rates": RATES[:count]})


def writer(workspace, tiny_model, max_part_bytes=2**33, **gradients):
    return GradientWriter(
        workspace,
        model=ModelSettings(model=tiny_model),
        gradients=GradientSettings(**gradients),
        seed=SeedSettings(),
        execution=ExecutionSettings(),
        max_tokens=48,
        max_part_bytes=max_part_bytes,
    )


def parts(stage="gradients"):
    return [FeaturePart(examples="pool", stage=stage, part=i) for i in (0, 1)]


def rows_of(workspace, stage):
    workspace.stage(stage).conclude({"rows": ROWS, "parts": 2, "invalid": 0})
    return FeatureSet(workspace, stage).read_all()


def files_of(workspace, stage):
    return {
        name: workspace.storage.read_bytes(f"{stage}/{name}")
        for name in workspace.storage.names(stage)
        if name.endswith(".npy")
    }


def test_two_threads_write_what_one_does(workspace, tiny_model):
    warm_up(workspace, tiny_model)
    one = writer(workspace, tiny_model)
    for part in parts("one"):
        one.write(part)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(one.write, parts("two")))
    assert files_of(workspace, "one") == files_of(workspace, "two")
    assert len(files_of(workspace, "one")) == 6


def test_dot_products_over_checkpoints_are_cosines_weighted_by_learning_rate(workspace, tiny_model):
    """Source: LESS (arXiv 2402.04333), equation 1 with Adam: Σ η · cosine over checkpoints."""
    alone = []
    for number in (1, 2):
        warm_up(workspace, tiny_model, count=2)
        one = checkpoints.read(workspace, number)
        single = Workspace(workspace.storage.location(f"single-{number}"))
        pool = {
            n: workspace.storage.read_bytes(f"pool/{n}") for n in workspace.storage.names("pool")
        }
        for name, data in pool.items():
            single.storage.write_bytes(f"pool/{name}", data)
        model = loading.add_adapter(
            loading.load_base(ModelSettings(model=tiny_model), torch.device("cpu")),
            LoraSettings(lora_r=2),
            seed=0,
        )
        moments = checkpoints.put(model, one)
        files = checkpoints.files(1, loading.adapter_files(model), moments)
        single.stage("warmup").commit("receipt", files, {"learning_rates": RATES[:1]})
        for part in parts():
            writer(single, tiny_model, projection="none").write(part)
        alone.append(rows_of(single, "gradients"))
    for part in parts():
        writer(workspace, tiny_model, projection="none").write(part)
    both = rows_of(workspace, "gradients")
    wanted = sum(rate / sum(RATES) * rows @ rows.T for rate, rows in zip(RATES, alone, strict=True))
    assert both.shape[1] == sum(rows.shape[1] for rows in alone)
    np.testing.assert_allclose(both @ both.T, wanted, atol=2e-3)  # float16 on disk


def test_checkpoints_share_the_dimensions_of_a_projection(workspace, tiny_model):
    warm_up(workspace, tiny_model, count=2)
    for kind in ("none", "sparse"):
        for part in parts(kind):
            writer(workspace, tiny_model, projection=kind).write(part)
    exact, projected = rows_of(workspace, "none"), rows_of(workspace, "sparse")
    assert projected.shape == (ROWS, 8192)
    np.testing.assert_allclose(projected @ projected.T, exact @ exact.T, atol=0.06)


def test_gradients_of_the_last_layer_have_that_layers_dimensions(workspace, tiny_model):
    warm_up(workspace, tiny_model)
    for part in parts():
        writer(workspace, tiny_model, projection="none", lora_layers="last:1").write(part)
    layers = loading.load_skeleton(ModelSettings(model=tiny_model)).config.num_hidden_layers
    adapter = checkpoints.read(workspace, 1).adapter
    assert rows_of(workspace, "gradients").shape[1] == (
        sum(weight.numel() for weight in adapter.values()) // layers
    )


def test_a_stage_that_cannot_succeed_fails_at_its_first_part(workspace, tiny_model):
    warm_up(workspace, tiny_model, std=0)
    with pytest.raises(InputError, match=r"^gradients: 6 of 12 examples .*: its gradient is zero"):
        writer(workspace, tiny_model).write(parts()[0])
    receipt = workspace.stage("gradients").verified("part-00000")
    assert len(receipt["invalid"]) == 6
    assert all(one["id"].endswith(f"pool.jsonl:{i}") for i, one in enumerate(receipt["invalid"], 1))


def test_a_part_that_does_not_fit_is_refused_with_the_largest_that_does(workspace, tiny_model):
    warm_up(workspace, tiny_model)
    numbers = sum(weight.numel() for weight in checkpoints.read(workspace, 1).adapter.values())
    one = writer(workspace, tiny_model, max_part_bytes=4 * 4 * numbers, projection="none")
    with pytest.raises(SettingError, match=r"set part_rows to at most 4, or projection to sparse"):
        one.write(parts()[0])
