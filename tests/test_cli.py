"""The command line: the contract of files, JSON, gates and exit codes, and one sentence for every kind of bad input."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from shiftscope import cli
from shiftscope.core.result import Figure, Result


def test_help_needs_neither_torch_nor_transformers():
    code = "import sys; sys.argv[1:] = ['--help']\ntry:\n    from shiftscope.cli import main; main()\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'transformers', 'altair', 'pyarrow'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("verb", ["compare", "adapt", "generate"])
def test_the_list_of_methods_of_a_verb_needs_no_library_that_is_slow_to_import(verb):
    slow = "{'transformers', 'torch._dynamo', 'sklearn', 'altair', 'datasets', 'peft', 'trl', 'ray', 'openai'}"
    code = f"import sys, shiftscope.{verb}\nassert not (found := {slow} & sys.modules.keys()), found"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("verb", ["compare", "adapt", "generate"])
def test_every_method_has_a_help_page_that_describes_each_of_its_options(shiftscope, verb):
    methods = __import__(f"shiftscope.{verb}", fromlist=["METHODS"]).METHODS
    assert methods, f"{verb} has no methods"
    for name, function in methods.items():
        code, out, _ = shiftscope(verb, name, "--help")
        assert code == 0
        assert "--out" in out
        described = cli.described_parameters(function)
        hints = {
            n: h for n, h in __import__("typing").get_type_hints(function).items() if n not in ("return", *cli.SUPPLIED)
        }
        for parameter, hint in hints.items():
            if dataclasses.is_dataclass(hint):
                missing = {field.name for field in dataclasses.fields(hint)} - cli.described_parameters(hint).keys()
                assert not missing, f"{verb} {name}: {hint.__name__} does not say what {missing} are"
            else:
                assert parameter in described, f"{verb} {name} does not say what {parameter} is"


def test_a_command_writes_summary_table_and_page_and_says_where(shiftscope, texts, tmp_path):
    code, out, _ = shiftscope(
        "compare", "tokens", "sums-base", "sums-rlvr", "--texts", texts, "--out", tmp_path / "out"
    )
    assert code == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary) == {"method", "figures", "provenance", "notes"}
    assert all(set(figure) == {"value", "unit", "n", "low", "high"} for figure in summary["figures"].values())
    named = {
        "js_mean_nats", "js_share_below_0.01", "js_share_above_0.1", "kl_base_tuned_nats", "kl_tuned_base_nats",
        "unshifted_share", "marginal_share", "shifted_share", "tuned_top1_in_base_top3_share",
    }  # fmt: skip
    assert named <= set(summary["figures"])
    table = pq.read_table(tmp_path / "out" / "table.parquet")
    assert len(table) == summary["figures"]["positions"]["value"]
    assert str(tmp_path / "out" / "report.html") in out
    assert not (tmp_path / "out" / "parts").exists()
    assert summary["provenance"]["base"]["sha256"]["model.safetensors"]
    assert summary["provenance"]["command"].startswith("shiftscope")


def test_json_is_the_summary_alone_on_standard_output(shiftscope, texts):
    code, out, _ = shiftscope("compare", "tokens", "sums-base", "sums-rlvr", "--texts", texts, "--json")
    assert code == 0
    assert json.loads(out)["method"] == "compare tokens"


BAD = {
    "differing vocabularies": (["sums-base", "styles-base"], "vocabularies differ"),
    "no checkpoint": (["sums-base", "./nowhere"], "no such folder"),
    "no such texts": (["sums-base", "sums-rlvr", "--texts", "none.jsonl"], "is not a file"),
    "no chat template": (["sums-base", "sums-rlvr", "--template", "chat"], "has no chat template"),
    "gate that is no condition": (["sums-base", "sums-rlvr", "--gate", "smaller"], "not of the form"),
    "gate on no figure": (["sums-base", "sums-rlvr", "--limit", "2", "--gate", "nothing < 1"], "there is no figure 'nothing'"),
    "temperature": (["sums-base", "sums-rlvr", "--temperature", "-1"], "need temperature >= 0"),
    "resume without out": (["sums-base", "sums-rlvr", "--resume"], "--resume works with parts in a folder"),
    "threads": (["sums-base", "sums-rlvr", "--threads", "0"], "--threads is 0"),
    "device": (["sums-base", "sums-rlvr", "--device", "nonsense"], "device 'nonsense' cannot be used"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(shiftscope, kind):
    arguments, sentence = BAD[kind]
    code, _, err = shiftscope("compare", "tokens", *arguments)
    assert code == 2
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"prompt": "1 ="}\n{"prompt": ', "line 2 is not JSON"),
        ('{"text": "x"}', "has no `prompt`"),
        ('{"prompt": "1 =", "answer": "' + "take " * 200 + '"}', "reads at most"),
        ("", "has no records"),
    ],
)
def test_bad_texts_are_one_sentence_and_exit_code_2(shiftscope, tmp_path, content, sentence):
    (tmp_path / "bad.jsonl").write_text(content)
    code, _, err = shiftscope("compare", "tokens", "sums-base", "sums-rlvr", "--texts", tmp_path / "bad.jsonl")
    assert (code, sentence in err, len(err.strip().splitlines())) == (2, True, 1)


def test_nan_logits_are_named_with_their_place(shiftscope, texts, tmp_path):
    import torch

    from shiftscope.core import checkpoints

    broken = checkpoints.load("sums-rlvr")
    broken.model.model.norm.weight.data[:] = torch.nan
    broken.model.save_pretrained(tmp_path / "broken")
    broken.tokenizer.save_pretrained(tmp_path / "broken")
    arguments = ["compare", "tokens", "sums-base", tmp_path / "broken", "--texts", texts, "--max-new-tokens", "4"]
    code, _, err = shiftscope(*arguments)
    assert code == 2
    assert "logits that are not numbers" in err
    assert "answer position 0" in err


def test_usage_errors_have_exit_code_2(shiftscope):
    assert shiftscope("compare", "tokens")[0] == 2
    assert shiftscope("compare", "nothing")[0] == 2
    assert shiftscope("compare", "tokens", "a", "b", "--no-such-option")[0] == 2


@dataclasses.dataclass(frozen=True)
class Settings:
    """How. depth: how deep. kinds: which ones."""

    depth: int = 3
    kinds: tuple[str, ...] = ("a", "b")


def toy(
    source: str, *, mode: Literal["x", "y"] = "x", rate: float | None = None, settings: Settings = Settings()
) -> Result:
    """Do a toy thing.

    source: what is read.
    mode: which way.
    rate: how fast, or
        not at all.
    Returns nothing of note.
    """
    import pyarrow as pa

    given = Figure(f"{source} {mode} {rate} {settings.depth} {settings.kinds}", "", 1)
    return Result("compare toy", pa.table({"a": [1]}), {"given": given})


def test_options_are_generated_from_a_signature_with_its_dataclasses_unfolded(monkeypatch):
    import typer

    from shiftscope import compare

    monkeypatch.setitem(compare.METHODS, "toy", toy)

    app = typer.Typer()
    app.command("toy")(cli.command("compare", "toy", toy))
    ran = CliRunner().invoke(app, ["s", "--mode", "y", "--rate", "0.5", "--depth", "7", "--kinds", "c", "--json"])
    assert ran.exit_code == 0, ran.stderr
    assert json.loads(ran.stdout)["figures"]["given"]["value"] == "s y 0.5 7 ('c',)"
    assert cli.described_parameters(toy) == {
        "source": "what is read.",
        "mode": "which way.",
        "rate": "how fast, or not at all.",
    }
    assert cli.described_parameters(Settings) == {"depth": "how deep.", "kinds": "which ones."}


def test_zoo_doctor_cite_and_version_answer(shiftscope):
    assert {"sums-base", "styles-dpo", "docs-code"} <= {
        card["name"] for card in json.loads(shiftscope("zoo", "--json")[1])
    }
    assert "sums-rlvr" in shiftscope("zoo")[1]
    assert "torch" in shiftscope("doctor")[1]
    assert "eprint = {2603.22446}" in shiftscope("cite", "compare tokens")[1]
    assert shiftscope("cite", "nothing")[0] == 2
    assert shiftscope("version")[1].strip() == Path("src/shiftscope/__init__.py").read_text().split('"')[-2]
