"""Models whose numbers for a row are not the row's own are refused before anything is paid for."""

import copy

import pytest
import torch
from architectures import HEADS, LLAMA, SMALL, VOCABULARY, adapter, causal_lm, examples
from test_gradients import assert_as_by_autograd, computer
from tiny_configs import tiny_config
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    LlamaModel,
    MixtralConfig,
    Phi3Config,
    T5Config,
    T5ForConditionalGeneration,
)

from g2is_ray.chat.encoder import ChatEncoder
from g2is_ray.config import LoraSettings, ModelSettings
from g2is_ray.errors import InputError, SettingError
from g2is_ray.features.dry_run import check_gradients
from g2is_ray.features.embeddings import EmbeddingComputer
from g2is_ray.models.batches import Batch
from g2is_ray.models.limits import Limits, limits_of
from g2is_ray.models.loading import add_adapter, load_base, load_tokenizer, lora_parameters
from g2is_ray.models.lora_targets import attention_projections
from g2is_ray.models.loss import SupervisedLoss
from g2is_ray.models.probe import check_base

CPU = torch.device("cpu")
ROTARY = {
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.2],
        "long_factor": [1.0, 8.0],
        "original_max_position_embeddings": 12,
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
}


def tiny(kind, **settings):
    """A random model of the architecture, with weights so large that attention matters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    return model


def adapted(model, *targets, **lora):
    lora = {"lora_r": 2, "lora_alpha": 4, "lora_targets": targets or ("auto",)} | lora
    model = add_adapter(model, LoraSettings(**lora), seed=0).eval()
    for parameter in lora_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bert", r"not causal.* \(is_decoder is false"),
        ("xlnet", "not causal|not the negative log-likelihood"),
        ("gemma3_text (bidirectional)", r"not causal.* \(use_bidirectional_attention"),
        ("bart", "not the negative log-likelihood of the next token"),
        ("prophetnet", "does not form its logits|not the negative log-likelihood"),
    ],
)
def test_a_model_that_is_not_trained_to_predict_from_what_came_before_is_refused(kind, reason):
    with pytest.raises(InputError, match=reason) as refusal:
        check_base(tiny(kind), "folder")
    assert str(refusal.value).startswith("model folder (")
    with pytest.raises(InputError, match=reason):
        EmbeddingComputer(tiny(kind), pad_id=0, token_budget=100)


def test_a_model_whose_rows_depend_on_their_batch_is_refused():
    model = causal_lm()
    norm = model.model.norm
    before = norm.forward
    norm.forward = lambda hidden: before(hidden) + hidden.mean(dim=(0, 1))[None, None] * len(hidden)
    with pytest.raises(InputError, match=r"not causal|other rows of its batch"):
        check_base(model)


@pytest.mark.parametrize("kind", ["bert (is_decoder)", "opt", "llama4", "gemma3_text"])
def test_a_causal_model_passes_and_is_left_as_it_was(kind):
    model = tiny(kind)
    ids = torch.tensor([[5, 6, 7, 8]])
    wanted = model(input_ids=ids).logits
    check_base(model)
    check_gradients(model, LoraSettings(lora_targets=("all-linear",), lora_dropout=0.0))
    assert torch.equal(model(input_ids=ids).logits, wanted)
    assert not any("lora" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("kind", ["opt", "llama4", "deepseek_v3", "gpt2", "falcon"])
def test_gradients_and_losses_are_autograds_where_the_head_asks_another_decoder(kind):
    assert_as_by_autograd(adapted(tiny(kind)), examples(4))


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_gradients_of_experts_are_autograds(kind):
    model = adapted(tiny(kind), "all-linear", lora_dropout=0.0)
    assert any("experts" in name for name in lora_parameters(model))
    assert_as_by_autograd(model, examples(3))


@pytest.mark.parametrize("scaling", ROTARY)
def test_rows_on_both_sides_of_a_rotary_scaling_do_not_share_a_batch(scaling):
    def model():
        torch.manual_seed(0)
        lengths = {"max_position_embeddings": 12}
        if scaling == "longrope":
            lengths = {"max_position_embeddings": 48, "original_max_position_embeddings": 12}
        make = Phi3Config if scaling == "longrope" else LlamaConfig
        config = make(**SMALL, **HEADS, **lengths, pad_token_id=0, rope_parameters=ROTARY[scaling])
        return AutoModelForCausalLM.from_config(config).eval()

    rows = examples()  # of 5 to 23 tokens
    assert_as_by_autograd(adapted(model(), "all-linear"), rows, token_budget=10_000)
    together = EmbeddingComputer(model(), pad_id=0, token_budget=10_000).compute(rows)
    for one, found in zip(rows, together, strict=True):
        wanted = EmbeddingComputer(model(), pad_id=0, token_budget=1).compute([one])[0]
        torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("gpt2", {"c_attn", "attn.c_proj"}),
        ("gpt_neox", {"query_key_value", "dense"}),
        ("falcon", {"query_key_value", "dense"}),
        ("mpt", {"Wqkv", "out_proj"}),
        ("opt", {"q_proj", "k_proj", "v_proj", "out_proj"}),
        ("mamba", {"in_proj", "x_proj"}),
    ],
)
def test_auto_names_the_attention_of_the_architecture_and_nothing_else(kind, wanted):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(kind))
    assert set(attention_projections(model)) == wanted


def test_a_multimodal_models_towers_get_no_adapter():
    for targets in (("auto",), ("q_proj",), ("all-linear",)):
        model = adapted(tiny("gemma3"), *targets)
        names = lora_parameters(model)
        assert names and all(".language_model." in name for name in names)
    assert_as_by_autograd(model, examples(3))


def test_a_misfit_names_conv1d_modules_too():
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=4)
    with pytest.raises(SettingError, match=r"modules are c_attn, c_fc, c_proj \(it has no q_proj"):
        add_adapter(
            AutoModelForCausalLM.from_config(config), LoraSettings(lora_targets=("q_proj",)), 0
        )


def test_dropout_on_fused_experts_is_refused_with_the_remedy():
    config = MixtralConfig(**SMALL, **HEADS, num_local_experts=2)
    with pytest.raises(SettingError, match=r"fused .*set --lora-dropout 0, or .*k_proj") as refusal:
        add_adapter(
            AutoModelForCausalLM.from_config(config), LoraSettings(lora_targets=("all-linear",)), 0
        )
    assert "base_layer" not in str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "positions"),
    [("gpt2", 128), ("opt", 128), ("gptj", 128), ("mpt", 128), ("llama", None), ("bloom", None)],
)
def test_positions_in_a_table_are_a_limit(kind, positions):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(kind))
    limits = limits_of(model)
    assert limits == Limits(vocabulary=97, positions=positions)
    limits.check(128, "folder")
    if positions:
        with pytest.raises(SettingError, match=r"max_tokens 129 .* 128 .* --max-tokens 128 or"):
            limits.check(129, "folder")


def saved(tmp_path, model, tokenizer=None):
    model.save_pretrained(tmp_path)
    if tokenizer is not None:
        tokenizer.save_pretrained(tmp_path)
    return ModelSettings(model=str(tmp_path))


def test_a_token_beyond_the_embedding_is_refused_and_such_a_padding_token_replaced(
    tiny_model, tmp_path
):
    tokenizer = copy.deepcopy(load_tokenizer(ModelSettings(model=tiny_model)))
    size = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    config = LlamaConfig(**{**SMALL, "vocab_size": size}, **HEADS)
    settings = saved(tmp_path, AutoModelForCausalLM.from_config(config), tokenizer)
    found = load_tokenizer(settings)
    assert found.pad_token_id < size
    encoder = ChatEncoder(found, max_tokens=64, vocabulary=size)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    encoder.encode(turns)
    turns[0]["content"] = "[PAD]"
    with pytest.raises(InputError, match=rf"'\[PAD\]' has id {size}, .* {size} rows"):
        encoder.encode(turns)


def test_an_encoder_decoder_is_refused_for_what_it_is(tmp_path):
    config = T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=4, d_ff=24, num_layers=1, num_heads=4)
    settings = saved(tmp_path, T5ForConditionalGeneration(config))
    with pytest.raises(InputError, match=r"\(T5ForConditionalGeneration\) is an encoder-decoder"):
        load_base(settings, CPU)


def test_a_checkpoint_without_its_head_is_refused(tmp_path):
    settings = saved(tmp_path, LlamaModel(LlamaConfig(**SMALL, **HEADS)))
    with pytest.raises(InputError, match=r"lacks 1 weights .* lm_head\.weight"):
        load_base(settings, CPU)


def test_outputs_are_named_whatever_the_config_says(tmp_path):
    config = LlamaConfig(**SMALL, **HEADS, output_hidden_states=True)
    model = AutoModelForCausalLM.from_config(config)
    model.config.return_dict = False
    loaded = load_base(saved(tmp_path, model), CPU)
    batch = Batch.of(examples(2), 0, CPU)
    assert SupervisedLoss(loaded).sums(batch).isfinite().all()


def test_the_decoder_of_opt_is_the_one_that_its_head_asks():
    model, row = tiny("opt"), examples(1)[0]
    ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
    batch = Batch.of([row], 0, CPU)
    with torch.no_grad():
        own = model(input_ids=ids, labels=labels).loss
        found = SupervisedLoss(model).sums(batch) / batch.counts_b
    torch.testing.assert_close(found[0], own)


def test_a_dry_run_refuses_what_gradients_refuse():
    model = causal_lm()
    model.model.spare = torch.nn.Linear(16, 16)
    with pytest.raises(SettingError, match=r"never calls .*spare"):
        check_gradients(model, LoraSettings(lora_targets=("q_proj", "spare")))
    with pytest.raises(SettingError, match="lora_layers last:3 does not fit"):
        check_gradients(causal_lm(), LoraSettings(), "last:3")


def test_a_model_is_probed_once():
    model = adapter(LLAMA)
    computer(model)
    calls = []
    model.get_base_model().model.register_forward_hook(lambda *_: calls.append(1))
    check_base(model.get_base_model())
    assert not calls
