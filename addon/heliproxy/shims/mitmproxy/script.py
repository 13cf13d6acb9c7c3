# What `heliproxy addon-path` names: addon/main.py of a clone, for an installed package.
# In a folder of its own, because mitmproxy puts a script's folder first on sys.path, and leaves it there.
from heliproxy.addon import addons  # noqa: F401
