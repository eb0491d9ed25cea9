"""Claims about the compiled kernel: built once, whole or not at all, the same in any number of threads, never required."""

from __future__ import annotations

import math
import stat

import pytest
import torch

from shiftscope.core import divergence, laws, native
from shiftscope.core.laws import Workspace

CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(native.compiler() is None, reason="there is no C compiler")


@pytest.fixture
def fresh_kernel():
    """Forget the kernel of this process before and after a test that changes how it is found."""
    native.kernel.cache_clear()
    yield
    native.kernel.cache_clear()


@pytest.fixture
def failing(tmp_path):
    """A compiler that only complains."""
    command = tmp_path / "cc"
    command.write_text(
        "#!/bin/sh\necho 'laws.c: In function row' >&2\necho 'laws.c:1: error: no such target' >&2\nexit 1\n"
    )
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return str(command)


def logits(rows: int, vocabulary: int) -> torch.Tensor:
    return 3 * torch.randn(2, rows, vocabulary, generator=torch.Generator().manual_seed(rows))


def run(kernel: native.Kernel, logits_p: torch.Tensor, logits_q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, vocabulary = logits_p.shape
    maxima = torch.full((2, rows, vocabulary // 64), math.nan)
    return kernel(logits_p, logits_q, torch.arange(rows) % vocabulary, maxima)[0], maxima


@needs_compiler
def test_the_kernel_is_compiled_once_and_nothing_else_stays_in_the_folder(tmp_path, failing):
    folder = tmp_path / "cache" / "shiftscope"
    first = native.built(native.compiler(), folder)
    assert list(folder.iterdir()) == [first]
    assert native.built(failing, folder) == first


def test_a_failed_build_says_why_and_leaves_nothing(tmp_path, failing):
    with pytest.raises(OSError, match=r"cc failed: laws\.c:1: error: no such target"):
        native.built(failing, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.cache_folder() == tmp_path / "shiftscope"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert native.cache_folder() == tmp_path / "home" / ".cache" / "shiftscope"


@pytest.mark.parametrize("obstacle", ["no compiler", "failing compiler", "cache is a file"])
def test_without_a_kernel_the_eager_statistics_run_and_a_note_says_so(
    monkeypatch, tmp_path, failing, obstacle, fresh_kernel
):
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    if obstacle == "no compiler":
        monkeypatch.setattr(native, "compiler", lambda: None)
    else:
        monkeypatch.setattr(native, "compiler", lambda: failing)
    if obstacle == "cache is a file":
        cache.write_text("")
    asked, eager = (Workspace(3, 9_001, CPU, compiled=compiled) for compiled in (True, False))
    p, q = logits(3, 9_001)
    assert (asked.laws(p, q).values_6R == eager.laws(p, q).values_6R).all()
    said = {"no compiler": "no C compiler", "failing compiler": "no such target", "cache is a file": str(cache)}
    assert said[obstacle] in laws.compiled_note()


@needs_compiler
def test_with_a_kernel_there_is_no_note():
    assert laws.compiled_note() == ""


@needs_compiler
@pytest.mark.parametrize("rows", [0, 1, 2, 7])
def test_any_number_of_threads_gives_the_same_numbers(monkeypatch, rows):
    kernel, _ = native.kernel()
    found = []
    for threads in (1, 2, 3, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(run(kernel, *logits(rows, 1_003)))
    assert found[0][0].shape == (rows, native.NUMBERS)
    assert all((values == found[0][0]).all() and (maxima == found[0][1]).all() for values, maxima in found)


@needs_compiler
@pytest.mark.parametrize("vocabulary", [1, 63, 64, 129, 2_048, 4_160])
def test_rows_may_lie_apart_and_maxima_are_those_of_whole_runs(vocabulary):
    kernel, _ = native.kernel()
    wide = logits(5, vocabulary + 17)
    values, maxima = run(kernel, *(side[:, :vocabulary] for side in wide))
    dense, _ = run(kernel, *(side[:, :vocabulary].contiguous() for side in wide))
    assert (values == dense).all()
    whole = vocabulary // 64 * 64
    assert (maxima == wide[..., :whole].unflatten(-1, (vocabulary // 64, 64)).amax(-1)).all()


@needs_compiler
def test_a_tensor_that_the_kernel_cannot_read_is_refused():
    kernel, _ = native.kernel()
    p, q = logits(2, 128)
    for bad in (q.double(), q[:1], q[:, ::2].repeat(1, 2).t().contiguous().t()):
        with pytest.raises(AssertionError):
            run(kernel, p, bad)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [1, 63, 130, 4_160])
def test_ranks_of_given_tokens_are_counted_in_passing(vocabulary, dtype):
    p, q = logits(6, vocabulary).to(dtype)
    p[2, ::3] = -math.inf
    tokens = torch.tensor([0, vocabulary - 1, vocabulary // 2, 0, vocabulary // 3, vocabulary - 1])
    workspace = Workspace(8, vocabulary, CPU, compiled=True)
    ranks = workspace.laws(p, q, tokens).rank_2R
    assert (ranks == torch.stack([divergence.rank(side.float(), tokens) for side in (p, q)])).all()
    assert workspace.laws(p, q).rank_2R is None


@needs_compiler
@pytest.mark.parametrize("token", [-1, 64])
def test_a_token_outside_the_vocabulary_is_never_read(token):
    with pytest.raises(AssertionError):
        Workspace(1, 64, CPU, compiled=True).laws(*logits(1, 64), torch.tensor([token]))
