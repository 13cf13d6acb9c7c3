"""Run commands, one a core at a time, and print how each went: `python drive.py FILE` with {name: [argv...]}."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SECONDS = 120


def went(argv):
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return [1, f"no end within {SECONDS} s"]
    except OSError as e:
        return [77, str(e)]
    return [done.returncode, done.stderr[-2000:]]


if __name__ == "__main__":
    commands = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        print(json.dumps(dict(zip(commands, pool.map(went, commands.values()), strict=True))))
