"""Batched gradients equal those of single examples, and are adjusted as in LESS."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from architectures import (
    ARCHITECTURES,
    HEADS,
    LLAMA,
    SMALL,
    VOCABULARY,
    Concatenated,
    adapter,
    examples,
)
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM as Auto
from transformers import LlamaConfig

from g2is_ray.chat.encoder import Encoded
from g2is_ray.config import LoraSettings, ModelSettings
from g2is_ray.errors import SettingError
from g2is_ray.features.gradients import GradientComputer, adjust_gradient, prepare_moments
from g2is_ray.models.batches import Batch, batches_by_length
from g2is_ray.models.loading import Moments, add_adapter, load_base, lora_parameters
from g2is_ray.models.loss import SupervisedLoss

CPU = torch.device("cpu")


def by_autograd(model: PeftModel, one: Encoded) -> dict[str, torch.Tensor]:
    """Return autograd's gradients of transformers' loss on a single example."""
    model.zero_grad()
    ids, labels = torch.tensor([one.input_ids]), torch.tensor([one.labels])
    model(input_ids=ids, labels=labels).loss.backward()
    return {name: p.grad.clone() for name, p in lora_parameters(model).items()}


def computer(
    model: PeftModel, moments: Moments | None = None, **options: object
) -> GradientComputer:
    return GradientComputer(
        model, Concatenated(model), moments, pad_id=0, **{"token_budget": 80, **options}
    )


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def assert_as_by_autograd(model: PeftModel, rows: list[Encoded], **options: object) -> None:
    whole = Concatenated(model)
    wanted = [whole.flat(by_autograd(model, one)) for one in rows]
    found = computer(model, **options).compute(rows, adjust=False)
    assert not found.invalid
    for i in range(len(rows)):
        assert relative_error(found.projected[i], wanted[i]) < 1e-4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batched_gradients_equal_autograd_on_single_examples(name: str) -> None:
    assert_as_by_autograd(adapter(name), examples())


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["v_proj", "down_proj"]},
        {"target_modules": r".*\.1\.mlp\.up_proj"},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"k_proj": 32}},
    ],
    ids=["one module", "attention and mlp", "a pattern", "rsLoRA", "ranks by module"],
)
def test_every_choice_of_lora_modules_is_right(lora: dict[str, object]) -> None:
    assert_as_by_autograd(adapter(**lora), examples())


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_kernel_does_not_matter(attention: str, name: str) -> None:
    rows = examples(4)
    whole = Concatenated(adapter(name))
    wanted = [whole.flat(by_autograd(adapter(name, "eager"), one)) for one in rows]
    found = computer(adapter(name, attention)).compute(rows, adjust=False)
    for i in range(len(rows)):
        assert relative_error(found.projected[i], wanted[i]) < 1e-4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradient_checkpointing_does_not_matter(name: str) -> None:
    rows = examples(4)
    plain = computer(adapter(name)).compute(rows, adjust=False)
    model, calls = adapter(name), []
    first = next(m for n, m in model.named_modules() if n.endswith("lora_A.default"))
    one = computer(model, checkpointing=True)
    first.register_forward_hook(lambda *_: calls.append(1))
    found = one.compute(rows, adjust=False)
    np.testing.assert_allclose(found.projected, plain.projected, rtol=1e-4, atol=1e-6)
    assert len(calls) == 2  # one batch: in the forward pass, and again in the backward pass


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_equal_those_of_transformers(name: str) -> None:
    model, rows = adapter(name), examples()
    with torch.no_grad():
        wanted = [
            float(
                model(input_ids=torch.tensor([o.input_ids]), labels=torch.tensor([o.labels])).loss
            )
            for o in rows
        ]
    found = computer(model).compute(rows, adjust=False)
    np.testing.assert_allclose(found.losses, wanted, rtol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batch_mates_and_their_order_do_not_matter(name: str) -> None:
    rows = examples()
    alone = computer(adapter(name), token_budget=1).compute(rows, adjust=False).projected
    together = computer(adapter(name), token_budget=10_000)
    backward = together.compute(rows[::-1], adjust=False).projected[::-1]
    for i in range(len(rows)):
        assert relative_error(backward[i], alone[i]) < 1e-4


@pytest.mark.slow
def test_compiling_does_not_matter() -> None:
    rows, modules, moments = examples(3), ["q_proj", "v_proj"], {}
    for name, p in lora_parameters(adapter(target_modules=modules)).items():
        moments[name] = torch.full(p.shape, 0.1), torch.full(p.shape, 0.01)
    plain = computer(adapter(target_modules=modules), moments).compute(rows, adjust=True)
    compiled = computer(adapter(target_modules=modules), moments, compiled=True)
    found = compiled.compute(rows, adjust=True)
    np.testing.assert_allclose(found.projected, plain.projected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("bits", "cosine"), [("8bit", 0.99), ("4bit", 0.9)])
def test_quantized_base_weights_give_nearly_the_same_gradients(
    bits: str, cosine: float, tiny_model: str
) -> None:
    pytest.importorskip("bitsandbytes")
    found = []
    for quantization in ("none", bits):
        base = load_base(ModelSettings(model=tiny_model, quantization=quantization), CPU)
        model = add_adapter(base, LoraSettings(lora_r=4), seed=0).eval()
        torch.manual_seed(1)
        for parameter in lora_parameters(model).values():
            torch.nn.init.normal_(parameter, std=0.02)
        found.append(computer(model).compute(examples(4), adjust=False).projected)
    for full, quantized in zip(*found, strict=True):
        assert full @ quantized > cosine * np.linalg.norm(full) * np.linalg.norm(quantized)
        assert not np.allclose(full, quantized, rtol=1e-3)  # it was quantized


def test_dropout_is_off() -> None:
    one, rows = computer(adapter()), examples()
    first, second = (one.compute(rows, adjust=False).projected for _ in range(2))
    assert np.array_equal(first, second)


def test_lora_layers_restricts_gradients_to_the_last_layers() -> None:
    model, rows = adapter(), examples()
    last = [i for n, i in enumerate_coordinates(model) if ".layers.1." in n]
    whole = computer(adapter()).compute(rows, adjust=False).projected
    found = computer(model, lora_layers="last:1").compute(rows, adjust=False).projected
    np.testing.assert_allclose(found[:, last], whole[:, last], rtol=1e-5)
    assert not np.delete(found, last, axis=1).any()


def enumerate_coordinates(model: PeftModel) -> Iterator[tuple[str, int]]:
    for name, part in Concatenated(model).slices.items():
        yield from ((name, i) for i in range(part.start, part.stop))


@pytest.mark.parametrize(
    "lora",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, "v_proj": 5}, "alpha_pattern": {"v_proj": 31}},
    ],
)
def test_scalings_and_ranks_of_an_adapter_are_respected(lora: dict[str, object]) -> None:
    assert_as_by_autograd(adapter(**lora), examples())


@pytest.mark.parametrize("layers", ["last:3", "last:1"])
def test_lora_layers_without_an_adapter_are_refused(layers: str) -> None:
    model = adapter(target_modules=["q_proj"], layers_to_transform=[0])
    with pytest.raises(SettingError, match=f"lora_layers {layers} does not fit.* 2 layers"):
        computer(model, lora_layers=layers)


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.8, 0.95)])
def test_adjusted_gradients_equal_the_formula_on_flattened_parameters(b1: float, b2: float) -> None:
    model, rows = adapter(), examples()
    whole = Concatenated(model)
    generator = torch.Generator().manual_seed(3)
    moments = {
        name: (
            torch.randn(p.shape, generator=generator) * 0.01,
            torch.rand(p.shape, generator=generator) * 1e-3,
        )
        for name, p in lora_parameters(model).items()
    }
    m, v = (whole.flat({n: pair[i] for n, pair in moments.items()}) for i in (0, 1))
    m, v = m.astype(np.float64), v.astype(np.float64)
    gradients = [whole.flat(by_autograd(model, one)).astype(np.float64) for one in rows]
    found = computer(model, moments, betas=(b1, b2)).compute(rows, adjust=True)
    for i, g in enumerate(gradients):
        wanted = (b1 * m + (1 - b1) * g) / np.sqrt(b2 * v + (1 - b2) * g**2 + 1e-8)
        assert relative_error(found.projected[i], wanted) < 1e-4


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95), (0.5, 0.98)])
def test_adjusting_equals_a_step_of_adamw_without_bias_correction(
    betas: tuple[float, float],
) -> None:
    """After 1e6 steps bias correction is gone, and v is large, so epsilon's place is too."""
    generator = torch.Generator().manual_seed(4)
    g, m = (torch.randn(5, 3, generator=generator) for _ in range(2))
    v = torch.rand(5, 3, generator=generator) + 0.1
    weight = torch.nn.Parameter(torch.zeros(5, 3))
    optimizer = torch.optim.AdamW([weight], lr=1.0, weight_decay=0.0, betas=betas)
    optimizer.state[weight] = {
        "step": torch.tensor(1e6),
        "exp_avg": m.clone(),
        "exp_avg_sq": v.clone(),
    }
    weight.grad = g.clone()
    optimizer.step()
    found = adjust_gradient(g, prepare_moments({"weight": (m, v)}, CPU, betas)["weight"], betas)
    torch.testing.assert_close(found, -weight.detach(), rtol=1e-5, atol=1e-6)


