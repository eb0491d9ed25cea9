"""Screenshot: a picture of a written page, drawn in a headless Chromium, for the README and for looking at.

`python -m shiftscope.report.screenshot demo/report.html docs/report.png --token t0-p12` opens the page, waits until it
is drawn, opens the card of one token when asked, and writes the part of the page that fits the window.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Literal

PATIENCE_MS = 60_000
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--hide-scrollbars"]


def screenshot(
    page: str | Path,
    image: str | Path,
    *,
    mode: Literal["light", "dark"] = "light",
    width_px: int = 1280,
    height_px: int = 960,
    scale: float = 2.0,
    token: str = "",
    whole: bool = False,
) -> Path:
    """Draw a page written by report.write into a .png; returns its path.

    token: the token whose card is open, as in a link ('t12-p40'). whole: the full length of the page, charts drawn.
    Raises: ValueError when there is no page, no such token on it, no Chromium on the path, or no playwright to drive it.
    """
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError as error:
        raise ValueError("screenshots need the playwright package: pip install 'shiftscope[dev]'") from error
    page, image, chromium = Path(page).resolve(), Path(image), shutil.which("chromium")
    if not page.is_file():
        raise ValueError(f"there is no page at {page}: write it with report.write first")
    if chromium is None:
        raise ValueError("found no chromium on the PATH: install it (Debian: apt install chromium)")
    with sync_playwright() as driver, driver.chromium.launch(executable_path=chromium, args=ARGUMENTS) as browser:
        window = browser.new_page(
            viewport={"width": width_px, "height": height_px},
            device_scale_factor=scale,
            color_scheme=mode,
            reduced_motion="reduce",
        )
        window.goto(page.as_uri() + (f"#{token}" if token else ""))
        if window.locator(".heatmap").count():  # (the page's policy forbids the eval that wait_for_function needs)
            window.locator("html[data-ready]").wait_for(state="attached")
        if token and not window.locator("#card.pinned").count():
            raise ValueError(f"{page.name} has no token {token!r}: name it as a link of the page does, like t12-p40")
        if whole:
            window.evaluate("document.querySelectorAll('.chart:not([data-drawn])').forEach(draw)")
        expect(window.locator(".chart[data-drawn]:not([data-ready])")).to_have_count(0, timeout=PATIENCE_MS)
        image.parent.mkdir(parents=True, exist_ok=True)
        window.screenshot(path=image, full_page=whole)
    return image


def main() -> None:
    """Draw the page named on the command line."""
    parser = argparse.ArgumentParser(description="Draw a report page into a picture.")
    parser.add_argument("page")
    parser.add_argument("image")
    parser.add_argument("--mode", choices=("light", "dark"), default="light")
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=960)
    parser.add_argument("--token", default="", help="open the card of one token, as in a link: t12-p40")
    parser.add_argument("--whole", action="store_true", help="the full length of the page")
    given = parser.parse_args()
    try:
        path = screenshot(
            given.page,
            given.image,
            mode=given.mode,
            width_px=given.width,
            height_px=given.height,
            token=given.token,
            whole=given.whole,
        )
    except ValueError as error:
        parser.error(str(error))
    print(path)


if __name__ == "__main__":
    main()
