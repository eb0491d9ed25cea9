"""Tiny random checkpoints of every architecture, and no network."""

from __future__ import annotations

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
import transformers

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shiftscope():
    """Run a command in this process: returns (exit code, standard output, standard error)."""
    from typer.testing import CliRunner

    from shiftscope import cli

    def run(*arguments):
        arguments = [str(argument) for argument in arguments]
        ran = CliRunner().invoke(cli.application(arguments), arguments)
        if ran.exception and not isinstance(ran.exception, SystemExit):
            raise ran.exception
        return ran.exit_code, ran.stdout, ran.stderr

    return run


@pytest.fixture
def texts(tmp_path):
    """A file of twelve prompts of the sums."""
    from shiftscope.zoo import sums

    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in sums.prompts(12, seed=3)))
    return path


@pytest.fixture(scope="session")
def docs():
    from shiftscope.core import checkpoints

    return checkpoints.load("docs-base"), checkpoints.load("docs-code")
