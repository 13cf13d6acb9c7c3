"""Helicone's REST API and log ingestion, served locally: one Starlette app for every door."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from heliproxy.addon import Heliproxy


def create_app(addon: Heliproxy) -> Starlette:
    """The app behind port 8585 and behind Helicone's API hosts on the proxy port."""
    from heliproxy.api.app import build

    return build(addon)