def test_adjusting_leaves_its_input_alone() -> None:
    g, m, v = torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3)
    adjust_gradient(g, prepare_moments({"weight": (m, v)}, CPU)["weight"])
    for tensor in (g, m, v):
        assert torch.equal(tensor, torch.ones(2, 3))


def test_no_weight_gradient_of_a_frozen_weight_is_formed() -> None:
    """FLOPs are those of a forward pass, of an equal backward pass, and of the gradients."""
    model, rows = adapter(), examples()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        loss = SupervisedLoss(model)
        for batch in batches_by_length([len(one.input_ids) for one in rows], 80):
            loss.sums(Batch.of([rows[i] for i in batch], 0, CPU))
    one = computer(model)
    with FlopCounterMode(display=False) as both:
        one.compute(rows, adjust=False)
    flops = dict(both.get_flop_counts()["Global"])
    per_example = flops.pop(torch.ops.aten.bmm)  # δᵀx of every LoRA linear
    assert per_example > 0
    lora_tokens = per_example / 2 / sum(p.numel() for p in lora_parameters(model).values())
    assert lora_tokens == sum(
        len(batch) * max(len(rows[i].input_ids) for i in batch)
        for batch in batches_by_length([len(o.input_ids) for o in rows], 80)
    )
    assert sum(flops.values()) < 2.01 * forward.get_total_flops()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_of_a_module_used_twice_are_summed(checkpointing: bool) -> None:
    class Twice(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: torch.Tensor, *args: object, **rest: object) -> torch.Tensor:
            return self.inner(self.inner(hidden, *args, **rest), *args, **rest)

    torch.manual_seed(0)
    base = Auto.from_config(ARCHITECTURES[LLAMA])
    base.model.layers[0].mlp = Twice(base.model.layers[0].mlp)
    model = get_peft_model(base, LoraConfig(r=3, target_modules="all-linear")).eval()
    for parameter in lora_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.3)
    assert_as_by_autograd(model, examples(3), checkpointing=checkpointing)


