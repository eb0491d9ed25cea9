"""LLaDA and Dream are read by their tensors: the same logits as a network written out from their papers' equations."""

import json

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import rms_norm, silu, softmax
from transformers import PreTrainedTokenizerFast

from shiftscope.core.checkpoints import load, open_model
from shiftscope.core.denoising import masked_model

D, HEADS, LAYERS, F, V, THETA = 32, 4, 2, 48, 40, 10000.0
MASK, END = 3, 2
LLADA = {
    "model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": D, "n_heads": HEADS, "n_kv_heads": HEADS,
    "n_layers": LAYERS, "mlp_hidden_size": F, "rms_norm_eps": 1e-5, "rope_theta": THETA, "vocab_size": V,
    "embedding_size": V, "max_sequence_length": 64, "mask_token_id": MASK, "eos_token_id": END, "pad_token_id": 0,
    "block_type": "llama", "activation_type": "silu", "layer_norm_type": "rms", "rope": True, "include_bias": False,
    "include_qkv_bias": False, "weight_tying": False,
}  # fmt: skip
DREAM = {
    "model_type": "Dream", "architectures": ["DreamModel"], "hidden_size": D, "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS, "num_hidden_layers": LAYERS, "intermediate_size": F, "rms_norm_eps": 1e-5,
    "rope_theta": THETA, "vocab_size": V, "max_position_embeddings": 64, "mask_token_id": MASK, "eos_token_id": END,
    "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip


def tensors(family):
    """Random weights under the names that the family's published checkpoints use."""
    generator = torch.Generator().manual_seed(0)

    def matrix(*shape):
        return torch.randn(*shape, generator=generator) * 0.3

    found = {}
    for layer in range(LAYERS):
        names = (
            dict(zip("qkvogud12", ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out", "attn_norm",
                                   "ff_norm"), strict=True))
            if family == "llada"
            else dict(zip("qkvogud12", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm",
                                        "post_attention_layernorm"), strict=True))
        )  # fmt: skip
        prefix = f"model.transformer.blocks.{layer}." if family == "llada" else f"model.layers.{layer}."
        for key, name in names.items():
            shape = {"g": (F, D), "u": (F, D), "d": (D, F)}.get(key, (D,) if key in "12" else (D, D))
            found[f"{prefix}{name}.weight"] = matrix(*shape)
        if family == "Dream":
            for key in "qkv":
                found[f"{prefix}{names[key]}.bias"] = matrix(D)
    ends = (
        ("model.transformer.wte", "model.transformer.ln_f", "model.transformer.ff_out")
        if family == "llada"
        else ("model.embed_tokens", "model.norm", "lm_head")
    )
    for name, shape in zip(ends, ((V, D), (D,), (V, D)), strict=True):
        found[f"{name}.weight"] = matrix(*shape)
    return found, ends


def written_out(family, weights, ends, ids):
    """Pre-norm blocks, rotary attention over the whole text both ways, a gated feed-forward: [T, V] logits."""
    names = ["q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out", "attn_norm", "ff_norm"]
    if family == "Dream":
        attention, mlp = ["q_proj", "k_proj", "v_proj", "o_proj"], ["gate_proj", "up_proj", "down_proj"]
        names = [f"self_attn.{n}" for n in attention] + [f"mlp.{n}" for n in mlp]
        names += ["input_layernorm", "post_attention_layernorm"]
    T, width = len(ids), D // HEADS
    angle_TW = torch.arange(T)[:, None] * THETA ** (-torch.arange(0, width, 2) / width)
    cos_TW, sin_TW = angle_TW.cos().repeat(1, 2), angle_TW.sin().repeat(1, 2)

    def turned(x_HTW):
        left, right = x_HTW.chunk(2, -1)
        return x_HTW * cos_TW + torch.cat([-right, left], -1) * sin_TW

    x = weights[f"{ends[0]}.weight"][ids]
    for layer in range(LAYERS):
        prefix = f"model.transformer.blocks.{layer}." if family == "llada" else f"model.layers.{layer}."
        q, k, v, o, gate, up, down, norm1, norm2 = (weights[f"{prefix}{name}.weight"] for name in names)
        bias = [weights.get(f"{prefix}{name}.bias", torch.zeros(D)) for name in names[:3]]
        y = rms_norm(x, (D,), norm1, 1e-5)
        heads = [(y @ w.T + b).view(T, HEADS, width).transpose(0, 1) for w, b in zip((q, k, v), bias, strict=True)]
        weight = softmax(turned(heads[0]) @ turned(heads[1]).transpose(1, 2) / width**0.5, -1)
        x = x + (weight @ heads[2]).transpose(0, 1).reshape(T, D) @ o.T
        y = rms_norm(x, (D,), norm2, 1e-5)
        x = x + (silu(y @ gate.T) * (y @ up.T)) @ down.T
    return rms_norm(x, (D,), weights[f"{ends[1]}.weight"], 1e-5) @ weights[f"{ends[2]}.weight"].T


