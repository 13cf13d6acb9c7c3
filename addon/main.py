from heliproxy.addon import addons  # noqa: F401  `mitmdump -s addon/main.py`: mitmproxy looks for this name
