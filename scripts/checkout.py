"""Lets the scripts beside it run where the package is not installed, from its checkout."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from mobilenext.start import start as start
