"""Greedy replies equal those of a plain loop over one prompt, for every kind of model."""

import pytest
import torch
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    Phi3Config,
    RecurrentGemmaConfig,
    RwkvConfig,
)

from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.config import LoraSettings, ModelSettings
from g2is_ray.models.loading import add_adapter, load_tokenizer, lora_parameters
from g2is_ray.training.generation import GreedyWriter

ROOM = 9
QUESTIONS = ["Hi!", "Why?", "Who wrote it, and " + "when, " * 9]
SMALL = {"vocab_size": 6144, "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0}
SMALL |= {"tie_word_embeddings": False}  # tied, a random model repeats its input
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 40}
ARCHITECTURES = {
    "llama": LlamaConfig(**SMALL, **HEADS),
    "gemma3, sliding window": Gemma3TextConfig(
        **SMALL, **HEADS, head_dim=4, sliding_window=4, layer_types=["sliding_attention"] * 2
    ),
    "gpt2, learned positions": GPT2Config(vocab_size=6144, n_embd=16, n_layer=2, n_head=4),
    "mamba": MambaConfig(**SMALL, state_size=4),
    "rwkv, no mask": RwkvConfig(**SMALL, attention_hidden_size=16),
    "recurrent gemma, padding in states": RecurrentGemmaConfig(
        **SMALL, **HEADS, head_dim=4, lru_width=16, attention_window_size=64
    ),
    "phi3, a rope for the longest prompt": Phi3Config(
        **SMALL,
        **HEADS,
        max_position_embeddings=200,
        original_max_position_embeddings=40,
        rope_parameters=LONG | {"short_factor": [1.0, 1.1], "long_factor": [1.0, 9.0]},
    ),
    "llama, a rope that grows with the text": LlamaConfig(
        **SMALL,
        **HEADS,
        max_position_embeddings=16,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    ),
}


@pytest.fixture
def tokenizer(tiny_model):
    return load_tokenizer(ModelSettings(model=tiny_model))


@pytest.fixture
def encoder(tokenizer):
    return ChatEncoder(tokenizer, max_tokens=256)


@pytest.fixture
def model():
    return random_model(ARCHITECTURES["llama"])


@pytest.fixture
def prompts(encoder):
    return [encoder.encode_prompt([{"role": "user", "content": text}]) for text in QUESTIONS]


def random_model(config):
    """Return a model with weights so large that every token of a prompt matters."""
    torch.manual_seed(0)
    model = Auto.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "conv" not in name and "A_log" not in name:
                parameter.normal_(std=0.3)
    return model


@torch.no_grad()
def loop(model, tokenizer, prompt, ends, room=ROOM):
    """Return the reply by argmax; every step computes the whole text."""
    new = []
    while len(new) < room:
        ids = torch.tensor([prompt + new])
        new.append(int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax()))
        if new[-1] in ends:
            break
    return tokenizer.decode(new, skip_special_tokens=True)


def replies(model, encoder, prompts, token_budget=4096, room=ROOM):
    writer = GreedyWriter(model, encoder, max_new_tokens=room, token_budget=token_budget)
    return writer.replies(prompts)


def texts(*given, **options):
    return [reply.text for reply in replies(*given, **options)]


@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_replies_equal_those_of_a_plain_loop(config, encoder, tokenizer, prompts):
    model = random_model(config)
    wanted = [loop(model, tokenizer, prompt, {2}) for prompt in prompts]
    assert texts(model, encoder, prompts) == wanted


def test_replies_with_an_adapter_equal_those_of_a_plain_loop(model, encoder, tokenizer, prompts):
    base = [loop(model, tokenizer, prompt, {2}) for prompt in prompts]
    tuned = add_adapter(model, LoraSettings(lora_r=4), 0).eval()
    for parameter in lora_parameters(tuned).values():
        torch.nn.init.normal_(parameter, std=0.2)
    wanted = [loop(tuned, tokenizer, prompt, {2}) for prompt in prompts]
    assert texts(tuned, encoder, prompts) == wanted != base


