"""A page in a real Chromium without a window: what it says on its console, and how it is laid out."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LAYOUT = """
const visible = (e) => { const b = e.getBoundingClientRect(); return b.width > 0 && b.height > 0; };
const inside = (a, b) => a.left >= b.left - 1 && a.right <= b.right + 1 && a.top >= b.top - 1 && a.bottom <= b.bottom + 1;
const overlap = (a, b) =>
  Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
function measure(frame) {
  const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement;
  const found = { wide: root.scrollWidth - root.clientWidth, charts: 0, images: 0, cut: [], over: [] };
  for (const svg of page.querySelectorAll("svg")) {
    found.charts += visible(svg) && svg.querySelectorAll("text").length > 0 && svg.getAttribute("aria-label") !== "";
    const texts = [...svg.querySelectorAll("text")].map((e) => ({ text: e.textContent, box: e.getBoundingClientRect() }));
    for (const [k, one] of texts.entries()) {
      if (!inside(one.box, svg.getBoundingClientRect())) found.cut.push(one.text);
      for (const other of texts.slice(k + 1)) if (overlap(one.box, other.box)) found.over.push(one.text + " and " + other.text);
    }
  }
  for (const image of page.images) found.images += image.complete && image.naturalWidth > 0 && image.alt !== "";
  for (const e of page.querySelectorAll("h1, h2, h3, p, dt, dd, th, td, figcaption, li, a, small, summary"))
    if (visible(e) &&
        e.scrollWidth > e.clientWidth + 1 && view.getComputedStyle(e).display !== "inline") found.cut.push(e.textContent.slice(0, 60));
  found.paper = view.getComputedStyle(page.body).backgroundColor;
  found.ink = view.getComputedStyle(page.body).color;
  const text = page.querySelector("svg text");
  found.chart_ink = text && view.getComputedStyle(text).fill;
  return found;
}
onload = () => { document.getElementById("found").textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(measure)); };
"""


def console(page: Path) -> list[str]:
    """What a browser that opens `page` complains of: errors of scripts, and whatever it was kept from fetching."""
    return re.findall(r"CONSOLE.*", _run(page).stderr)


def layout(page: Path, *widths: int, dark: bool = False) -> list[dict[str, Any]]:
    """For each width in pixels: by how much the page is wider, charts and images that are there, texts that are cut or lie over others."""
    frames = "".join(f'<iframe style="width:{width}px;height:900px" srcdoc="{html.escape(page.read_text())}"></iframe>' for width in widths)
    scheme = '<meta name="color-scheme" content="light dark">'
    copy = page.with_name("framed.html")
    copy.write_text(f"<!doctype html>{scheme}<style>iframe {{ border: 0 }}</style><pre id=found></pre>{frames}<script>{LAYOUT}</script>")
    dumped = _run(copy, *(["--blink-settings=preferredColorScheme=0"] if dark else [])).stdout
    found = re.search(r'<pre id="found">(.*?)</pre>', dumped, re.DOTALL)
    assert found, dumped[-2000:]
    return list(json.loads(html.unescape(found[1])))


def _run(page: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM
    headless = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1400,1000", "--dump-dom"]
    return subprocess.run([CHROMIUM, *headless, *flags, page.absolute().as_uri()], capture_output=True, text=True, timeout=100, check=True)
