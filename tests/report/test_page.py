"""The page in a real headless Chromium: what a reader can see and do."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from shiftscope import report
from shiftscope.core.result import Panel, Result
from shiftscope.report.screenshot import ARGUMENTS

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
TOKEN = ".heatmap .k"
N_TEXTS, N_TOKENS = 14, 60


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def table(make_table: Callable[..., pa.Table]) -> pa.Table:
    return make_table(N_TEXTS, N_TOKENS)


@pytest.fixture(scope="module")
def written(make_result: Callable[..., Result], table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report.write(make_result(table), tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a page, fail on any console message, error or request that leaves the file, and close it at the end."""
    contexts, complaints = [], []

    def check_request(url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            complaints.append(f"request to {url}")

    def open_(path: Path, link: str = "", **options: object) -> Page:
        context = browser.new_context(reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}") or dialog.dismiss())
        page.on("request", lambda request: check_request(request.url))
        page.goto(path.as_uri() + link)
        page.locator("html[data-ready]").wait_for(state="attached")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def row_at(table: pa.Table, text: int, position: int) -> dict[str, object]:
    return table.slice(text * N_TOKENS + position, 1).to_pylist()[0]


def focused(page: Page) -> int:
    return int(page.evaluate("document.activeElement.dataset.row ?? -1"))


def status(page: Page) -> str:
    return page.inner_text("[data-role=status]")


def test_charts_are_drawn_when_they_come_into_view_and_again_in_the_dark(opened, written: Path) -> None:
    page = opened(written)
    assert page.locator(".chart svg.marks").count() < 6
    page.evaluate("document.querySelectorAll('.chart:not([data-drawn])').forEach(draw)")
    expect(page.locator(".chart[data-ready] svg.marks")).to_have_count(6, timeout=60_000)
    assert "mean JS (nats)" in page.locator(".chart svg.marks").nth(1).text_content()
    page.click("#theme")
    expect(page.locator(".chart[data-ready=dark] svg.marks")).to_have_count(6, timeout=60_000)


def test_hover_shows_both_models_top_tokens_with_probabilities_and_ranks(
    opened, written: Path, table: pa.Table
) -> None:
    page = opened(written)
    page.locator(TOKEN).nth(7).hover()
    card = page.locator("#card")
    card.wait_for(state="visible")
    expected = row_at(table, 0, 7)
    names = {int(i): piece for i, piece in json.loads(table.schema.metadata[b"tokens"]).items()}
    for side, other in (("base", "tuned"), ("tuned", "base")):
        lines = card.locator(f"table.law.{side} tbody tr")
        assert lines.count() >= 5
        for k in range(5):
            cells = lines.nth(k).locator("td").all_inner_texts()
            piece = names[expected[f"top_{side}_ids"][k]]
            assert cells[1].split(" ◆")[0].strip() == visible(piece)
            assert cells[0] == str(k + 1)
            assert shown_percent(cells[3]) == pytest.approx(100 * np.exp(expected[f"top_{side}_logp"][k]), abs=0.06)
            assert shown_percent(cells[4]) == pytest.approx(
                100 * np.exp(expected[f"top_{side}_logp_{other}"][k]), abs=0.06
            )
        emitted = card.locator(f"table.law.{side} tr.emitted td").all_inner_texts()
        assert emitted[0] == str(expected[f"rank_{side}"] + 1)
        assert emitted[5] == str(expected[f"rank_{other}"] + 1)
    for words in (
        "JS",
        "TV",
        "KL(base‖tuned)",
        "entropy, tuned",
        "log p ◆, base",
        "mass moved by base rank",
        "position 7",
        expected["class"],
    ):
        assert words in card.inner_text()
    page.mouse.move(5, 5)
    card.wait_for(state="hidden")


def visible(piece: str) -> str:
    return piece.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")


def shown_percent(text: str) -> float:
    return float(re.sub(r"[<>% ]", "", text))


def test_filters_change_what_is_shown_and_reset_brings_it_back(opened, written: Path, table: pa.Table) -> None:
    page, js = opened(written), table["js_nats"].to_numpy()
    assert status(page) == f"{N_TEXTS * N_TOKENS:,} positions in {N_TEXTS} texts."
    page.fill("[data-role=least]", "8")
    assert status(page).startswith(f"{(js >= 0.1).sum()} of {len(js)} positions match")
    page.click("[data-role=reset]")
    page.locator("[data-role=classes] input[value=unshifted]").uncheck()
    kept = table["class"].to_numpy(zero_copy_only=False) != "unshifted"
    assert status(page).startswith(f"{kept.sum()} of")
    page.fill("[data-role=from]", "10")
    page.fill("[data-role=to]", "19")
    position = table["position"].to_numpy()
    kept &= (position >= 10) & (position <= 19)
    assert status(page).startswith(f"{kept.sum()} of")
    texts = len(np.unique(table["text"].to_numpy()[kept]))
    assert page.locator(".text:not([hidden])").count() == min(texts, 10)
    page.click("[data-role=reset]")
    piece = table["token"][3].as_py()
    page.fill("[data-role=token]", visible(piece))
    same = table["token"].to_numpy(zero_copy_only=False) == piece
    assert status(page).startswith(f"{same.sum()} of")
    bright = page.locator(".text:not([hidden]) .k:not(.dim)").all_inner_texts()
    assert bright
    assert {text.strip() for text in bright} == {visible(piece).lstrip("␣")}
    page.click("[data-role=reset]")
    assert page.locator(".k.dim").count() == 0


def test_sorting_changes_the_order_of_the_texts(opened, written: Path, table: pa.Table) -> None:
    page, js = opened(written), table["js_nats"].to_numpy().reshape(N_TEXTS, N_TOKENS)
    for by, key in (("mean", js.mean(1)), ("max", js.max(1)), ("share", (js > 0.1).mean(1))):
        page.select_option("[data-role=sort]", by)
        order = [int(t) for t in page.eval_on_selector_all(".text", "nodes => nodes.map(n => n.dataset.t)")]
        assert (np.diff(key[order]) <= 1e-3).all()  # the page keeps float16
        assert order != sorted(order)
    page.select_option("[data-role=sort]", "order")
    assert page.eval_on_selector_all(".text", "nodes => nodes.map(n => Number(n.dataset.t))") == list(range(N_TEXTS))


def test_the_keyboard_alone_reaches_every_token(opened, written: Path) -> None:
    page = opened(written)
    assert page.locator(".k[tabindex='0']").count() == 1
    page.locator(".k[tabindex='0']").focus()
    page.locator("#card").wait_for(state="visible")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert focused(page) == 2
    page.keyboard.press("ArrowLeft")
    assert focused(page) == 1
    assert page.locator(".k[tabindex='0']").count() == 1
    page.keyboard.press("End")
    assert focused(page) == N_TOKENS - 1
    page.keyboard.press("ArrowRight")
    assert focused(page) == N_TOKENS
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Home")
    before = page.evaluate("boxOf(document.activeElement).top")
    page.keyboard.press("ArrowDown")
    assert focused(page) > 0
    assert page.evaluate("boxOf(document.activeElement).top") != before
    page.keyboard.press("ArrowUp")
    assert focused(page) == 0
    page.keyboard.press("n")
    assert "JS" in page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("Enter")
    assert page.locator("#card.pinned").is_visible()
    assert re.search(r"#t\d+-p\d+$", page.url)
    page.keyboard.press("Escape")
    assert page.locator("#card").is_hidden()


def test_a_link_opens_the_page_at_its_token(opened, written: Path) -> None:
    page = opened(written, "#t12-p40")
    assert focused(page) == 12 * N_TOKENS + 40
    assert "text doc-12 · position 40" in page.inner_text("#card")
    assert page.evaluate(
        "(() => { const b = boxOf(document.activeElement); return b.top >= 0 && b.bottom <= innerHeight; })()"
    )
    assert page.get_attribute("#card [data-copy]", "data-copy").endswith("report.html#t12-p40")
    page.click("#card .close")
    assert page.locator("#card").is_hidden()
    assert focused(page) == 12 * N_TOKENS + 40


def test_colours_follow_the_choice_and_the_class_is_not_by_colour_alone(opened, written: Path) -> None:
    page = opened(written)
    options = page.eval_on_selector_all("[data-role=color] option", "nodes => nodes.map(n => n.value)")
    assert options == ["js_nats", "kl_base_tuned_nats", "kl_tuned_base_nats", "class", "entropy_change_nats"]
    seen = set()
    for option in options:
        page.select_option("[data-role=color]", option)
        seen.add(
            page.eval_on_selector(".texts", "node => [...node.querySelectorAll('.k')].map(k => k.className).join()")
        )
    assert len(seen) >= 4
    page.select_option("[data-role=color]", "class")
    styles = [
        page.eval_on_selector(f".legend .{step}", "node => getComputedStyle(node).borderBottomStyle")
        for step in ("c0", "c1", "c2")
    ]
    assert styles == ["none", "dotted", "solid"]


def test_dark_mode_follows_the_system_and_the_button(opened, written: Path) -> None:
    page = opened(written, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(18, 17, 16)"
    page.click("#theme")
    assert page.evaluate(background) == "rgb(250, 248, 245)"


def test_a_phone_has_no_sideways_scroll_and_a_tap_opens_the_card(opened, written: Path) -> None:
    page = opened(written, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page.evaluate("document.querySelectorAll('.chart:not([data-drawn])').forEach(draw)")
    expect(page.locator(".chart[data-ready]")).to_have_count(6, timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    token = page.locator(TOKEN).nth(20)
    token.tap()
    page.locator("#card.pinned").wait_for(state="visible")
    card, place = page.locator("#card").bounding_box(), token.bounding_box()
    assert card["width"] == 360
    assert card["y"] + card["height"] == pytest.approx(740, abs=1)
    assert place["y"] + place["height"] <= card["y"]  # the sheet does not hide the token it describes


def test_hostile_tokens_and_prompts_stay_text(opened, make_table, hostile: str, tmp_path: Path) -> None:
    table = make_table(2, 12, pieces=[hostile, "<b>", "&lt;", "\u2028", "<!--", "`${1}`", "\u202eabc"], prompt=hostile)
    result = Result(
        "compare tokens",
        table,
        {},
        {"base": hostile, "tuned": hostile, "command": hostile},
        [hostile],
        [hostile],
        [Panel(hostile, hostile, "texts", table)],
    )
    page = opened(report.write(result, tmp_path / "hostile.html"))
    page.locator(TOKEN).first.hover()
    page.locator("#card").wait_for(state="visible")
    assert page.locator("img").count() == 0
    assert page.locator("main b").count() == 0
    assert page.locator("p.prompt").first.inner_text() == hostile
    assert hostile in page.locator(".texts").inner_text()


def test_whitespace_is_visible_and_newlines_break_the_line(opened, tmp_path: Path) -> None:
    tokens = ["def", " f", ":", "\n", "  ", "\t", "x", ""]
    table = pa.table(
        {
            "text": [0] * 8,
            "position": list(range(8)),
            "token": tokens,
            "js_nats": [0.0, 0.2] * 4,
            "swapped": [True] + [False] * 7,
        }
    )
    page = opened(
        report.write(Result("m", table, {}, panels=[Panel("T", "", "texts", table)]), tmp_path / "white.html")
    )
    assert page.locator(".texts .k").all_inner_texts() == ["def", "f", ":", "↵", "␣␣", "⇥", "x", "∅"]
    tops = page.eval_on_selector_all(".texts .k", "nodes => nodes.map(n => n.getBoundingClientRect().top)")
    assert tops[3] == tops[0] < tops[4] == tops[7]  # the break comes after the mark, before the indentation
    assert "underline" in page.eval_on_selector(".texts .swapped", "node => getComputedStyle(node).textDecorationLine")


def test_sixty_thousand_positions_open_with_few_nodes_and_under_eight_megabytes(
    opened, make_noise, panels: list[Panel], tmp_path: Path
) -> None:
    table = make_noise(200, 300)
    path = report.write(
        Result("compare tokens", table, {}, panels=[Panel("Texts", "", "texts", table), *panels[:6]]),
        tmp_path / "big.html",
    )
    assert path.stat().st_size < 8_000_000
    page = opened(path)
    assert page.locator(TOKEN).count() <= 10 * 300
    assert page.evaluate("document.getElementsByTagName('*').length") < 8000
    page.locator("[data-role=more]").click()
    expect(page.locator(".text:not([hidden])")).to_have_count(30)
    page.select_option("[data-role=sort]", "max")
    assert page.locator(TOKEN).count() <= 30 * 300