def test_an_adapter_of_zeros_is_named_invalid() -> None:
    """With A = B = 0, all gradients are zero; a fresh adapter has only B = 0."""
    model = adapter(target_modules=["q_proj"])
    for parameter in lora_parameters(model).values():
        torch.nn.init.zeros_(parameter)
    found = computer(model).compute(examples(2), adjust=False)
    assert set(found.invalid.values()) == {"its gradient is zero"}


def test_an_infinite_loss_is_named_invalid() -> None:
    model = adapter()
    with torch.no_grad():
        model.get_base_model().model.norm.weight.fill_(float("inf"))
    found = computer(model).compute(examples(2), adjust=False)
    assert all("loss" in reason for reason in found.invalid.values())
    assert len(found.invalid) == 2 and not found.projected.any()


def test_one_examples_nan_does_not_reach_its_batch_mates() -> None:
    model, rows = adapter(), examples(4)
    poison = VOCABULARY - 1
    rows = [
        Encoded(
            input_ids=[min(token, poison - 1) for token in one.input_ids],
            labels=one.labels,
            tokens_before_truncation=one.tokens_before_truncation,
        )
        for one in rows
    ]
    rows[2].input_ids[1] = poison
    model.get_base_model().model.embed_tokens.weight.data[poison] = float("nan")
    model.get_base_model().lm_head.weight = torch.nn.Parameter(
        torch.nan_to_num(model.get_base_model().lm_head.weight.data.clone())
    )
    found = computer(model, token_budget=10_000).compute(rows, adjust=False)
    assert found.invalid == {2: "its loss is nan"}
    assert not found.projected[2].any()
    assert np.isfinite(found.projected).all() and found.projected[[0, 1, 3]].any(axis=1).all()


