"""An export on a page: draw, or drop a picture, and see the probabilities. Nothing of it comes from, or goes to, anywhere else."""

import contextlib
import errno
import os
import signal
import socket
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from pipeline.errors import ConfigError, PipelineError
from pipeline.predict.exported import Exported
from pipeline.runtime.addresses import PUBLIC, family, url
from pipeline.runtime.console import say
from pipeline.runtime.signals import STOP_SIGNALS

PORTS = range(7860, 7960)  # tried in turn where none is asked for; Gradio's own
PATIENCE = 5.0  # seconds for answers that are being given at the end


def demo(export: Path, host: str, port: int | None) -> None:
    """Show the page of an export until a signal comes.

    Raises:
        ConfigError: there is no such export; or the port is taken, or the host not ours.
        DataError: the export is damaged.
        PipelineError: Gradio is not installed.
    """
    exported = Exported.of(export)
    exported.probabilities(np.zeros((1, *exported.about.shape), np.uint8))  # what it cannot do is known before there is a page
    if find_spec("gradio") is None:
        raise PipelineError("the demo is a page of Gradio, which is not installed; ./setup demo installs it")
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    folder = tempfile.TemporaryDirectory(prefix="pipeline-demo-")  # for what a stranger uploads
    with contextlib.suppress(KeyboardInterrupt), folder, _opened(host, port) as listening:
        os.environ["GRADIO_TEMP_DIR"] = folder.name  # it is read when it is imported
        _serve(exported, export, host, listening)
    say("demo: ended")


def _serve(exported: Exported, export: Path, host: str, listening: socket.socket) -> None:
    """Until Ctrl-C; by a thread, since the web server would make of signals what it likes."""
    import uvicorn

    from pipeline.demo.page import app

    config = uvicorn.Config(app(exported, host), log_level="error", access_log=False, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        say(f"demo of {export}: {url(host, listening.getsockname()[1])}  (Ctrl-C ends it)")
        if host in PUBLIC:
            say("whoever reaches this machine can use it")
        thread.join()
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


def _opened(host: str, port: int | None) -> socket.socket:
    tries = PORTS if port is None else [port]
    for tried in tries:
        try:
            return socket.create_server((host, tried), family=family(host))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or tried == tries[-1]:
                raise ConfigError(f"demo: {host}:{tried}: {error.strerror or error}; choose another --port or --host") from None
    raise AssertionError("there is a port to try")
