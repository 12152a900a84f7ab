"""The playground in a real browser: it connects, streams, says what is wrong, keeps the key, and fits the screen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from server_process import KEY, MODEL, Server

from runtime.server.pages import PATHS

Reply = Callable[[str], list[int]]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no chromium here: apt install chromium"
)
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 375, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    context = browser.new_context(viewport=DESKTOP)
    opened = context.new_page()
    opened.goto(server.url)
    yield opened
    context.close()


def give_key(page: Page, key: str) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_label("API key").press("Tab")


@pytest.mark.parametrize("path", PATHS)
def test_the_page_needs_no_key_and_allows_nothing_from_elsewhere(server: Server, path: str) -> None:
    answer = httpx.get(server.url + path)
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


@needs_browser
def test_with_the_key_it_shows_the_model_and_its_context(page: Page) -> None:
    give_key(page, KEY)
    expect(page.locator("#model")).to_have_text(f"{MODEL} · 256 tokens")


@needs_browser
def test_an_answer_streams_into_the_page_with_its_numbers(page: Page, server: Server, reply: Reply) -> None:
    reply("café 🎉 the quick")
    give_key(page, KEY)
    page.get_by_label("Message").fill("hi")
    page.get_by_label("Message").press("Enter")
    answer = page.locator("#turns li.assistant")
    expect(answer.locator("> span")).to_have_text("café 🎉 the quick")
    expect(answer.locator("small")).to_contain_text("first token after")
    expect(page.locator("#turns li.user")).to_have_text("hi")


@needs_browser
def test_parameters_reach_the_engine(page: Page, server: Server, reply: Reply) -> None:
    reply("ok")
    give_key(page, KEY)
    page.locator("#temperature").fill("0.5")
    page.get_by_label("Most tokens").fill("7")
    page.get_by_label("Seed").fill("11")
    page.get_by_label("Message").fill("hi")
    page.get_by_role("button", name="Send").click()
    expect(page.locator("#turns li.assistant small")).to_be_visible()
    sampling = server.engine.submits[0].sampling
    assert (sampling.temperature, sampling.max_tokens, sampling.seed) == (0.5, 7, 11)


@needs_browser
def test_stop_ends_the_answer_and_frees_the_engine(page: Page, server: Server, reply: Reply) -> None:
    reply("the quick brown fox")
    server.engine.pause_at = 2
    give_key(page, KEY)
    page.get_by_label("Message").fill("hi")
    page.get_by_label("Message").press("Enter")
    expect(page.locator("#turns li.assistant > span")).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    server.engine.wait_for(lambda: len(server.engine.aborted) == 1, "the request is aborted")


@needs_browser
def test_a_wrong_key_is_said_in_the_page(page: Page) -> None:
    give_key(page, "sk-wrong")
    expect(page.get_by_role("alert")).to_contain_text("valid API key")
    expect(page.locator("#model")).to_have_text("not connected")


@needs_browser
def test_the_key_stays_in_this_browser_until_it_is_forgotten(page: Page, server: Server) -> None:
    give_key(page, KEY)
    expect(page.locator("#model")).to_contain_text(MODEL)
    page.reload()
    expect(page.locator("#model")).to_contain_text(MODEL)
    assert page.context.cookies() == []
    page.get_by_role("button", name="Forget it").click()
    assert page.evaluate("localStorage.length") == 0


@needs_browser
def test_it_talks_to_its_own_endpoint_only(browser: Browser, server: Server, reply: Reply) -> None:
    reply("ok")
    context = browser.new_context()
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    give_key(page, KEY)
    page.get_by_label("Message").fill("hi")
    page.get_by_label("Message").press("Enter")
    expect(page.locator("#turns li.assistant small")).to_be_visible()
    expect(page.locator("#gauge-running")).to_have_text("1")  # the scripted engine's number, by way of /metrics
    context.close()
    assert [url for url in asked if not url.startswith((server.url, "data:"))] == []


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_fits_the_screen_in_both_schemes(
    browser: Browser, server: Server, reply: Reply, size: dict[str, int], scheme: str
) -> None:
    reply("the quick brown fox " * 5)
    context = browser.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(server.url)
    give_key(page, KEY)
    page.get_by_label("Message").fill("a" * 90)
    page.get_by_label("Message").press("Enter")
    expect(page.locator("#turns li.assistant small")).to_be_visible()
    width, ink, ground = page.evaluate(
        """() => [document.documentElement.scrollWidth,
                  getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"""
    )
    context.close()
    assert width <= size["width"]
    assert contrast(ink, ground) >= 7  # WCAG 2.2, level AAA
    assert (luminance(ground) > 0.5) == (scheme == "light")


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(r, g, b)", 0 to 1 (WCAG 2.2)."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)