def test_examples_without_supervised_tokens_are_named_invalid() -> None:
    rows = examples(3)
    first = rows[1].input_ids[0]
    rows[1].labels[:] = [first] + [-100] * (len(rows[1].labels) - 1)  # it is never predicted
    found = computer(adapter()).compute(rows, adjust=False)
    assert found.invalid == {1: "it has no supervised tokens"}
    assert np.isnan(found.losses[1]) and not found.projected[1].any()


@pytest.mark.parametrize(
    ("lora", "problem"),
    [
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"lora_bias": True}, r"lora_B\..*bias"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "lora_embedding"),
        ({"target_modules": ["q_proj", "lm_head"]}, "output layer"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
    ids=["DoRA", "biases", "embeddings", "output layer", "modules to save"],
)
def test_unsupported_adapters_are_refused_by_name(lora: dict[str, object], problem: str) -> None:
    untied = LlamaConfig(**SMALL, **HEADS, tie_word_embeddings=False)
    model = get_peft_model(
        Auto.from_config(untied), LoraConfig(**{"r": 3, "target_modules": ["q_proj"], **lora})
    )
    with pytest.raises(SettingError, match=problem):
        computer(model)


def test_a_module_that_mixes_examples_is_refused_by_name() -> None:
    class Expert(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            routed = hidden[..., 0] > 0
            return hidden.masked_scatter(routed[..., None], self.inner(hidden[routed]))

    base = Auto.from_config(ARCHITECTURES[LLAMA])
    base.model.layers[1].mlp = Expert(base.model.layers[1].mlp)
    model = get_peft_model(base, LoraConfig(r=3, target_modules=["up_proj"])).eval()
    with pytest.raises(SettingError, match=r"layers\.1\.mlp.*up_proj.*several examples mixed"):
        computer(model).compute(examples(2), adjust=False)


def test_a_module_that_is_never_called_is_refused_by_name() -> None:
    base = Auto.from_config(ARCHITECTURES[LLAMA])
    base.model.spare = torch.nn.Linear(16, 16)
    model = get_peft_model(base, LoraConfig(r=3, target_modules=["q_proj", "spare"])).eval()
    with pytest.raises(SettingError, match=r"never calls .*spare"):
        computer(model).compute(examples(2), adjust=False)


class Memory:
    """Simulates a device whose memory holds batches of at most `tokens` padded tokens."""

    def __init__(self, model: PeftModel, tokens: int) -> None:
        self.refused: list[int] = []
        self.served: list[int] = []
        self.tokens = tokens
        layers = model.get_base_model().model.layers
        layers[-1].register_forward_hook(self._hook)

    def _hook(self, module: object, args: tuple[torch.Tensor, ...], output: object) -> None:
        held = args[0].shape[0] * args[0].shape[1]
        (self.refused if held > self.tokens else self.served).append(held)
        if held > self.tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_a_batch_that_does_not_fit_halves_the_budget_permanently() -> None:
    rows = examples()
    wanted = computer(adapter()).compute(rows, adjust=False)
    model = adapter()
    one = computer(model, token_budget=10_000)
    memory = Memory(model, 60)
    found = one.compute(rows, adjust=False)
    np.testing.assert_allclose(found.projected, wanted.projected, rtol=1e-4, atol=1e-6)
    assert memory.refused and max(memory.served) <= 60
    memory.refused.clear()
    one.compute(rows, adjust=False)
    assert not memory.refused


def test_an_example_that_never_fits_is_refused_with_its_length() -> None:
    model = adapter()
    one = computer(model)
    Memory(model, 10)
    with pytest.raises(SettingError, match=r"example of 23 tokens .* set max_tokens lower"):
        one.compute(examples(), adjust=False)
