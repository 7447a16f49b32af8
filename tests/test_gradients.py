"""A batched gradient is the example's own, adjusted as LESS adjusts it."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM as Auto
from transformers import GPT2Config, LlamaConfig, Qwen3Config

from g2is_ray.chat import Encoded
from g2is_ray.errors import G2isError
from g2is_ray.gradients import GradientComputer, adjusted, batches_by_length
from g2is_ray.models import Moments, lora_parameters

VOCABULARY = 61
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24}
ARCHITECTURES = {
    "llama, grouped queries, tied": LlamaConfig(**SMALL, **HEADS, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL, **HEADS, head_dim=4),
    "gpt2, Conv1D": GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4),
}


def adapter(name: str) -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(
        Auto.from_config(ARCHITECTURES[name]), LoraConfig(r=3, target_modules="all-linear")
    )
    for parameter in lora_parameters(model).values():  # B too, or A would have no gradient
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def examples(count: int = 7) -> list[Encoded]:
    rng = np.random.default_rng(1)
    found = []
    for i in range(count):
        ids = rng.integers(1, VOCABULARY, size=5 + 3 * i).tolist()
        labels = [token if rng.random() < 0.6 else -100 for token in ids]
        labels[-1] = ids[-1]
        found.append(Encoded(input_ids=ids, labels=labels, tokens_before_truncation=len(ids)))
    return found


def by_autograd(model: PeftModel, one: Encoded) -> dict[str, torch.Tensor]:
    """Plain autograd on a single example, through transformers' own loss."""
    model.zero_grad()
    ids, labels = torch.tensor([one.input_ids]), torch.tensor([one.labels])
    model(input_ids=ids, labels=labels).loss.backward()
    return {name: p.grad.clone() for name, p in lora_parameters(model).items()}


class Concatenated:
    """In place of a projection: every coordinate of the gradient, by parameter name."""

    def __init__(self, model: PeftModel) -> None:
        self.slices, self.size = {}, 0
        for name, parameter in lora_parameters(model).items():
            self.slices[name] = slice(self.size, self.size + parameter.numel())
            self.size += parameter.numel()

    def add(self, out_bd: torch.Tensor, name: str, gradient: torch.Tensor) -> None:
        out_bd[:, self.slices[name]] += gradient.reshape(len(gradient), -1)

    def flat(self, gradients: dict[str, torch.Tensor]) -> np.ndarray:
        return torch.cat([gradients[name].flatten() for name in self.slices]).numpy()


def computer(model: PeftModel, moments: Moments | None = None) -> GradientComputer:
    whole = Concatenated(model)
    return GradientComputer(model, whole.add, whole.size, moments, pad_id=0)


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_batched_gradients_equal_autograd_on_single_examples(name: str) -> None:
    model, rows = adapter(name), examples()
    whole = Concatenated(model)
    wanted = [whole.flat(by_autograd(model, one)) for one in rows]
    found = computer(model).compute(rows, token_budget=80, adjust=False)
    assert not found.invalid
    for i in range(len(rows)):
        assert relative_error(found.projected[i], wanted[i]) < 1e-4


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses_are_transformers_own(name: str) -> None:
    model, rows = adapter(name), examples()
    with torch.no_grad():
        wanted = [
            float(
                model(input_ids=torch.tensor([o.input_ids]), labels=torch.tensor([o.labels])).loss
            )
            for o in rows
        ]
    found = computer(model).compute(rows, token_budget=80, adjust=False)
    np.testing.assert_allclose(found.losses, wanted, rtol=1e-5)


def test_batch_mates_and_their_order_do_not_matter() -> None:
    model, rows = adapter("llama, grouped queries, tied"), examples()
    one = computer(model)
    alone = one.compute(rows, token_budget=1, adjust=False).projected
    together = one.compute(rows[::-1], token_budget=10_000, adjust=False).projected[::-1]
    for i in range(len(rows)):
        assert relative_error(together[i], alone[i]) < 1e-5


def test_adjusted_gradients_equal_the_formula_on_flattened_parameters() -> None:
    model, rows = adapter("llama, grouped queries, tied"), examples()
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
    found = computer(model, moments).compute(rows, token_budget=80, adjust=True)
    for i, g in enumerate(gradients):
        wanted = (0.9 * m + 0.1 * g) / np.sqrt(0.999 * v + 0.001 * g**2 + 1e-8)
        assert relative_error(found.projected[i], wanted) < 1e-4


def test_adjusting_leaves_its_input_alone() -> None:
    g, m, v = torch.ones(2, 3), torch.ones(2, 3), torch.ones(2, 3)
    adjusted(g, (m, v))
    for tensor in (g, m, v):
        assert torch.equal(tensor, torch.ones(2, 3))


def test_module_used_twice_accumulates() -> None:
    class Twice(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: torch.Tensor, *args: object, **rest: object) -> torch.Tensor:
            return self.inner(self.inner(hidden, *args, **rest), *args, **rest)

    torch.manual_seed(0)
    base = Auto.from_config(ARCHITECTURES["llama, grouped queries, tied"])
    base.model.layers[0].mlp = Twice(base.model.layers[0].mlp)
    model = get_peft_model(base, LoraConfig(r=3, target_modules="all-linear")).eval()
    for parameter in lora_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.3)
    rows, whole = examples(3), Concatenated(model)
    wanted = [whole.flat(by_autograd(model, one)) for one in rows]
    found = computer(model).compute(rows, token_budget=80, adjust=False)
    for i in range(len(rows)):
        assert relative_error(found.projected[i], wanted[i]) < 1e-4


def test_fresh_adapter_and_infinite_weights_are_named_invalid() -> None:
    torch.manual_seed(0)
    base = Auto.from_config(ARCHITECTURES["llama, grouped queries, tied"])
    model = get_peft_model(base, LoraConfig(r=3, target_modules=["q_proj"])).eval()
    for parameter in lora_parameters(model).values():
        torch.nn.init.zeros_(parameter)
    found = computer(model).compute(examples(2), token_budget=80, adjust=False)
    assert set(found.invalid.values()) == {"its gradient is zero"}
    with torch.no_grad():
        model.get_base_model().model.norm.weight.fill_(float("inf"))
    found = computer(model).compute(examples(2), token_budget=80, adjust=False)
    assert all("loss" in reason for reason in found.invalid.values())
    assert not found.projected.any()


def test_dora_is_refused_by_name() -> None:
    base = Auto.from_config(ARCHITECTURES["llama, grouped queries, tied"])
    model = get_peft_model(base, LoraConfig(r=3, target_modules=["q_proj"], use_dora=True))
    with pytest.raises(G2isError, match="lora_magnitude_vector"):
        computer(model)


def test_batches_hold_each_example_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, size=200).tolist()
    batches = list(batches_by_length(lengths, 120))
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    for batch in batches:
        assert max(lengths[i] for i in batch) * len(batch) <= 120 or len(batch) == 1
