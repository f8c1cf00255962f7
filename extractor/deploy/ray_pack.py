#!/usr/bin/env python3
"""`python -m segpack.ray`, for a clone in which the Python package is not installed.

    python ray_pack.py hf://Qwen/Qwen3-Omni-30B-A3B-Instruct -o /shared/omni.segpack --parts 8 \\
        --folder /shared/parts -- --codec bf16-rans
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python/python"))

from segpack.ray import main  # noqa: E402

if __name__ == "__main__":
    main()
