"""The style sheet, the scripts and the icon: files of the package, served with their types and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.staticfiles import StaticFiles

from heliproxy.api.pages.render import CONTENT_SECURITY_POLICY

FOLDER = Path(__file__).parent / "static"


class Assets(StaticFiles):
    """Files by name; browsers ask again each time, and are told that nothing changed."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER)

    def file_response(self, *args: Any, **kwargs: Any) -> Any:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
        return response
