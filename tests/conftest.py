"""Tiny random checkpoints of every architecture, and no network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
import transformers

transformers.logging.set_verbosity_error()
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def docs():
    from shiftscope.core import checkpoints

    return checkpoints.load("docs-base"), checkpoints.load("docs-code")
