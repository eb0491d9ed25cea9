"""tokenizer_files: files of other makers cut texts as their own libraries do, and what cannot be read is said."""

import base64
import json
import struct

import pytest
import tiktoken
from tokenizers import Tokenizer, models

from shiftscope.core.bytes import tokenizer_files

PIECES = [bytes([byte]) for byte in range(256)] + [b"in", b"th", b"the", b" the", b"ing", b" \xc3", "é".encode()]
PIECES += [b"wxyz"]  # no two pieces make it: only a whole pre-token is taken so
PATTERN = r" ?\p{L}+| ?\p{N}+|\s+|[^\s\p{L}\p{N}]+"
TEXTS = ["the thing in the ring", "wxyz", "wxyzin", "é the é", "12 in\n\nthe 日本", "", "<s>[INST]"]


def tekken(**changed):
    vocab = [{"rank": rank, "token_bytes": base64.b64encode(piece).decode()} for rank, piece in enumerate(PIECES)]
    config = {"pattern": PATTERN, "default_num_special_tokens": 4, "default_vocab_size": 4 + len(PIECES)}
    special = [{"rank": rank, "token_str": text} for rank, text in ((1, "<s>"), (0, "<unk>"), (2, "</s>"))]
    return {"config": config | changed, "vocab": vocab, "special_tokens": special}


def message(*fields):
    """A protocol buffer of (number, value) fields: whole numbers, floats, or bytes."""
    out = b""
    for number, value in fields:
        if isinstance(value, float):
            out += bytes([number << 3 | 5]) + struct.pack("<f", value)
            continue
        key = number << 3 | (0 if isinstance(value, int) else 2)
        size = value if isinstance(value, int) else len(value)
        for each in (key, size):
            while each > 127:
                out, each = out + bytes([each & 127 | 128]), each >> 7
            out += bytes([each])
        out += b"" if isinstance(value, int) else value
    return out


def model(kind, *, dummy_prefix=1, squeezes=1, byte_fallback=0, suffix=0):
    """A SentencePiece model of a few pieces; scores of BPE pieces are the ranks of their merges, negated."""
    unknown = message((1, b"<unk>"), (2, 0.0), (3, tokenizer_files.UNKNOWN))
    bos = message((1, b"<s>"), (2, 0.0), (3, tokenizer_files.CONTROL))
    named = ["▁a", "ab", "▁", "a", "b", "c"]
    pieces = [message((1, text.encode()), (2, -float(rank))) for rank, text in enumerate(named)]
    trainer = message((3, kind), (35, byte_fallback), (24, suffix))
    normalizer = message((3, dummy_prefix), (4, squeezes))
    return message(*((1, piece) for piece in (unknown, bos, *pieces)), (2, trainer), (3, normalizer))


def read(folder, content, name="given.model"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return tokenizer_files.read(path)


def test_a_tekken_file_cuts_as_its_ranks_say_and_its_special_tokens_stand_first(tmp_path):
    found = read(tmp_path, tekken(), "tekken.json")
    own = tiktoken.Encoding(
        "own", pat_str=PATTERN, mergeable_ranks={p: r for r, p in enumerate(PIECES)}, special_tokens={}
    )
    for text in TEXTS:
        ids = found.encode(text).ids
        assert ids == [4 + rank for rank in own.encode(text)]  # tiktoken numbers no special tokens
        assert found.decode(ids) == text
    assert [found.id_to_token(number) for number in range(4)] == ["<unk>", "<s>", "</s>", "<SPECIAL_3>"]


def test_pieces_beyond_the_size_that_a_tekken_file_names_are_left_out(tmp_path):
    assert read(tmp_path, tekken(default_vocab_size=4 + 257), "tekken.json").get_vocab_size() == 261


def test_a_sentencepiece_bpe_merges_the_highest_score_first(tmp_path):
    found = read(tmp_path, model(tokenizer_files.BPE))
    assert found.encode("ab").tokens == [
        "▁a",
        "b",
    ]  # ▁a has a higher score than ab
    assert found.encode("cab").tokens == ["▁", "c", "ab"]
    assert found.encode("  c   c ").tokens == ["▁", "c", "▁", "c"]  # blanks are squeezed
    assert found.encode("<s>").tokens == ["▁", "<unk>"]  # never read from a text
    assert found.decode(found.encode("ab c").ids) == "ab c"


def test_absent_fields_of_a_sentencepiece_model_have_the_formats_own_defaults(tmp_path):
    bare = message(*((1, message((1, text.encode()), (2, -1.0))) for text in ("▁", "a", "▁a")))
    assert type(read(tmp_path, bare).model) is models.Unigram
    assert read(tmp_path, bare).normalizer.normalize_str(" a  a ") == "▁a▁a"
    kept = model(tokenizer_files.BPE, dummy_prefix=0, squeezes=0)
    assert read(tmp_path, kept).normalizer.normalize_str(" a  a") == "▁a▁▁a"


def test_a_wrapped_tokenizer_opens_a_text_with_the_token_that_begins_texts(tmp_path):
    (tmp_path / "tekken.json").write_text(json.dumps(tekken()))
    found = tokenizer_files.wrapped(tmp_path / "tekken.json")
    bare = tokenizer_files.read(tmp_path / "tekken.json").encode("the ring").ids
    assert found("the ring")["input_ids"] == [found.bos_token_id, *bare]
    assert (found.bos_token, found.eos_token) == ("<s>", "</s>")


def test_a_tokenizer_json_comes_before_a_makers_own_file_and_a_tekken_before_a_model(tmp_path):
    assert tokenizer_files.of_folder(tmp_path) is None
    (tmp_path / "tokenizer.model").touch()
    assert tokenizer_files.of_folder(tmp_path) == tmp_path / "tokenizer.model"
    (tmp_path / "tekken.json").touch()
    assert tokenizer_files.of_folder(tmp_path) == tmp_path / "tekken.json"
    (tmp_path / "tokenizer.json").touch()
    assert tokenizer_files.of_folder(tmp_path) is None


def test_a_tokenizer_json_is_read_as_it_is(tmp_path):
    own = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    assert read(tmp_path, own.to_str().encode(), "tokenizer.json").to_str() == own.to_str()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "of an unknown kind"),
        (b"\x0a\xff\xff", "of an unknown kind"),
        (b'{"version": "1.0", "mod', "begins like JSON and is none .* cut off or damaged"),
        (b"{\xff}", "begins like JSON and is none"),
        (b'{"config": {}, "vocab": []}', "is no tekken.json"),
        (b'{"config": {"pattern": "x"}, "vocab": [{"rank": 0}]}', "is no tekken.json"),
        (tekken(pattern="(["), "is no tekken.json"),
        (b'{"model": 1}', "of an unknown kind"),
        (model(4), "is of kind 4"),
        (model(tokenizer_files.BPE, suffix=1), "marks words at their ends"),
    ],
)
def test_a_file_of_no_known_kind_is_refused_in_a_sentence(tmp_path, content, sentence):
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path, content)


def test_a_name_that_is_no_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no file"):
        tokenizer_files.read(tmp_path / "absent.json")