GENERATION = {
    "sampling": {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
    "a penalty for repetition": {"repetition_penalty": 1.3},
    "a penalty within the prompt": {"encoder_repetition_penalty": 1.3},
    "no repeated words": {"no_repeat_ngram_size": 2},
    "beams": {"num_beams": 3},
    "several replies": {"num_beams": 2, "num_return_sequences": 2},
    "a dictionary": {"return_dict_in_generate": True, "output_scores": True},
    "stop strings": {"stop_strings": ["the"]},
    "a shortest reply": {"min_new_tokens": ROOM, "min_length": 99},
    "a longest text": {"max_length": 3, "max_time": 1e-9},
    "tokens never written": {"suppress_tokens": [2], "begin_suppress_tokens": [5]},
    "words never written": {"bad_words_ids": [[2], [9]]},
    "forced tokens": {"forced_bos_token_id": 7, "forced_eos_token_id": 9},
    "likelier tokens": {"sequence_bias": [[[11], 9.0]]},
    "a static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "guidance": {"guidance_scale": 2.0},
    "guesses by the prompt": {"prompt_lookup_num_tokens": 3},
    "penalized length": {"exponential_decay_length_penalty": (1, 9.0)},
}


@pytest.mark.parametrize("given", GENERATION.values(), ids=GENERATION)
def test_the_models_generation_settings_are_ignored(given, model, encoder, tokenizer, prompts):
    wanted = [loop(model, tokenizer, prompt, {2}) for prompt in prompts]
    model.generation_config = GenerationConfig(eos_token_id=2)
    for name, value in given.items():
        setattr(model.generation_config, name, value)
    before = model.generation_config.to_dict()
    assert texts(model, encoder, prompts) == wanted
    assert model.generation_config.to_dict() == before


# ---- the end of a turn -------------------------------------------------------

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + END + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def scripted(model, monkeypatch, prompt, script):
    """Make `model` write the script's tokens after the prompt, again and again."""
    forward = model.forward

    def write(input_ids, position_ids=None, **options):
        output = forward(input_ids=input_ids, position_ids=position_ids, **options)
        last = input_ids.shape[1] - 1 if position_ids is None else int(position_ids[0, -1])
        output.logits[:, -1] = 0
        output.logits[:, -1, script[(last + 1 - len(prompt)) % len(script)]] = 9
        return output

    monkeypatch.setattr(model, "forward", write)


@pytest.mark.parametrize(
    ("end", "eos"),
    [("<|im_end|>", "<|pad|>"), ("<|im_end|>", "<|im_end|>"), ("<|im_start|>", "<|pad|>")],
)
def test_a_reply_ends_where_the_template_ends_a_turn(end, eos, model, tokenizer, monkeypatch):
    tokenizer.chat_template = CHATML.replace("END", f"'{end}'")
    tokenizer.eos_token = eos  # like base models that are tuned on chats
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    encoder = ChatEncoder(tokenizer, max_tokens=256)
    prompt = encoder.encode_prompt([{"role": "user", "content": "?"}])
    script = tokenizer(f"It is 12.{end}\nuser\nNo, it is 13.", add_special_tokens=False)
    scripted(model, monkeypatch, prompt, script["input_ids"])
    (reply,) = replies(model, encoder, [prompt], room=40)
    assert (reply.text, reply.cut) == ("It is 12.", False)


def test_a_turn_that_ends_in_plain_text_ends_the_reply(model, tokenizer, monkeypatch):
    tokenizer.chat_template = CHATML.replace("END", "'(end of turn)'")
    encoder = ChatEncoder(tokenizer, max_tokens=256)
    prompt = encoder.encode_prompt([{"role": "user", "content": "?"}])
    script = tokenizer("It is 12(end of turn)\nuser\nNo.", add_special_tokens=False)
    scripted(model, monkeypatch, prompt, script["input_ids"])
    (reply,) = replies(model, encoder, [prompt], room=40)
    assert (reply.text, reply.cut) == ("It is 12", False)


def test_a_reply_ends_with_the_learned_positions(encoder, tokenizer, prompts):
    longest = max(map(len, prompts))
    config = GPT2Config(vocab_size=6144, n_embd=16, n_layer=1, n_head=4, n_positions=longest + 3)
    model = random_model(config)
    rooms = [min(ROOM, longest + 3 - len(prompt)) for prompt in prompts]
    wanted = [loop(model, tokenizer, p, {2}, room) for p, room in zip(prompts, rooms, strict=True)]
    assert min(rooms) == 3
    assert texts(model, encoder, prompts) == wanted
    assert replies(model, encoder, [prompts[2] * 2])[0].cut
