#!/usr/bin/env python3
"""`python -m segpack.record.transformers`, for a clone in which the Python package is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "extractor/python/python"))

from segpack.record import _trace_file, transformers  # noqa: E402

if __name__ == "__main__":
    _trace_file.run(transformers.main)
