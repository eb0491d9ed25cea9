"""Real tokenizers that load offline: Mistral's tekken and SentencePiece models, CLIP's words; bytes, validity and laws of them."""

import base64
import gzip
import importlib.util
import itertools
import json
import pydoc_data.topics
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from shiftscope.core import checkpoints
from shiftscope.core.bytes import byte_law, canonical, token_bytes, tokenizer_files
from shiftscope.core.bytes.byte_law import ByteLaw
from shiftscope.core.tokenizers import segmentation

DATA = Path(importlib.util.find_spec("mistral_common").submodule_search_locations[0]) / "data"
TEKKEN = DATA / "tekken_240911.json"
SENTENCEPIECE = {
    "v1": DATA / "tokenizer.model.v1",
    "v3": DATA / "mistral_instruct_tokenizer_240323.model.v3",
    "v7": DATA / "mistral_instruct_tokenizer_241114.model.v7",
}
PROSE = [text[:400] for _, text in sorted(pydoc_data.topics.topics.items())]
STRANGE = [
    *("a" * count for count in range(1, 30)), *("-" * count for count in range(1, 40)), *(" " * count for count in range(1, 40)),
    *("\n" * count for count in range(1, 20)), "<s>[INST] hi [/INST]</s><SPECIAL_44>", "naïve café 中文字 — ", "\x00\x01\x7f\u200b",
    "😀🏽‍♂️ ไทย العربية हिन्दी", "", " ", "  a", "\n a",
]  # fmt: skip


def mixed(count, seed=0):
    """Random strings of letters, blanks, digits, signs and other scripts."""
    generator = random.Random(seed)
    letters = "aabbcde  \n\nAB12.,_'é中ßżק😀"
    return ["".join(generator.choice(letters) for _ in range(generator.randint(1, 40))) for _ in range(count)]


def ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def unstable_share(tokenizer, texts):
    """Share of token boundaries before which the text alone is encoded otherwise."""
    unstable = boundaries = 0
    for text in texts:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        for place in range(1, len(encoding.ids)):
            end = encoding.offsets[place - 1][1]
            if encoding.offsets[place][0] == end:
                boundaries += 1
                unstable += ids(tokenizer, text[:end]) != encoding.ids[:place]
    return unstable / boundaries


@pytest.fixture(scope="module")
def tekken():
    return tokenizer_files.read(TEKKEN)


@pytest.fixture(scope="module")
def small_tekken(tmp_path_factory):
    """A tekken.json with the first 700 pieces of the real one and 20 special tokens."""
    described = json.loads(TEKKEN.read_text())
    described["vocab"] = described["vocab"][:700]
    described["config"] |= {"default_vocab_size": 720, "default_num_special_tokens": 20}
    path = tmp_path_factory.mktemp("tekken") / "tekken.json"
    path.write_text(json.dumps(described))
    return path


@pytest.fixture(scope="module")
def mistral(small_tekken, tmp_path_factory):
    """A random Mistral checkpoint whose only tokenizer file is a tekken.json."""
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=720, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=128, sliding_window=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("mistral")
    transformers.MistralForCausalLM(config).save_pretrained(folder)
    (folder / "tekken.json").write_bytes(small_tekken.read_bytes())
    return folder


def test_a_tekken_file_encodes_as_its_own_library_does(tekken):
    from tiktoken import Encoding

    described = json.loads(TEKKEN.read_text())
    pieces = [base64.b64decode(entry["token_bytes"]) for entry in described["vocab"][: 131072 - 1000]]
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    own = Encoding("tekken", pat_str=described["config"]["pattern"], mergeable_ranks=ranks, special_tokens={})
    for text in [*PROSE[:150], *STRANGE, *mixed(2000)]:
        assert ids(tekken, text) == [1000 + rank for rank in own.encode_ordinary(text)], text


def test_a_tekken_file_gives_the_bytes_of_every_token(tekken):
    tokens = token_bytes.read(tekken)
    described = json.loads(TEKKEN.read_text())
    assert tokens.size == 131072
    assert tokens.lead == tokens.trail == b""
    assert tokens.byte_level
    assert tokens.spelled[:1000] == (None,) * 1000
    assert list(tokens.spelled[1000:]) == [base64.b64decode(t["token_bytes"]) for t in described["vocab"][:130072]]
    assert (
        tokens.normalised("naïve [INST] — 中\n") == "naïve [INST] — 中\n".encode()
    )  # names of special tokens are text


@pytest.mark.slow
def test_every_tekken_token_is_made_by_merges_and_only_encodings_are_allowed(tekken):
    tokens = token_bytes.read(tekken)
    rules = canonical.validity(tokens)
    assert rules.exact
    assert rules.mode == "merges"
    assert bool(
        (rules.merges.reachable_V == tokens.spelled_V).all()
    )  # taking whole pre-tokens as they are changes nothing
    generator = np.random.default_rng(0)
    for text in [*PROSE[:40], *mixed(40)]:
        path = ids(tekken, text)
        assert is_encoding(rules, path), text
        place = int(generator.integers(len(path)))
        spelled = tokens.spelled[path[place]]
        for at in range(1, len(spelled)):  # one token spelt as two smaller ones
            for pair in itertools.product(tokens.equal(spelled[:at]), tokens.equal(spelled[at:])):
                assert not is_encoding(rules, [*path[:place], *pair, *path[place + 1 :]]), (text, at)