def tokenizer(folder, **special):
    vocabulary = {f"w{i}": i for i in range(V)}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="w1"))
    PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained(folder)


@pytest.fixture(params=["llada", "Dream"])
def family(request, tmp_path):
    config = LLADA if request.param == "llada" else DREAM
    weights, ends = tensors(request.param)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tokenizer(tmp_path, eos_token="w2")
    return request.param, tmp_path, weights, ends


def test_the_logits_are_those_of_the_network_written_out(family):
    name, folder, weights, ends = family
    model = masked_model.load(str(folder))
    ids = [5, 9, MASK, 7, MASK, 11]
    expected = written_out(name, weights, ends, ids)
    rows = [2, 4] if name == "llada" else [1, 3]  # Dream predicts a token by the output one place to its left
    found = model.logits([ids], [[2, 4]])[0]
    seen = [token for token in range(V) if token != MASK]
    torch.testing.assert_close(found[:, seen], expected[rows][:, seen], rtol=1e-4, atol=1e-4)  # float32 over 2 layers
    assert bool((found[:, MASK] == -torch.inf).all())


def test_mask_and_end_come_from_the_configuration_and_the_tokenizer(family):
    name, folder, _, _ = family
    model = masked_model.load(str(folder))
    assert (model.mask_id, model.end_ids, model.shift) == (MASK, (END,), int(name == "Dream"))
    assert masked_model.load(str(folder), mask_token="w7", end_token="w8").end_ids == (8,)
    with pytest.raises(ValueError, match="is no token of"):
        masked_model.load(str(folder), end_token="<nothing>")


def published_dream(folder, mask_id):
    """A Dream checkpoint as it is published: Qwen2's files, and a tokenizer class that comes as code."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = {"<|endoftext|>": 256, "<|im_end|>": 257, "<|mask|>": 258}
    (folder / "vocab.json").write_text(json.dumps({byte: i for i, byte in enumerate(alphabet)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    own = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
    }
    own |= {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "mask_token": "<|mask|>"}
    own["added_tokens_decoder"] = {str(i): {"content": token, "special": True} for token, i in special.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    (folder / "tokenization_dream.py").write_text("raise RuntimeError('code of a checkpoint was run')")
    sizes = {"vocab_size": 264, "mask_token_id": mask_id, "eos_token_id": [256, 257], "pad_token_id": 256}
    (folder / "config.json").write_text(json.dumps({**DREAM, **sizes}))
    weights, ends = tensors("Dream")
    for name in (ends[0], ends[2]):
        weights[f"{name}.weight"] = torch.randn(264, D, generator=torch.Generator().manual_seed(1))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_dreams_tokenizer_is_read_without_its_code_and_all_ends_that_are_named_count(tmp_path):
    published_dream(tmp_path, mask_id=258)
    model = masked_model.load(str(tmp_path))
    ids = model.tokenizer("a b<|mask|>")["input_ids"]
    assert (len(ids), ids[-1], model.tokenizer.decode(ids)) == (4, 258, "a b<|mask|>")
    assert (model.mask_id, model.end_ids, model.shift) == (258, (256, 257), 1)


def test_two_different_mask_tokens_are_named(tmp_path):
    published_dream(tmp_path, mask_id=259)
    with pytest.raises(ValueError, match=r"two mask tokens, 258 in its tokenizer and 259 in its configuration"):
        masked_model.load(str(tmp_path))
    assert masked_model.load(str(tmp_path), mask_token="<|mask|>").mask_id == 258


def test_a_masked_checkpoint_is_refused_where_a_causal_one_is_needed(family):
    with pytest.raises(ValueError, match=r"it is a masked language model.*use `generate masked`"):
        load(str(family[1]))


def test_a_causal_checkpoint_is_refused_where_a_masked_one_is_needed():
    with pytest.raises(ValueError, match=r"it is a causal language model \(Qwen3ForCausalLM\): use `generate bytes`"):
        masked_model.load("sums-base")
    with pytest.raises(ValueError, match="cannot be loaded as an any-order language model"):
        open_model("sums-base", "any-order")


def test_a_llada_variant_that_is_no_plain_llama_network_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**LLADA, "layer_norm_type": "low_precision"}))
    save_file(tensors("llada")[0], tmp_path / "model.safetensors", metadata={"format": "pt"})
    tokenizer(tmp_path)
    with pytest.raises(ValueError, match="layer_norm_type = 'low_precision'"):
        masked_model.load(str(tmp_path))


def test_a_checkpoint_without_a_mask_token_says_how_to_name_one(tmp_path):
    config = {key: value for key, value in LLADA.items() if key != "mask_token_id"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors("llada")[0], tmp_path / "model.safetensors", metadata={"format": "pt"})
    tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"names no mask token.*--mask-token"):
        masked_model.load(str(tmp_path))
    assert masked_model.load(str(tmp_path), mask_token="w3").mask_id == 3
