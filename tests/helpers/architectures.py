"""Tiny random models of the architectures that tests cover, and rows for them."""

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from g2is_ray.chat.encoder import Encoded
from g2is_ray.models.loading import lora_parameters

VOCABULARY = 61
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24}
WINDOW = {"sliding_window": 4}  # shorter than every example
LLAMA = "llama, grouped queries, tied"
ARCHITECTURES = {
    LLAMA: LlamaConfig(**SMALL, **HEADS, tie_word_embeddings=True),
    "mistral, sliding window": MistralConfig(**SMALL, **HEADS, **WINDOW),
    "qwen2, biases": Qwen2Config(**SMALL, **HEADS),
    "qwen3": Qwen3Config(**SMALL, **HEADS, head_dim=4),
    "gemma3, sliding and full, soft cap": Gemma3TextConfig(
        **SMALL,
        **HEADS,
        **WINDOW,
        head_dim=4,
        layer_types=["sliding_attention", "full_attention"],
        final_logit_softcapping=2.0,
    ),
    "granite, scaled logits": GraniteConfig(**SMALL, **HEADS, logits_scaling=3.0),
    "phi3, fused projections": Phi3Config(**SMALL, **HEADS, pad_token_id=0),
    "gpt2, Conv1D": GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=4),
}


class Concatenated:
    """A projection that keeps every coordinate of the gradient, by parameter name."""

    def __init__(self, model: PeftModel) -> None:
        self.slices, self.dimensions = {}, 0
        for name, parameter in lora_parameters(model).items():
            self.slices[name] = slice(self.dimensions, self.dimensions + parameter.numel())
            self.dimensions += parameter.numel()

    def add(self, out_bd: torch.Tensor, name: str, gradient: torch.Tensor) -> None:
        out_bd[:, self.slices[name]] += gradient.reshape(len(gradient), -1)

    def flat(self, gradients: dict[str, torch.Tensor]) -> np.ndarray:
        return torch.cat([gradients[name].flatten() for name in self.slices]).numpy()


def causal_lm(name: str = LLAMA) -> PreTrainedModel:
    torch.manual_seed(0)
    return Auto.from_config(ARCHITECTURES[name]).eval()


def adapter(name: str = LLAMA, attention: str = "sdpa", **lora: object) -> PeftModel:
    torch.manual_seed(0)
    base = Auto.from_config(ARCHITECTURES[name], attn_implementation=attention)
    config = LoraConfig(**{"r": 3, "target_modules": "all-linear", "lora_dropout": 0.5, **lora})
    model = get_peft_model(base, config)
    for parameter in lora_parameters(model).values():  # with B = 0, the gradients of A are zero
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