def is_encoding(rules, path):
    """Whether the rules let this sequence of tokens be a whole encoding."""
    state = rules.start
    for token in path:
        state = rules.step(state, token)
        if state is None:
            return False
    return rules.closes(state)


@pytest.mark.parametrize("name", list(SENTENCEPIECE))
def test_a_sentencepiece_model_encodes_as_its_own_library_does(name):
    from sentencepiece import SentencePieceProcessor

    ours, own = tokenizer_files.read(SENTENCEPIECE[name]), SentencePieceProcessor(model_file=str(SENTENCEPIECE[name]))
    assert ours.get_vocab_size() == own.GetPieceSize()
    for text in [*PROSE[:150], *STRANGE, *mixed(2000)]:
        assert ids(ours, text) == own.encode(text), text
    tokens = token_bytes.read(ours)
    assert tokens.lead == b" "
    specials = [token for token in range(tokens.size) if own.IsControl(token) or own.IsUnknown(token)]
    assert [token for token, text in enumerate(tokens.spelled) if text is None] == specials
    byte = next(token for token in range(tokens.size) if own.IdToPiece(token) == "<0x0A>")
    assert tokens.spelled[byte] == b"\n"


def test_unigram_models_of_sentencepiece_are_read_too(tmp_path):
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    (tmp_path / "texts.txt").write_text("\n".join(" ".join(text.split()) for text in PROSE))
    for byte_fallback in (False, True):
        prefix = str(tmp_path / f"unigram{byte_fallback}")
        SentencePieceTrainer.Train(
            input=str(tmp_path / "texts.txt"), model_prefix=prefix, vocab_size=1000, model_type="unigram",
            byte_fallback=byte_fallback, minloglevel=2,
        )  # fmt: skip
        ours, own = tokenizer_files.read(f"{prefix}.model"), SentencePieceProcessor(model_file=f"{prefix}.model")
        texts = [*PROSE[:100], "  two  blanks ", "plain words of no surprise"]
        agreed = [ids(ours, text) == own.encode(text) for text in texts]
        assert np.mean(agreed) > 0.97  # equally likely segmentations may fall differently
        assert canonical.validity(token_bytes.read(ours)).exact


def test_prefixes_are_stable_but_for_rules_that_look_ahead(tekken):
    texts = PROSE[:70]
    docs = checkpoints.load("docs-base").tokenizer.backend_tokenizer
    assert 0.01 < unstable_share(docs, texts) < 0.02  # GPT-2's rule in prose
    assert unstable_share(tekken, texts) < 0.001
    assert unstable_share(tokenizer_files.read(SENTENCEPIECE["v1"]), texts) == 0


