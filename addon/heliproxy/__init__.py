"""A local, self-hosted Helicone as a mitmproxy addon."""

__version__ = "0.1.0"
