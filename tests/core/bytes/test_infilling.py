"""infilling: the frames of known families as documented, prefixes cut where a token can reach beyond them, and clear refusals."""

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from shiftscope.core import checkpoints
from shiftscope.core.bytes import byte_law
from shiftscope.core.bytes.byte_model import ByteModel, ByteSampling
from shiftscope.core.bytes.infilling import FAMILIES, PLAIN, RESUMED, Infiller, Infilling, gaps
from shiftscope.core.corpus import Text

WORDS = "return the sum of all values and raise an error if a value is none"


def checkpoint(marks, *, metaspace=False):
    """A random model whose BPE has these tokens; metaspace: blanks as in SentencePiece, with one before every text."""
    tokenizer = Tokenizer(models.BPE())
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    alphabet = list(WORDS) if metaspace else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, show_progress=False, special_tokens=["<end>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>")
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return checkpoints.wrap(LlamaForCausalLM(config).eval(), fast)


def ids_of(one, engine):
    """The tokens of a frame as text, without the opening of all texts."""
    return one.tokenizer.convert_ids_to_tokens(list(engine.opening[1:]))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize("order", ["psm", "spm"])
def test_a_known_family_is_framed_as_it_documents(family, order):
    one = checkpoint((*family.marks, *family.ends))
    engine = byte_law.engine_of(one)
    frame = getattr(family, order)
    if not frame:
        with pytest.raises(ValueError, match=f"not known in the order {order}"):
            Infiller(engine, one, Infilling(order))
        return
    own, text = Infiller(engine, one, Infilling(order)).begun("return the val", " and raise")
    shown = {"{prefix}": ["return", "Ġthe"], "{suffix}": ["Ġand", "Ġraise"]}
    if order == "spm":
        shown["{prefix}"] = []  # it stands last, so that all of it is covered byte by byte
    assert ids_of(one, own) == [token for piece in frame for token in shown.get(piece, [piece])]
    assert text == (b" val" if order == "psm" else b"return the val")
    ends = one.tokenizer.convert_ids_to_tokens(list(own.ends))
    assert set(ends) == {"<end>", *family.marks, *family.ends}
    auto = Infiller(engine, one).begun("return the val", " and raise")
    if order == "psm" or not family.psm:
        assert (auto[0].opening, auto[1]) == (own.opening, text)


def test_a_template_of_the_users_is_the_familys_own_frame():
    starcoder = FAMILIES[1]
    one = checkpoint(starcoder.marks)
    engine = byte_law.engine_of(one)
    for order in ("psm", "spm"):
        known = Infiller(engine, one, Infilling(order)).begun("return the val", " and raise")
        given = Infiller(engine, one, Infilling("".join(getattr(starcoder, order)))).begun(
            "return the val", " and raise"
        )
        assert given[0].opening == known[0].opening
        assert given[1] == known[1]


@pytest.mark.parametrize(
    ("prefix", "held"),
    [
        ("return the val", b" val"),  # " value" and " values" begin there
        ("return the", b" the"),  # " th" and a longer token from "e" on would spell it too
        ("return the ", b" "),
        ("return the sum.", b""),  # no token goes on from a full stop
        ("", b""),
    ],
)
def test_the_last_tokens_are_held_back_where_a_token_can_go_beyond_them(prefix, held):
    one = checkpoint(FAMILIES[1].marks)
    assert Infiller(byte_law.engine_of(one), one).begun(prefix, " and")[1] == held


def test_a_prefix_that_ends_inside_a_character_is_cut_before_it():
    one = checkpoint(FAMILIES[1].marks)
    engine = byte_law.engine_of(one)
    own, text = Infiller(engine, one).begun(b"return caf\xc3", " and")
    assert b"caf\xc3".endswith(text)
    assert text.startswith(b"\xc3") or text.endswith(b"f\xc3")
    laws = byte_law.ByteLaw(own, text).law()
    assert laws.p[0x80:0xC0].sum() == pytest.approx(1, abs=1e-9)


def test_the_dummy_blank_stands_before_the_prefix_only():
    """As SentencePiece models do it: prefix and all that goes on from it like a text of its own, the suffix as a part."""
    marks = ("<P>", "<S>", "<M>")
    one = checkpoint(marks, metaspace=True)
    engine = byte_law.engine_of(one)
    assert engine.tokens.lead == b" "
    own, text = Infiller(engine, one, Infilling("<P>{prefix}<S>{suffix}<M>")).begun("return the val", "and raise")
    shown = ids_of(one, own)
    assert shown[1].startswith("▁")
    assert not shown[shown.index("<S>") + 1].startswith("▁")
    assert own.tokens.lead == b""
    assert text.endswith(b"val")
    last, text = Infiller(engine, one, Infilling("<S>{suffix}<P>{prefix}")).begun("return", "and")
    assert (last.tokens.lead, text) == (b" ", b"return")


def test_a_middle_in_plain_words_is_the_law_of_that_text_and_ends_where_the_suffix_begins(docs):
    model, suffix = ByteModel(docs[0], support="unmasked"), " of the value. It is a number."
    law = model.middle("Return the absolu", suffix, Infilling("plain"))
    whole = PLAIN.replace("{prefix}", "Return the absolu").replace("{suffix}", suffix)
    assert law.text.decode() == whole
    assert law.law().p == pytest.approx(model.law(whole).p, abs=1e-6)  # float32, another tree layout
    drawn = model.infill(
        [("Return the absolu", "te")], ByteSampling(temperature=0, max_new_bytes=20), how=Infilling("plain")
    )[0]
    assert (drawn.answer, drawn.stopped) == (b"", "suffix")
    assert len(model.infiller(Infilling("plain")).resumed("x" * 99)) == RESUMED


def test_frames_share_the_trees_opening_and_never_a_context_with_a_text():
    one = checkpoint(FAMILIES[1].marks)
    model = ByteModel(one)
    before = model.law("return the ").p
    model.middle("return the ", " and").law()
    after = model.law("return the ").p
    assert after == pytest.approx(before, abs=1e-6)  # float32, another layout of the tree
    tree = model.engine.tree
    positions = tree.positions
    pairs = [("return the val", " and raise"), ("raise an err", " if none")]
    together = model.infill(pairs, ByteSampling(max_new_bytes=6, seed=2))
    assert tree.positions > positions
    for number, pair in enumerate(pairs):
        alone = model.infill([pair], ByteSampling(max_new_bytes=6, seed=2), documents=[number])[0]
        assert alone.answer == together[number].answer


def test_what_cannot_be_filled_in_is_refused_in_a_sentence(docs):
    model = ByteModel(docs[0], support="unmasked")
    with pytest.raises(ValueError, match=r"has no fill-in-the-middle tokens of a known family .*use frame plain"):
        model.infiller()
    with pytest.raises(ValueError, match="frame is 'middle'"):
        Infilling("middle")
    with pytest.raises(ValueError, match=r"frame is '\{prefix\}\{prefix\}\{suffix\}'"):
        Infilling("{prefix}{prefix}{suffix}")
    with pytest.raises(ValueError, match="'<eom>' of middle_ends is no token"):
        model.infiller(Infilling("plain", ("<eom>",)))
    with pytest.raises(ValueError, match="record 1 has a suffix that is a int"):
        gaps([Text(0, "0", "a")], [{"prompt": "a", "suffix": 3}])
    with pytest.raises(ValueError, match="special"):
        model.infiller(Infilling("plain")).begun("a <|endoftext|>", "b")
