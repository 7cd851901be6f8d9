"""The page, by Gradio: on the left what is asked about, on the right what the export says."""

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.data.images import pixels
from pipeline.demo.answers import Answer, answer
from pipeline.demo.drawing import drawn, prepared
from pipeline.errors import DataError
from pipeline.predict.exported import Exported
from pipeline.runtime.addresses import is_ours

HERE = Path(__file__).parent
SHOWN = 10  # classes at most
LARGEST = "64mb"  # of a picture
FONTS = ("system-ui", "sans-serif")
CANVAS = """<p>Draw here, or drop a picture below.</p>
<canvas width="280" height="280" role="img" aria-label="a place to draw"></canvas>
<button type="button">Clear</button>"""
# Gradio puts scripts and styles into its page, and compiles that of the canvas; none of it needs anything from elsewhere.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'"
)


def app(exported: Exported, host: str) -> FastAPI:
    """All that is served on `host`."""
    served = FastAPI(openapi_url=None)
    served.add_middleware(Guard, host=host)
    theme = gr.themes.Default(font=FONTS, font_mono=("monospace",), primary_hue="blue", secondary_hue="blue")
    how: dict[str, Any] = {"theme": theme, "css": (HERE / "page.css").read_text(), "max_file_size": LARGEST, "footer_links": []}
    gr.mount_gradio_app(served, page(exported), "/", server_name=host, ssr_mode=False, mcp_server=False, run_history=False, **how)
    return served


def page(exported: Exported) -> gr.Blocks:
    about = exported.about
    shape = "×".join(map(str, about.shape))  # noqa: RUF001
    hide: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "always_last"}
    blocks: gr.Blocks = gr.Blocks(title="pipeline demo", analytics_enabled=False)
    with blocks:
        gr.HTML(f"<h1>{html.escape(about.source or 'an export')}: {len(about.classes)} classes, images of {shape}</h1>")
        with gr.Row():
            with gr.Column():
                if about.shape[0] == 1:
                    canvas = gr.HTML(html_template=CANVAS, js_on_load=(HERE / "canvas.js").read_text(), elem_id="canvas")
                seen = gr.HTML(elem_id="seen")
            with gr.Column():
                label = gr.Label(label="probabilities", num_top_classes=SHOWN, elem_id="answer")
        picture = gr.Image(
            label="a picture", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=220, elem_id="picture"
        )

        def of_drawing(link: str) -> Answer:
            return _told(exported, lambda: prepared(drawn(link), about))

        def of_picture(path: str | None) -> Answer:
            channels, *size = about.shape
            name, content = (Path(path).name, Path(path).read_bytes()) if path else ("", b"")
            return _told(exported, lambda: pixels(content, channels, (size[0], size[1]), name) if path else None)

        if about.shape[0] == 1:
            canvas.input(of_drawing, canvas, [label, seen], **hide)
        picture.change(of_picture, picture, [label, seen], **hide)
    return blocks


def _told(exported: Exported, image: Callable[[], NDArray[np.uint8] | None]) -> Answer:
    """The answer, or a word on what is wrong with the image."""
    try:
        return answer(exported, image())
    except DataError as error:
        return None, f"<p>{html.escape(str(error))}</p>"


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
        else:
            await self._app(scope, receive, guarded)

    def _is_ours(self, scope: Scope) -> bool:
        try:
            return is_ours(Headers(scope=scope).get("host", ""), self._host)
        except ValueError:
            return False
