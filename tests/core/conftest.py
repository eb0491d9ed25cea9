"""Tiny random causal models of every architecture whose head the package resolves."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

V = 61
SIZES = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GATED = {
    **SIZES,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ARCHITECTURES = {
    "llama": ("LlamaConfig", GATED),
    "qwen3": ("Qwen3Config", {**GATED, "head_dim": 8}),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": V,
            "n_embd": 32,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", {**SIZES, "intermediate_size": 48, "bos_token_id": 1, "eos_token_id": 2}),
    "opt": ("OPTConfig", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "opt-projected": ("OPTConfig", {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 16}),
    "gemma2": ("Gemma2Config", {**GATED, "head_dim": 8, "final_logit_softcapping": 5.0, "sliding_window": 32}),
    "cohere": ("CohereConfig", {**GATED, "logit_scale": 0.25}),
    "granite": (
        "GraniteConfig",
        {**GATED, "logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    ),
}


@pytest.fixture(scope="session", params=list(ARCHITECTURES))
def tiny(request):
    """A random model in eval mode; norms and biases are random too, so that leaving one out changes the logits."""
    kind, sizes = ARCHITECTURES[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(getattr(transformers, kind)(**sizes)).float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def ids():
    """Two rows of token ids that hold both ends of the vocabulary."""
    rows = torch.randint(0, V, (2, 12), generator=torch.Generator().manual_seed(1))
    rows[:, 3], rows[:, 7] = 0, V - 1
    return rows
