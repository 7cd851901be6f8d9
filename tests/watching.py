"""A real browser: Debian's Chromium, driven by playwright, so that a test can wait, click, measure and look again."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
MISSING = "" if CHROMIUM else "looking at pages needs a browser: apt-get install chromium"
LAYOUT = """() => {
  const visible = (e) => { const b = e.getBoundingClientRect(); return b.width > 0 && b.height > 0; };
  const inside = (a, b) => a.left >= b.left - 1 && a.right <= b.right + 1 && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
  const overlap = (a, b) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
  const found = { charts: 0, images: 0, cut: [], over: [] };
  for (const svg of document.querySelectorAll("svg")) {
    found.charts += visible(svg) && svg.querySelectorAll("text").length > 0 && svg.getAttribute("aria-label") !== "";
    const texts = [...svg.querySelectorAll("text")].map((e) => ({ text: e.textContent, box: e.getBoundingClientRect() }));
    for (const [k, one] of texts.entries()) {
      if (!inside(one.box, svg.getBoundingClientRect())) found.cut.push(one.text);
      for (const other of texts.slice(k + 1)) if (overlap(one.box, other.box)) found.over.push(one.text + " and " + other.text);
    }
  }
  for (const image of document.images) found.images += image.complete && image.naturalWidth > 0 && image.alt !== "";
  for (const e of document.querySelectorAll("h1, h2, h3, p, dt, dd, th, td, figcaption, li, a, small, summary"))
    if (visible(e) && e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline")
      found.cut.push(e.textContent.slice(0, 60));
  const text = document.querySelector("svg text"), body = getComputedStyle(document.body);
  return { ...found, paper: body.backgroundColor, ink: body.color, chart_ink: text && getComputedStyle(text).fill };
}"""


@dataclass
class Seen:
    """A page that is open, and what it has done that a good page does not."""

    page: Page
    complaints: list[str] = field(default_factory=list)  # errors and warnings in the console
    elsewhere: list[str] = field(default_factory=list)  # what was asked of other places than the page's own

    @property
    def cut(self) -> int:
        """By how many pixels the page is wider than the window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth"))

    def said(self) -> str:
        """All complaints until now; playwright hands over what has come only while it is asked something."""
        self.page.evaluate("0")
        return "\n".join(self.complaints)

    def layout(self) -> dict[str, Any]:
        """Charts and images that are there, texts that are cut or lie over others, and colours."""
        return dict(self.page.evaluate(LAYOUT))


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Browser, address: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Seen]:
    """The page at `address`, a file's or a server's, once it has loaded."""
    with browser.new_context(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light") as context:
        seen = Seen(context.new_page())
        seen.page.on("console", lambda said: seen.complaints.append(said.text) if said.type in ("error", "warning") else None)
        seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        own = (address.partition("#")[0], "data:", "blob:")
        seen.page.on("request", lambda asked: None if asked.url.startswith(own) else seen.elsewhere.append(asked.url))
        seen.page.goto(address)
        yield seen
