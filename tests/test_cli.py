"""The command line: the contract of files, JSON, gates and exit codes, and one sentence for every kind of bad input."""

import dataclasses
import json
import re
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


def test_compile_is_an_option_of_the_methods_that_have_statistics_to_compile(shiftscope):
    offered = {
        name
        for verb in cli.VERBS
        for name, command in cli.typer.main.get_command(cli.application([verb])).commands[verb].commands.items()
        if any("--compile" in option.opts for option in command.params)
    }
    assert offered == {"models", "tokens", "keys", "swaps", "scorers"}


PAIR = ("compare", "tokens", "sums-base", "sums-rlvr")
SERVED = ("--against", "dtype:bfloat16")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((*PAIR, "--texts", "ANSWERED", "--temperature", "1"), "temperature is 1.0, which only a text without an answer"),
        ((*PAIR, "--top-p", "0.9"), "top_p is 0.9 at temperature 0"),
        (("compare", "bytes", "sums-base", "sums-rlvr", "--texts", "ANSWERED", "--max-new-tokens", "5"), "max_new_tokens is 5"),
        (("compare", "layers", "sums-base", "sums-rlvr", "--patience-s", "5"), "patience_s is 5.0, which only --watch"),
        (("compare", "layers", "sums-base", "sums-rlvr", "--beta", "0.2"), "beta is 0.2, which only --preferences"),
        (("compare", "keys", "sums-base", "--gainers", "3"), "gainers is 3, which only a TUNED checkpoint"),
        (("compare", "keys", "sums-base", "--limit", "3"), "limit is 3, which only a TUNED checkpoint or --verifier"),
        (("compare", "keys", "sums-base", "--top", "3"), "top is 3, which only --verifier"),
        (
            ("compare", "swaps", "sums-base", "sums-rlvr", "--verifier", "exact", "--no-controls", "--match", "effective"),
            "match is effective without controls",
        ),
        (("compare", "scorers", "sums-base", *SERVED, "--timeout-s", "5"), "timeout_s is 5.0, which only --against endpoint"),
        (("compare", "scorers", "sums-base", *SERVED, "--stepwise"), "stepwise is True, which only --against endpoint"),
        (("compare", "scorers", "sums-base", "--against", "file:x.jsonl", "--seed", "5"), "seed is 5, which only a scorer"),
        (("compare", "answers", "ANSWERED", "--judge", "math:sqrt", "--permutations", "9"), "only a second file of answers"),
        (("compare", "answers", "ANSWERED", "--judge", "math:sqrt", "--tries", "9"), "only a judge at an endpoint"),
        (("compare", "edits", "sums-base", "--remedies", "none", "--support", "all"), "support is all, which only --remedies"),
        (("compare", "domains", "ANSWERED", "--classes", "2", "--field", "prompt", "--prefix", "q"), "only --features embedding"),
        (("compare", "slices", "ANSWERED", "--levels", "2"), "levels is 2, which only a task with --test"),
        (("compare", "slices", "ANSWERED", "--lower-is-better"), "lower_is_better is True, which only --outcomes"),
        (("compare", "slices", "ANSWERED", "--steps-are-scores"), "only --steps reads"),
        (("compare", "subpopulations", "ANSWERED", "--assign", "words", "--votes", "3"), "only --assign model"),
        (("compare", "subpopulations", "ANSWERED", "--llm", "function:math:sqrt", "--dtype", "bfloat16"), "only --llm model:NAME"),
        (("compare", "preservation", "random", "--samples", "3"), "samples is 3, which only --model with a checkpoint"),
        (("adapt", "rlvr", "sums-base", "--prompts", "x", "--verifier", "exact", "--strength", "0.5"), "only --weight high"),
        (("adapt", "traces", "sums-rlvr", "sums-base", "--prompts", "ANSWERED", "--min-score", "0.5"), "only --verifier"),
        (("adapt", "traces", "sums-rlvr", "sums-base", "--prompts", "x", "--p-min", "0", "--trials", "2"), "only --p-min above 0"),
        (("adapt", "tokenizer", "--texts", "ANSWERED", "--candidates", "4"), "only --kind compression"),
        (("generate", "urial", "sums-base", "why?", "--limit", "3"), "limit is 3, which only --prompts"),
        (("generate", "navigate", "sums-base", "--survey", "3"), "survey is 3, which only --verifier"),
        (("generate", "any-order", "sums-anyorder", "--method", "sequential", "--k", "3"), "k is 3, which only --method"),
        (("generate", "bytes", "sums-base", "--prompts", "ANSWERED", "--samples", "3"), "samples is 3, which only a record"),
        ((*PAIR, "--gpus", "1"), "gpus is 1.0, which only --ray"),
        ((*PAIR, "--shard", "0/2", "--json"), "json is True, which only shiftscope merge"),
        ((*PAIR, "--shard", "0/2", "--ray", "2"), "leave one of the two out"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_an_option_that_a_run_would_not_read_is_refused_in_one_sentence(shiftscope, tmp_path, arguments, sentence):
    answered = tmp_path / "answered.jsonl"
    answered.write_text(json.dumps({"prompt": "1 1 1 1 =", "answer": "take 1 is 1", "tags": ["a"]}) + "\n")
    given = [str(answered) if argument == "ANSWERED" else argument for argument in arguments]
    code, out, err = shiftscope(*given, "--out", tmp_path / "out")
    assert (code, out) == (2, "")
    assert sentence in err
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize("limit", ["0", "-1"])
@pytest.mark.parametrize(
    "arguments",
    [
        (*PAIR, "--texts", "GIVEN"),
        PAIR,
        ("compare", "tokenizers", "sums-base", "--texts", "GIVEN"),
        ("compare", "traces", "sums-base", "--traces", "GIVEN"),
        ("compare", "edits", "sums-base"),
        ("compare", "answers", "GIVEN", "--judge", "math:sqrt"),
        ("compare", "subpopulations", "GIVEN", "--llm", "function:math:sqrt"),
        ("compare", "corpora", "GIVEN", "GIVEN"),
        ("generate", "bytes", "sums-base"),
    ],
    ids=lambda value: " ".join(value[:2]),
)
def test_a_limit_that_leaves_nothing_to_read_is_refused_everywhere_alike(shiftscope, texts, arguments, limit):
    given = [str(texts) if argument == "GIVEN" else argument for argument in arguments]
    code, _, err = shiftscope(*given, "--limit", limit)
    assert code == 2
    assert f"limit is {limit}: it must be at least 1" in err


def test_a_missing_corpus_is_asked_for_by_the_name_that_the_command_gives_it(shiftscope, tmp_path):
    from shiftscope.core import checkpoints

    one = checkpoints.load("sums-base")
    one.model.save_pretrained(tmp_path / "bare")
    one.tokenizer.save_pretrained(tmp_path / "bare")
    bare = tmp_path / "bare"
    assert "give --texts FILE" in shiftscope("compare", "tokens", bare, bare)[2]
    for command in ("bytes", "navigate", "ensemble"):
        assert "give --prompts FILE" in shiftscope("generate", command, bare)[2]


def test_cite_also_gives_the_papers_of_the_files_that_a_method_names_and_no_others(shiftscope):
    found = set(re.findall(r"eprint = \{([\d.]+)\}", shiftscope("cite", "slices")[1]))
    assert found == {"2202.06523", "1911.08731", "1907.02893", "1607.01719"}
    assert "2601.06238" in shiftscope("cite", "compare models")[1]


def test_every_file_that_a_method_names_for_its_papers_exists():
    for verb in cli.VERBS:
        for function in __import__(f"shiftscope.{verb}", fromlist=["METHODS"]).METHODS.values():
            assert cli.papers(function), f"{verb} {function.__name__} cites nothing"
