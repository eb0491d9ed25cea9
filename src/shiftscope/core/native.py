"""The C kernel under `laws`: compiled at first use for this very CPU, kept in the user's cache, called outside the GIL.

The file in the cache is named by source, flags and CPU, so a home directory shared by different machines is no danger.
"""

# R rows, V vocabulary, M runs of the vocabulary

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from shiftscope.core.divergence import RUN

SOURCE = Path(__file__).with_name("laws.c")
FLAGS = (
    "-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-shared", "-fPIC"
)  # fmt: skip
NUMBERS = 8  # of a row: both log-sum-exps and the six of laws.DIVERGENCES

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(logits_p_RV, logits_q_RV, token_R, maxima_2RM) → ([R, 8], [R, 2]): see `opened`."""


def compiler() -> str | None:
    """Path of the C compiler that is used here, None where there is none."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def cache_folder() -> Path:
    """Where compiled kernels are kept: the user's cache, as the XDG convention places it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shiftscope"


def built(command: str, folder: Path) -> Path:
    """The shared object in the folder, compiled where it is not there yet.

    command: the C compiler. Raises OSError where the folder cannot be written or compiling fails, with the reason.
    """
    flags = [*FLAGS, *(["-mprefer-vector-width=512"] if platform.machine().lower() in ("x86_64", "amd64") else [])]
    key = "\0".join([SOURCE.read_text(encoding="utf-8"), *flags, _cpu()])
    target = folder / f"laws-{hashlib.sha256(key.encode()).hexdigest()[:20]}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # moved when whole: another process may be at it too
        partial = Path(scratch) / target.name
        done = subprocess.run(
            [command, *flags, "-o", partial, SOURCE, "-lm"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), "it gives no reason")
            raise OSError(f"{command} failed: {said.strip()}")
        partial.replace(target)
    return target


def opened(path: Path) -> Kernel:
    """The function in a shared object: (logits_p_RV, logits_q_RV, token_R, maxima_2RM) → ([R, 8] float32, [R, 2] int64).

    Logits are float32 with neighbouring columns; maxima_2RM receives the largest logit of each run of RUN tokens. The
    second answer is the rank of each row's token under both laws, as `divergence.rank` counts it. Rows are shared out
    over torch.get_num_threads() threads. Raises OSError where the file is no such object.
    """
    function = ctypes.CDLL(str(path)).shiftscope_laws
    function.restype = None
    function.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 4 + [ctypes.c_void_p] * 5

    def rows(
        p_RV: Tensor, q_RV: Tensor, token_R: Tensor, maxima_2RM: Tensor, found_R8: Tensor, rank_R2: Tensor
    ) -> None:
        read, written = (p_RV, q_RV), (token_R, maxima_2RM[0], maxima_2RM[1], found_R8, rank_R2)
        strides = [logits.stride(0) for logits in read]
        function(*(t.data_ptr() for t in read), *strides, *p_RV.shape, *(t.data_ptr() for t in written))

    def kernel(p_RV: Tensor, q_RV: Tensor, token_R: Tensor, maxima_2RM: Tensor) -> tuple[Tensor, Tensor]:
        R, V = p_RV.shape
        assert q_RV.shape == (R, V)
        assert token_R.shape == (R,)
        assert maxima_2RM.shape == (2, R, V // RUN)
        assert all(tensor.dtype == torch.float32 for tensor in (p_RV, q_RV, maxima_2RM))
        assert all(logits.stride(-1) == 1 for logits in (p_RV, q_RV))
        assert all(maxima_RM.is_contiguous() for maxima_RM in maxima_2RM)
        token_R = token_R.to(torch.int64).contiguous()
        assert ((token_R >= 0) & (token_R < V)).all()
        found_R8, rank_R2 = torch.empty(R, NUMBERS), torch.empty(R, 2, dtype=torch.int64)
        share = -(-R // min(R, torch.get_num_threads())) if R else 1
        parts = [slice(start, start + share) for start in range(0, R, share)]
        jobs = [(p_RV[i], q_RV[i], token_R[i], maxima_2RM[:, i], found_R8[i], rank_R2[i]) for i in parts]
        if len(jobs) > 1:
            with ThreadPoolExecutor(len(jobs)) as pool:
                list(pool.map(lambda job: rows(*job), jobs))
        else:
            for job in jobs:
                rows(*job)
        return found_R8, rank_R2

    return kernel


@cache
def kernel() -> tuple[Kernel | None, str]:
    """The kernel of this machine and ''; or None and why there is none. Compiles for a few seconds at the first use."""
    command = compiler()
    if command is None:
        return None, "no C compiler (cc, gcc or clang) is installed"
    try:
        return opened(built(command, cache_folder())), ""
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        return None, str(error)


def _cpu() -> str:
    """What -march=native depends on, as text."""
    described = Path("/proc/cpuinfo")
    if not described.exists():
        return f"{platform.machine()} {platform.processor()} {platform.platform()}"
    lines = described.read_text().split("\n\n")[0].splitlines()
    kept = [line for line in lines if line.startswith(("model", "vendor", "cpu family", "flags", "Features", "CPU "))]
    return "\n".join([platform.machine(), *kept])
