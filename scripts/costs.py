#!/usr/bin/env python3
"""`heliproxy costs` under the name it is known by; see `scripts/costs.py --help`."""

import os
import sys
from pathlib import Path

heliproxy = Path(__file__).resolve().with_name("heliproxy")
os.execv("/bin/sh", ["sh", str(heliproxy), "costs", *sys.argv[1:]])
