"""How charts look: in a picture by the colours of paper, on the page by those of its style sheet, light or dark."""

import html
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

mpl.use("agg")
STYLE: dict[str, Any] = {
    "svg.hashsalt": "pipeline",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called $x$
}
PAPER = {"ink": "#1c2733", "line": "#d7dee5", "train": "#b45309", "held": "#1d4ed8", "mark": "#7e22ce", "good": "#15803d"}
SENTINELS = {name: f"#0102{k:02x}" for k, name in enumerate(PAPER)}  # stand for var(--name) of the page

Colors = Mapping[str, str]
Drawing = Callable[[Colors], Figure]


def picture(drawing: Drawing) -> bytes:
    """As PNG."""
    content = io.BytesIO()
    with _styled(PAPER):
        drawing(PAPER).savefig(content, format="png", dpi=120)
    return content.getvalue()


def svg(drawing: Drawing, alt: str) -> str:
    """For a page: it has no size of its own, its text is text in the font of the page, and its colours are those of the page."""
    content = io.StringIO()
    with _styled(SENTINELS):
        drawing(SENTINELS).savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = content.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"<[^<>]+>", _tag, text)  # what is between tags may be anything: the name of a class, say
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{html.escape(alt)}">', text, count=1)
    return re.sub(r"\n\s*", "\n", text)


def _tag(found: re.Match[str]) -> str:
    tag = re.sub(r' id="[\w.]+_\d+"', "", found[0])
    tag = re.sub(r'font: ([\d.]+px) [^;"]*', r"font-size: \1", tag)
    for name, color in SENTINELS.items():
        tag = tag.replace(color, f"var(--{name})")
    return tag


@contextmanager
def _styled(colors: Colors) -> Iterator[None]:
    ink, line = colors["ink"], colors["line"]
    style = dict(STYLE)
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor"), ink)
    style |= dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), line)
    style |= {"axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True, "grid.linewidth": 0.6}
    style |= {"font.size": 11, "axes.titlesize": 12}
    with mpl.rc_context(style), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.filterwarnings("ignore", "Glyph")  # the reader's fonts have what matplotlib's lacks
        yield
