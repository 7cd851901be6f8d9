"""A real browser for pages that live: Debian's Chromium, driven by playwright, so that a test can wait, click and look again."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
MISSING = "" if CHROMIUM else "looking at pages needs a browser: apt-get install chromium"


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


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Browser, address: str, *, width: int = 1280, dark: bool = False) -> Iterator[Seen]:
    """The page at `address`, a file's or a server's, once it has loaded."""
    with browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light") as context:
        seen = Seen(context.new_page())
        seen.page.on("console", lambda said: seen.complaints.append(said.text) if said.type in ("error", "warning") else None)
        seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        own = (address.partition("#")[0], "data:", "blob:")
        seen.page.on("request", lambda asked: None if asked.url.startswith(own) else seen.elsewhere.append(asked.url))
        seen.page.goto(address)
        yield seen
