"""Read the weights of any masked language model: BERT-like ones by their own class, LLaDA and Dream by their tensors.

LLaDA and Dream are Llama and Qwen2 networks whose attention looks both ways. Their tensors are read into those classes,
so no code that comes with a checkpoint is run, and one attention back end (core/denoising/bidirectional.py) serves every
family. Dream's tokenizer is Qwen2's under a name of its own, and is read as that.

Source: arXiv 2502.09992 (LLaDA), arXiv 2508.15487 (Dream).
"""

from __future__ import annotations

from typing import Any

_LLADA_FIELDS = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "intermediate_size": "mlp_hidden_size",
    "max_position_embeddings": "max_sequence_length",
    "rms_norm_eps": "rms_norm_eps",
    "vocab_size": "embedding_size",
    "tie_word_embeddings": "weight_tying",
    "attention_bias": "include_qkv_bias",
    "mlp_bias": "include_bias",
    "mask_token_id": "mask_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
_LLADA_NEEDS = {
    "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "rope": True, "include_bias": False,
    "include_qkv_bias": False, "attention_layer_norm": False, "alibi": False, "input_emb_norm": False,
    "scale_logits": False,
}  # fmt: skip
_LLADA_TENSORS = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
    **{
        rf"^model\.transformer\.blocks\.(\d+)\.{which}_proj\.": rf"model.layers.\1.self_attn.{which}_proj."
        for which in "qkv"
    },
    r"^model\.transformer\.blocks\.(\d+)\.attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.up_proj\.": r"model.layers.\1.mlp.up_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_out\.": r"model.layers.\1.mlp.down_proj.",
}
_BOTH_WAYS: dict[str, dict[str, Any]] = {
    "llada": {"is_causal": False, "architectures": ["LLaDAModelLM"]},
    "Dream": {"is_causal": False, "architectures": ["DreamModel"]},
}
NATIVE = tuple(_BOTH_WAYS)  # model types that no class of transformers reads


def read(path: str, config: dict[str, Any], **options: Any) -> tuple[Any, dict[str, Any]]:
    """The network of a masked language model, and what `output_loading_info` tells of its weights.

    config: the checkpoint's configuration as it is written. options: of `from_pretrained`.
    Raises ValueError for a LLaDA variant that is not a plain Llama network; whatever transformers raises for others.
    """
    from transformers import AutoModelForMaskedLM, LlamaForCausalLM, Qwen2ForCausalLM

    network: Any = AutoModelForMaskedLM
    if config.get("model_type") == "llada":
        network, options = LlamaForCausalLM, options | {"config": _llada(config), "key_mapping": _LLADA_TENSORS}
    elif config.get("model_type") == "Dream":
        network, options = Qwen2ForCausalLM, options | {"config": _dream(config)}
    model, told = network.from_pretrained(path, output_loading_info=True, **options)
    return model, told


def read_tokenizer(path: str, config: dict[str, Any], revision: str | None = None) -> Any:
    """The tokenizer of a checkpoint. Dream names a class that comes as code; its files are those of Qwen2's."""
    from transformers import AutoTokenizer, Qwen2Tokenizer
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    kind: Any = AutoTokenizer
    if config.get("model_type") == "Dream":
        named = get_tokenizer_config(path, revision=revision).get("tokenizer_class")
        kind = Qwen2Tokenizer if named == "DreamTokenizer" else kind
    return kind.from_pretrained(path, revision=revision)


def is_native(config: Any) -> bool:
    """Whether a loaded model's configuration is one that was read by its tensors (LLaDA, Dream)."""
    return getattr(config, "is_causal", None) is False


def shift_of(config: dict[str, Any]) -> int:
    """How far to the left of a token stands the output that predicts it: 1 for Dream, which was a causal model."""
    return int(config.get("model_type") == "Dream" or config.get("architectures") == ["DreamModel"])


def _llada(config: dict[str, Any]) -> Any:
    from transformers import LlamaConfig

    for name, needed in _LLADA_NEEDS.items():
        if config.get(name, needed) not in (needed, None):
            raise ValueError(f"its configuration has {name} = {config[name]!r}, and LLaDA is read with {needed!r} only")
    fields: dict[str, Any] = {
        ours: config[theirs] for ours, theirs in _LLADA_FIELDS.items() if config.get(theirs) is not None
    }
    fields["vocab_size"] = config.get("embedding_size") or config["vocab_size"]
    rope = {"rope_type": "default", "rope_theta": float(config.get("rope_theta", 10000.0))}
    return LlamaConfig.from_dict({**fields, "hidden_act": "silu", "rope_parameters": rope, **_BOTH_WAYS["llada"]})


def _dream(config: dict[str, Any]) -> Any:
    from transformers import Qwen2Config

    dropped = ("model_type", "auto_map", "architectures", "transformers_version", "dtype", "torch_dtype")
    fields = {name: value for name, value in config.items() if name not in dropped}
    return Qwen2Config.from_dict({**fields, **_BOTH_WAYS["Dream"]})
