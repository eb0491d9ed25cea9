"""Claims about pictures of a page: their size, what is on them, and what is refused."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from shiftscope import report
from shiftscope.core.result import Result
from shiftscope.report import screenshot as module
from shiftscope.report.screenshot import main, screenshot

needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on the PATH")
SMALL = {"width_px": 500, "height_px": 400, "scale": 1.0}


@pytest.fixture(scope="module")
def written(
    make_result: Callable[..., Result], make_table: Callable[..., pa.Table], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return report.write(make_result(make_table(2, 20)), tmp_path_factory.mktemp("page") / "report.html")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def plain(written: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return pixels(screenshot(written, tmp_path_factory.mktemp("plain") / "plain.png", **SMALL))


@needs_chromium
def test_the_window_has_the_size_asked_for_and_something_on_it_dark_or_light(
    written: Path, tmp_path: Path, plain: np.ndarray
) -> None:
    path = screenshot(written, tmp_path / "dark.png", mode="dark", **SMALL)
    dark = pixels(path)
    assert path == tmp_path / "dark.png"
    assert dark.shape == plain.shape == (400, 500, 3)
    assert min(len(np.unique(picture.reshape(-1, 3), axis=0)) for picture in (dark, plain)) > 50
    assert np.median(dark) < 64 < 192 < np.median(plain)


@needs_chromium
def test_the_whole_page_begins_as_the_window_does_and_has_every_chart_drawn(
    written: Path, tmp_path: Path, plain: np.ndarray
) -> None:
    whole = pixels(screenshot(written, tmp_path / "whole.png", whole=True, **SMALL))
    assert whole.shape[1] == 500
    assert whole.shape[0] > 5 * 400
    assert (whole[:100] == plain[:100]).all()  # the head of the page, above whatever is drawn late
    blank = (whole == whole[:, :1]).all((1, 2))
    longest = max(len(run) for run in re.findall("1+", "".join("1" if row else "0" for row in blank)))
    assert longest < 400  # a chart that was not drawn leaves its height empty


@needs_chromium
def test_a_token_named_as_in_a_link_has_its_card_open(written: Path, tmp_path: Path, plain: np.ndarray) -> None:
    opened = pixels(screenshot(written, tmp_path / "card.png", token="t0-p12", **SMALL))
    assert (opened != plain).any(-1).mean() > 0.2  # the card covers a good part of so small a window
    with pytest.raises(ValueError, match=r"report.html has no token 't9-p12': name it as a link of the page does"):
        screenshot(written, tmp_path / "none" / "none.png", token="t9-p12", **SMALL)
    assert not (tmp_path / "none").exists()


@needs_chromium
def test_the_command_draws_at_twice_the_size_into_a_folder_that_need_not_exist_and_says_where(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "docs" / "report.png"
    arguments = [str(written), str(image), "--width", "300", "--height", "200", "--mode", "dark"]
    monkeypatch.setattr(sys, "argv", ["screenshot", *arguments])
    main()
    assert capsys.readouterr().out.strip() == str(image)
    assert image.read_bytes()[:4] == b"\x89PNG"
    assert pixels(image).shape == (400, 600, 3)
    assert np.median(pixels(image)) < 64


def test_what_is_missing_is_said_and_nothing_is_made(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "docs" / "report.png"
    with pytest.raises(ValueError, match=r"there is no page at .*none.html: write it with report.write first"):
        screenshot(tmp_path / "none.html", image)
    monkeypatch.setattr(sys, "argv", ["screenshot", str(tmp_path / "none.html"), str(image)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("write it with report.write first")
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="found no chromium on the PATH: install it"):
        screenshot(written, image)
    monkeypatch.setitem(sys.modules, "playwright.sync_api", None)
    with pytest.raises(ValueError, match=r"screenshots need the playwright package: pip install 'shiftscope\[dev\]'"):
        screenshot(written, image)
    assert not image.parent.exists()
