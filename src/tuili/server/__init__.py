"""One server that OpenAI, Ollama and Anthropic clients already speak to."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI


def create_app() -> FastAPI:
    """The server as an ASGI application, for `uvicorn --factory tuili.server:create_app` and other hosts.

    Settings are from TUILI_SERVE_ variables and the file that TUILI_SERVE_CONFIG names; addresses, TLS and signals
    are the host's business. Raises InvalidRequestError.
    """
    from tuili.program_log import hand_down
    from tuili.runtime.pool.model_pool import open_pool
    from tuili.server import app  # slow to import
    from tuili.server.settings.settings_sources import resolve

    settings = resolve(environ=os.environ).settings
    hand_down(settings.log_format)
    return app.create_app(settings.http(), open_pool(settings.pool()))