@pytest.mark.slow
def test_the_law_over_a_sentencepiece_vocabulary_is_that_of_its_definition():
    """Section 3 of the source: one context per byte, the encoding of the text so far, and last tokens that are encoded so."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, initializer_range=0.5, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model, tokenizer = transformers.LlamaForCausalLM(config).eval(), tokenizer_files.wrapped(SENTENCEPIECE["v1"])
    engine = byte_law.engine_of(checkpoints.wrap(model, tokenizer))
    tokens, law = engine.tokens, ByteLaw(engine, b"The ca")
    for byte in b"t's":
        law.push(byte)
        found = law.law()
        assert np.append(found.p, found.end) == pytest.approx(defined(model, tokens, law.text), abs=1e-6)  # float32


@torch.no_grad()
def defined(model, tokens, text):
    """P of each byte and of the end after text, normalised."""
    whole, outcomes = tokens.lead + text, np.zeros(257)
    for stop in range(len(text) + 1):
        context, rest = tokens.encode(text[:stop].decode()), text[stop:] if stop else whole
        logp = model(torch.tensor([[1, *context]])).logits[0].double().log_softmax(-1)
        own = sum(float(logp[place, token]) for place, token in enumerate(context))
        low, high = tokens.longer(rest)
        candidates = tokens.ids_J[low:high].tolist()
        begun = text[:stop] if stop else b""
        texts = [
            (begun + tokens.spelled[t] if stop else tokens.spelled[t].removeprefix(tokens.lead)) for t in candidates
        ]
        for token, spelled in zip(candidates, texts, strict=True):
            if encodes_to(tokens, spelled, [*context, token]):
                outcomes[tokens.spelled[token][len(rest)]] += np.exp(own + float(logp[-1, token]))
        if not rest:
            outcomes[256] += np.exp(own + float(logp[-1, 2]))
    return outcomes / outcomes.sum()


def encodes_to(tokens, spelled, wanted):
    """Whether some text that begins so is encoded to what begins with these tokens."""
    for end in (b"", b"a", b"\x80", b"\x80\x80", b"\xa9", b"\x90\x80", b"\x90\x80\x80"):
        try:
            if tokens.encode((spelled + end).decode())[: len(wanted)] == wanted:
                return True
        except UnicodeDecodeError:
            continue
    return False


def test_a_checkpoint_with_a_tekken_file_alone_loads_and_speaks_bytes(mistral):
    checkpoint = checkpoints.load(str(mistral))
    assert checkpoint.tokenizer("a <s>")["input_ids"][0] == 1
    assert checkpoint.tokenizer("a <s>")["input_ids"].count(1) == 1  # the name of a special token is text
    engine = byte_law.engine_of(checkpoint)
    assert engine.tokens.spelled[:20] == (None,) * 20
    law = ByteLaw(engine, b"def f(x):\n    re").law()
    assert law.p.sum() + law.end == pytest.approx(1, abs=1e-12)
    assert law.lost > 0


def test_a_wrapper_that_names_its_file_is_read_from_it(small_tekken):
    wrapper = SimpleNamespace(
        is_fast=False, init_kwargs={"tokenizer_path": str(small_tekken)}, all_special_ids=[0, 1, 2, 500]
    )
    tokens = token_bytes.read(wrapper)
    assert tokens.spelled[500] is None
    assert tokens.spelled[499] is not None
    with pytest.raises(ValueError, match="is no `tokenizers` tokenizer"):
        token_bytes.read(SimpleNamespace(is_fast=False, init_kwargs={}))


def test_tokenizers_are_named_by_their_files(small_tekken, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(SENTENCEPIECE["v1"].read_bytes())
    names = [str(small_tekken), str(small_tekken.parent), str(SENTENCEPIECE["v1"]), str(tmp_path)]
    found = segmentation.opened(names)
    assert [(tokens.kind, tokens.size) for tokens in found] == [("BPE", 720)] * 2 + [("BPE", 32000)] * 2
    assert found[0].label == "tekken"
    assert found[2].label == "tokenizer_model"
    cuts = [segmentation.cut(tokens, ["a [INST] b", "naïve\n\n"]) for tokens in found]
    assert not any(cut.lossy_D.any() for cut in cuts)
    assert min(cuts[0].stream.ids_N) >= 20  # no special token is read


@pytest.fixture(scope="module")
def clip():
    """CLIP's own merges, from the file in open_clip_torch; the package is not imported, it needs a torchvision."""
    found = importlib.util.find_spec("open_clip")
    if found is None:
        pytest.skip("CLIP's merges are in open_clip_torch: pip install --no-deps open_clip_torch")
    packed = Path(found.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(packed.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    vocabulary = {piece: number for number, piece in enumerate((*pieces, "<|startoftext|>", "<|endoftext|>"))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    rule = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(rule, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    return tokenizer


@pytest.mark.slow
def test_clips_words_are_bytes_with_a_blank_behind_each(clip):
    tokens = token_bytes.read(clip)
    assert tokens.size == 49408
    assert tokens.trail == b" "
    assert tokens.encode("a photo of a cat")[:2] == [320, 1125]  # the ids that CLIP's own code gives
    assert tokens.normalised("a photo of a cat , do n") == b"a photo of a cat , do n"
    rules = canonical.validity(tokens)
    state = rules.start
    for token in tokens.encode("a photo of a cat , don 't ! 1 2 naïve café 中文 — e !!!"):
        assert rules.allows(state, token)
        state = rules.step(state, token)
    assert rules.closes(state)
    row = rules.row(rules.start)
    assert all(row[token] == rules.allows(rules.start, token) for token in range(0, tokens.size, 97))


@pytest.mark.slow
def test_the_fuzz_finds_the_real_ones_exact(clip):
    for tokenizer in (clip, tokenizer_files.read(SENTENCEPIECE["v1"])):
        found = canonical.stability(token_bytes.read(tokenizer), texts=40, seed=2)
        assert (found.mode, found.rejected, found.unsound, found.exact) == ("merges", 0, 0, True)
        assert found.tried > 100


def test_the_commands_take_a_tekken_file_and_a_checkpoint_that_has_only_one(
    shiftscope, small_tekken, mistral, tmp_path
):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text, "prompt": text[:30]}) + "\n" for text in PROSE[:2]))
    names = str(small_tekken), str(SENTENCEPIECE["v1"])
    code, out, errors = shiftscope(
        "compare", "tokenizers", *names, "--texts", texts, "--added", 0, "--out", tmp_path / "cut"
    )
    assert code == 0, errors
    assert "tokenizer_model" in out.replace("\n", "")
    code, _, errors = shiftscope(
        "generate", "bytes", mistral, "--prompts", texts, "--max-new-bytes", 3, "--out", tmp_path / "drawn"
    )
    assert code == 0, errors
