"""Claims about long work: shards that are merged, a run that was interrupted and resumed, and Ray give the single run's table."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shiftscope.core.parts import Parts

WORDS = [
    "river",
    "stone",
    "cloud",
    "forest",
    "engine",
    "signal",
    "market",
    "harbour",
    "violin",
    "copper",
    "winter",
    "meadow",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two corpora of 400 and 300 texts with a random encoder, slices of twenty classes, and two nets of ten layers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    path, generator = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    for name, count, words in (("a", 400, WORDS[:9]), ("b", 300, WORDS[3:])):
        lines = [json.dumps({"text": " ".join(generator.choice(words, 8))}) for _ in range(count)]
        (path / f"{name}.jsonl").write_text("\n".join(lines))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(path / "encoder")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        BertModel(BertConfig(vocab_size=14, initializer_range=0.5, **sizes)).save_pretrained(path / "encoder")
        for name in "ab":
            net = nn.Sequential(*[nn.Conv2d(8, 8, 3) for _ in range(10)])
            save_file(net.state_dict(), path / f"{name}.safetensors")
    named = {
        f"c{number:02d}({k})": [f"i{one}" for one in generator.choice(300, 40, replace=False)]
        for number in range(20)
        for k in range(7)
    }
    (path / "slices.json").write_text(json.dumps(named))
    return path


def arguments(command, folder):
    """A command with settings that make it quick."""
    encoder = ["--encoder", folder / "encoder"]
    return {
        "corpora": ["corpora", folder / "a.jsonl", folder / "b.jsonl", *encoder, "--permutations", 99],
        "domains": ["domains", folder / "a.jsonl", folder / "b.jsonl", *encoder, "--classes", 2, "--features",
                    "embedding", "--resamples", 20],
        "slices": ["slices", folder / "slices.json", "--threshold", 0],
        "weights": ["weights", folder / "a.safetensors", folder / "b.safetensors", "--permutations", 40],
    }[command]  # fmt: skip


COMMANDS = ("corpora", "domains", "slices", "weights")


def same(one, other):
    """Equal tables, and equal figures but for nothing."""
    assert pq.read_table(one / "table.parquet").equals(pq.read_table(other / "table.parquet"))
    figures = [json.loads((path / "summary.json").read_text())["figures"] for path in (one, other)]
    assert figures[0] == figures[1]


@pytest.fixture(scope="module")
def single(folder, shiftscope, tmp_path_factory):
    """The --out folder of every command's single run."""
    out = tmp_path_factory.mktemp("single")
    for command in COMMANDS:
        code, _, said = shiftscope("compare", *arguments(command, folder), "--out", out / command)
        assert code == 0, said
    return out


@pytest.mark.parametrize("command", COMMANDS)
def test_merged_shards_are_the_single_run(command, folder, single, shiftscope, tmp_path):
    for shard in range(2):
        out = ("--out", tmp_path / f"s{shard}", "--shard", f"{shard}/2")
        code, _, said = shiftscope("compare", *arguments(command, folder), *out)
        assert (code, "is done" in said) == (0, True), said
        assert not (tmp_path / f"s{shard}" / "summary.json").exists()
    code, _, said = shiftscope("merge", tmp_path / "s0", tmp_path / "s1", "--out", tmp_path / "whole")
    assert code == 0, said
    same(single / command, tmp_path / "whole")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_interrupted_run_goes_on_and_is_the_single_run(command, folder, single, shiftscope, tmp_path, monkeypatch):
    written, write = [], Parts._write

    def stopping(self, stage, index, tables):
        if written:
            raise KeyboardInterrupt
        written.append(index)
        write(self, stage, index, tables)

    monkeypatch.setattr(Parts, "_write", stopping)
    code, _, said = shiftscope("compare", *arguments(command, folder), "--out", tmp_path)
    assert (code, "add --resume to go on" in said) == (130, True)
    monkeypatch.setattr(Parts, "_write", write)
    code, _, said = shiftscope("compare", *arguments(command, folder), "--out", tmp_path)
    assert (code, "parts of an interrupted run" in said) == (2, True)
    code, _, said = shiftscope("compare", *arguments(command, folder), "--out", tmp_path, "--resume")
    assert code == 0, said
    same(single / command, tmp_path)


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield ray
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # ray's own resource and deprecation warnings
@pytest.mark.parametrize("command", ["corpora", "weights"])
def test_ray_gives_the_single_run(command, folder, single, cluster, shiftscope, tmp_path):
    code, _, said = shiftscope("compare", *arguments(command, folder), "--out", tmp_path, "--ray", 1)
    assert code == 0, said
    same(single / command, tmp_path)
