"""The page, by Gradio: on the left what is asked about, on the right what the export says."""

import html
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import gradio as gr
import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.data.images import pixels
from pipeline.demo.answers import Answer, answer
from pipeline.demo.drawing import content, drawn, prepared
from pipeline.errors import DataError
from pipeline.predict.exported import About, Exported
from pipeline.runtime.addresses import is_ours

HERE = Path(__file__).parent
SHOWN = 10  # classes at most
LARGEST = 64 << 20  # bytes of a picture
FONTS = ("system-ui", "sans-serif")
CANVAS = '<canvas class="{0}" width="280" height="280" role="img" aria-label="a place to draw, {0}"></canvas>'
BUTTONS = '<div><button type="button">Clear</button> <label>Choose a picture<input type="file" accept="image/*"></label></div>'
# Gradio puts scripts and styles into its page, and compiles those that ask; none of it needs anything from elsewhere.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'"
)


def app(exported: Exported, host: str) -> FastAPI:
    """All that is served on `host`."""
    served = FastAPI(openapi_url=None)
    served.add_middleware(Guard, host=host)
    theme = gr.themes.Default(font=FONTS, font_mono=("monospace",), primary_hue="blue", secondary_hue="blue")
    how: dict[str, Any] = {"theme": theme, "css": (HERE / "page.css").read_text(), "footer_links": []}
    gr.mount_gradio_app(served, page(exported), "/", server_name=host, ssr_mode=False, mcp_server=False, run_history=False, **how)
    return served


def page(exported: Exported) -> gr.Blocks:
    about = exported.about
    shape = "×".join(map(str, about.shape))  # noqa: RUF001
    blocks: gr.Blocks = gr.Blocks(title="pipeline demo", analytics_enabled=False)
    with blocks:
        gr.HTML(f"<h1>{html.escape(about.source or 'an export')}: {len(about.classes)} classes, images of {shape}</h1>")
        with gr.Row():
            with gr.Column():
                asked = gr.HTML(
                    "", html_template=_asking(about), js_on_load=(HERE / "ask.js").read_text(), elem_id="asked", largest=LARGEST
                )
            with gr.Column():
                label = gr.Label(label="probabilities", num_top_classes=SHOWN, elem_id="answer")
                seen = gr.HTML(elem_id="seen")

        def told(value: object) -> Answer:
            try:
                return answer(exported, _image(value if isinstance(value, str) else "", about))
            except DataError as error:
                return None, f"<p>{html.escape(str(error))}</p>"

        # While one is answered, of those that come meanwhile the last waits, and the others are left out.
        asked.input(told, asked, [label, seen], show_progress="hidden", api_visibility="private", trigger_mode="always_last")
    return blocks


def _asking(about: About) -> str:
    """The left half: a canvas where images are grey, and what else may be asked about."""
    if about.shape[0] > 1:
        return f"<p>Choose a picture, or drop or paste one; it is scaled, and cut about its centre.</p>{BUTTONS}"
    ink = "dark on light" if about.is_dark_on_light else "light on dark"
    words = f"Draw {ink}, as the images were that it has learnt from; or choose, drop or paste a picture of that kind."
    return f"<p>{words}</p>{CANVAS.format(ink)}{BUTTONS}"


def _image(value: str, about: About) -> NDArray[np.uint8] | None:
    """What is asked about, as [C, H, W]: a picture is its name and its data, a drawing has no name; None where there is nothing.

    Raises:
        DataError: it cannot be read.
    """
    name, _, link = value.partition(" ")
    if not name:
        return prepared(drawn(link), about) if link else None
    name = unquote(name)
    if not (data := content(link, name)):
        raise DataError(f"cannot read the image {name}: it is empty, or has more than {LARGEST >> 20} MB")
    channels, *size = about.shape
    return pixels(data, channels, (size[0], size[1]), name)


class Guard:
    """Answers nobody who calls this machine by a name that is not its own, and lets the page ask for nothing from elsewhere."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app, self._host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        if scope["type"] in ("http", "websocket") and not self._is_ours(scope):
            await PlainTextResponse("421 this is no name of the demo's machine; use localhost, or its address\n", 421)(scope, receive, send)
        elif scope["type"] == "http" and scope["path"].rstrip("/").endswith("/upload"):  # Gradio's, which would write it to the disk
            await PlainTextResponse("403 the page sends pictures by itself\n", 403)(scope, receive, send)
        else:
            await self._app(scope, receive, guarded)

    def _is_ours(self, scope: Scope) -> bool:
        try:
            return is_ours(Headers(scope=scope).get("host", ""), self._host)
        except ValueError:
            return False
