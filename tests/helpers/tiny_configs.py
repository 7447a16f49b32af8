"""Configs of tiny models, one for each architecture that transformers knows."""

from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 97

_SIZES = {  # under every name that an architecture may have for them
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size"), 32),
    **dict.fromkeys(("attention_hidden_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("ffn_hidden_size", "intermediate_size", "ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "n_inner", "d_ff", "dff"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 3),
    **dict.fromkeys(("decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 128),
    **dict.fromkeys(("context_length", "max_target_positions"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace", "mamba_n_groups"), 1),
    **dict.fromkeys(("state_size", "mamba_d_state", "mamba_n_heads", "mamba_d_head"), 8),
    **dict.fromkeys(("mamba_chunk_size", "kv_lora_rank", "v_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("rotary_dim", "sliding_window", "qk_rope_head_dim", "mamba_d_conv"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    "shared_intermediate_size": 24,
    "q_lora_rank": 12,
    "mamba_expand": 2,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "use_mamba_kernels": False,
    "dropout": 0.0,
}
_LATENT = {"head_dim": 4, "num_key_value_heads": 4}  # multi-head latent attention
_INDEXED = {**_LATENT, "index_head_dim": 8, "index_n_heads": 2, "index_topk": 64}
_HYBRID = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_IMAGE = {"image_token_id": 90, "image_token_index": 90, "video_token_id": 91}

_REMOVED = ...
_SPECIFIC: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "longcat_flash", "minicpm3"),
        _LATENT,
    ),
    "youtu": _LATENT,
    **dict.fromkeys(("axk2", "deepseek_v32", "glm_moe_dsa"), _INDEXED),
    "aria": {"text_config": {**_TEXT, "moe_num_experts": 4}, "vision_config": _VISION, **_IMAGE},
    "aya_vision": {
        "text_config": {**_TEXT, "model_type": "cohere2", **_SLIDING},
        "vision_config": {**_VISION, "model_type": "siglip_vision_model"},
        **_IMAGE,
    },
    "bamba": {"attn_layer_indices": [1]},
    "bert (is_decoder)": {"is_decoder": True},
    "dbrx": {
        **dict.fromkeys(("rotary_dim", "dropout", "num_layers", "ffn_hidden_size"), _REMOVED),
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {
            "ffn_hidden_size": 48,
            "moe_num_experts": 4,
            "moe_top_k": 2,
            "hidden_size": 32,
        },
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "electra (is_decoder)": {"is_decoder": True},
    "emu3": {
        "text_config": _TEXT,
        "vq_config": {
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "embed_dim": 4,
            "codebook_size": 8,
            "num_res_blocks": 1,
            "attn_resolutions": [1],
        },
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "fuyu": {"text_config": {**_TEXT, "model_type": "persimmon"}},
    "gemma3": {
        "text_config": {**_TEXT, **_SLIDING},
        "vision_config": _VISION,
        "mm_tokens_per_image": 4,
        "image_token_index": 90,
        "boi_token_index": 91,
        "eoi_token_index": 92,
    },
    "gemma3 (bidirectional)": {
        "text_config": {**_TEXT, **_SLIDING, "use_bidirectional_attention": True},
        "vision_config": _VISION,
        "mm_tokens_per_image": 4,
        "image_token_index": 90,
        "boi_token_index": 91,
        "eoi_token_index": 92,
    },
    "gemma3_text (bidirectional)": {"use_bidirectional_attention": True},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": _SLIDING["layer_types"] * 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "intermediate_size": 48,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4": {
        "text_config": {
            **_TEXT,
            **_SLIDING,
            "hidden_size_per_layer_input": 0,
            "global_head_dim": 8,
        },
        "vision_config": _VISION,
        "image_token_id": 90,
        "video_token_id": 91,
        "audio_token_id": 92,
        "boi_token_id": 93,
        "eoi_token_id": 94,
    },
    "gemma4_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": _SLIDING["layer_types"] * 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "global_head_dim": 8,
    },
    "glm4v": {
        "text_config": {**_TEXT, "rope_parameters": _MROPE},
        "vision_config": {**_QWEN_VISION, "out_hidden_size": 32, "image_size": 28},
        **_IMAGE,
    },
    "gpt_neo": {
        "num_hidden_layers": _REMOVED,
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 4,
    },
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"]},
    "idefics3": {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": _VISION,
        "image_token_id": 90,
    },
    "internvl": {
        "text_config": {**_TEXT, "model_type": "qwen2"},
        "vision_config": {**_VISION, "image_size": [28, 28], "patch_size": [14, 14]},
        **_IMAGE,
    },
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "llama4": {
        "text_config": {**_TEXT, "num_local_experts": 2, "intermediate_size_mlp": 48},
        "vision_config": _VISION,
    },
    "llava": {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": {**_VISION, "model_type": "clip_vision_model"},
        "vision_feature_layer": -1,
        "image_token_index": 90,
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "chunk_size": 8},
    "mistral3": {
        "text_config": {**_TEXT, "model_type": "mistral"},
        "vision_config": {**_VISION, "model_type": "pixtral", "head_dim": 8},
        "image_token_index": 90,
    },
    "mllama": {
        "text_config": {
            **_TEXT,
            "cross_attention_layers": [1],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "vision_output_dim": 32,
            "intermediate_layers_indices": [0],
        },
    },
    "paligemma": {
        "text_config": {**_TEXT, "model_type": "gemma"},
        "vision_config": {**_VISION, "model_type": "siglip_vision_model"},
        "image_token_index": 90,
    },
    "qwen2_vl": {
        "text_config": {**_TEXT, "rope_parameters": _MROPE},
        "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2},
        **_IMAGE,
        "vision_start_token_id": 92,
        "vision_end_token_id": 93,
    },
    "qwen2_5_vl": {
        "text_config": {**_TEXT, "rope_parameters": _MROPE},
        "vision_config": {**_QWEN_VISION, "out_hidden_size": 32, "fullatt_block_indexes": [0]},
        **_IMAGE,
        "vision_start_token_id": 92,
        "vision_end_token_id": 93,
    },
    "qwen3_vl": {
        "text_config": {**_TEXT, "rope_parameters": _MROPE},
        "vision_config": {
            **_QWEN_VISION,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
        **_IMAGE,
        "vision_start_token_id": 92,
        "vision_end_token_id": 93,
    },
    "qwen3_5": {
        "text_config": {
            **_TEXT,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        "vision_config": {**_QWEN_VISION, "out_hidden_size": 32},
        **_IMAGE,
    },
    "qwen3_5_text": _HYBRID,
    "qwen3_next": _HYBRID,
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "local"],
        "local_attn_chunk_length": 4,
        "axial_pos_embds": False,
        "hash_seed": 0,
        "attention_head_size": 8,
        "feed_forward_size": 48,
    },
    "roberta (is_decoder)": {"is_decoder": True, "pad_token_id": 1, "bos_token_id": 0},
    "smolvlm": {
        "text_config": {**_TEXT, "model_type": "llama"},
        "vision_config": _VISION,
        "image_token_id": 90,
    },
    "xlm (causal)": {"causal": True},
    "zamba2": {
        **dict.fromkeys(("attention_hidden_size", "head_dim"), _REMOVED),
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "use_mem_rope": True,
        "attention_head_dim": 16,
        "mamba_ngroups": 1,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "chunk_size": 8,
    },
    "zaya": {"num_experts_per_tok": 1},
}
VARIANTS = tuple(kind for kind in _SPECIFIC if "(" in kind)
"""Architectures with a setting that decides whether they are causal."""


def tiny_config(kind: str, **settings: Any) -> PreTrainedConfig:
    """A config of the model type `kind`, which may be followed by a variant in parentheses."""
    make = CONFIG_MAPPING[kind.partition(" (")[0]]
    try:
        known = {*make().to_dict(), *(getattr(make, "attribute_map", None) or {})}
    except Exception:  # some have fields without a default
        known = set(_SIZES)
    values = {name: value for name, value in _SIZES.items() if name in known}
    values |= _SPECIFIC.get(kind, {}) | settings
    return make(**{name: value for name, value in values.items() if value is not _REMOVED})
