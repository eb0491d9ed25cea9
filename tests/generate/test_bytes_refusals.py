"""What the byte commands refuse: exit 2, one sentence, no traceback."""

import json
import math

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from shiftscope.core import checkpoints
from shiftscope.generate import bytes as byte_methods

TEXT = ["a photo of a cat and a dog , both asleep !", "the dog is not a cat 's friend"] * 3


def saved(folder, tokenizer, **special):
    """A random Llama with this tokenizer, in a folder."""
    torch.manual_seed(0)
    tokenizer.add_special_tokens(list(special.values()))
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    config = transformers.LlamaConfig(
        vocab_size=len(wrapped), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, bos_token_id=wrapped.bos_token_id, eos_token_id=wrapped.bos_token_id,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A model over words with marked ends, lower-cased."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    rule = Regex(r"'s|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(rule, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=90, show_progress=False, end_of_word_suffix="</w>")
    )
    return saved(tmp_path_factory.mktemp("ended"), tokenizer, bos_token="<end>")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A model over words that drops blanks."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(TEXT, trainers.WordLevelTrainer(show_progress=False, special_tokens=["[UNK]"]))
    return saved(tmp_path_factory.mktemp("words"), tokenizer, bos_token="<end>", unk_token="[UNK]")


def prompts(path, *texts):
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


def refused(ran, *parts):
    code, _, errors = ran
    said = " ".join(errors.split())
    assert code == 2, said
    assert "Traceback" not in said
    for part in parts:
        assert part in said


@pytest.mark.parametrize("command", [("generate", "bytes"), ("generate", "ensemble")])
def test_text_that_the_tokenizer_changes_is_refused_with_the_place(shiftscope, tmp_path, ended, command):
    texts = prompts(tmp_path / "p.jsonl", "a photo of a cat", "a photo of A cat")
    refused(
        shiftscope(*command, ended, "--prompts", texts, "--out", tmp_path / "out"),
        "from byte 11 on",
        "give the text as",
    )


def test_text_that_the_tokenizer_changes_is_refused_by_compare_bytes(shiftscope, tmp_path, ended, words):
    texts = prompts(tmp_path / "p.jsonl", "a photo of A cat")
    ran = shiftscope("compare", "bytes", ended, words, "--texts", texts, "--out", tmp_path / "out")
    refused(ran, "byte 11")


def test_unknown_words_are_refused_with_the_place(shiftscope, tmp_path, words):
    texts = prompts(tmp_path / "p.jsonl", "a photo of zebras")
    refused(
        shiftscope("generate", "bytes", words, "--prompts", texts, "--out", tmp_path / "out"),
        "at byte 11 what the tokenizer reads as a special or unknown token",
    )


def test_special_tokens_in_a_prompt_are_refused_with_the_place(shiftscope, tmp_path):
    texts = prompts(tmp_path / "p.jsonl", "x = 1<|endoftext|>")
    refused(
        shiftscope("generate", "bytes", "docs-base", "--prompts", texts, "--out", tmp_path / "out"), "at byte 5 what"
    )


def test_files_that_are_no_utf8_are_refused(shiftscope, tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes(b"good\nb\xffd\n")
    for command in (
        ("generate", "bytes", "docs-base", "--prompts", path),
        ("generate", "ensemble", "docs-base", "docs-code", "--prompts", path),
        ("compare", "bytes", "docs-base", "docs-code", "--texts", path),
        ("compare", "tokenizers", "docs-base", "--texts", path),
    ):
        refused(shiftscope(*command, "--out", tmp_path / "out"), "UTF-8")


def test_bytes_that_are_no_utf8_are_refused_with_the_place():
    model = byte_methods.ByteModel("docs-base")
    with pytest.raises(ValueError, match="byte 2 is 0xff"):
        model.law(b"ab\xffcd")


def test_a_byte_that_cannot_follow_is_refused_and_the_text_stays():
    model = byte_methods.ByteModel("docs-base")
    text = model.start("x = ")
    with pytest.raises(ValueError, match="0xff cannot follow"):
        text.push(0xFF)
    assert text.text == b"x = "
    assert text.law().p.sum() > 0


def test_empty_corpora_are_refused(shiftscope, tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("")
    for command in (
        ("generate", "bytes", "docs-base", "--prompts", path),
        ("generate", "ensemble", "docs-base", "docs-code", "--prompts", path),
        ("compare", "bytes", "docs-base", "docs-code", "--texts", path),
        ("compare", "tokenizers", "docs-base", "--texts", path),
    ):
        refused(shiftscope(*command, "--out", tmp_path / "out"), str(path.name))


def test_tokenizers_of_unknown_kind_are_named_with_what_is_needed(shiftscope, tmp_path, words):
    texts = prompts(tmp_path / "p.jsonl", "a cat")
    (tmp_path / "strange.json").write_text('{"version": "1.0", "added_tokens": [], "model": {"type": "Oracle"}}')
    ran = shiftscope("compare", "tokenizers", tmp_path / "strange.json", "--texts", texts, "--out", tmp_path / "out")
    refused(ran, "strange.json", "of an unknown kind", "SentencePiece model is needed")
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=60, show_progress=False, continuing_subword_prefix="##")
    )
    inside = saved(tmp_path / "inside", tokenizer, bos_token="<end>")
    ran = shiftscope("generate", "bytes", inside, "--prompts", texts, "--out", tmp_path / "out")
    refused(ran, "marks pieces inside a word ('##')", "is needed")


def test_words_with_marked_ends_have_a_law_of_bytes(ended):
    model = byte_methods.ByteModel(checkpoints.load(ended))
    inside, behind = model.law("a photo of a c"), model.law("a photo of a cat ")
    for law in (inside, behind):
        assert law.p.sum() + law.end == pytest.approx(1, abs=1e-12)
    assert inside.end == 0  # a text ends behind a word
    assert behind.end > 0
    assert behind.p[ord(" ")] == 0  # one blank is behind every word
    laws = model.laws("a photo of a cat ")
    assert laws[-1].p == pytest.approx(behind.p, abs=1e-6)  # float32
    drawn = model.sample(["a photo of a"], byte_methods.ByteSampling(max_new_bytes=12))[0]
    assert model.engine.tokens.normalised("a photo of a" + drawn.text) is not None


def test_a_prompt_that_ends_in_a_blank_is_begun_by_the_next_word(words):
    model = byte_methods.ByteModel(checkpoints.load(words))
    before, after = model.law("a photo"), model.law("a photo ")
    assert after.p[ord(" ")] == 0
    assert after.end == 0  # the blank comes with a word
    went_on = before.p[ord(" ")] * (1 - before.lost)
    assert after.logp == pytest.approx(before.logp + math.log(went_on), abs=1e-5)  # float32
    assert model.law("a pho").p.argmax() == ord("t")  # inside a word
    with pytest.raises(ValueError, match="from byte 7 on"):
        model.law("a photo  ")
