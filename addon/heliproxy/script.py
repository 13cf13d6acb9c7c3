"""What `mitmdump -s` and `mitmweb -s` load from an installed package."""

from heliproxy.addon import addons

__all__ = ["addons"]
