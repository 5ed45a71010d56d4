"""Write windows of S&P 500 history to a file, for commands that take one.

python -m examples.sp500.save_windows windows.npy --last 256
tickring bench load --input windows.npy --rate 200
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from examples.sp500.features import load_history, make_windows


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 1 the file could not be written, 2 misuse."""
    parser = argparse.ArgumentParser(description="Write windows of S&P 500 history, FP32 [n, 50, 60].")
    parser.add_argument("file", type=Path, help="a .npy file; the newest window comes last")
    parser.add_argument("--last", type=int, default=0, help="so many of the newest; all of them where absent")
    options = parser.parse_args(arguments)
    windows = make_windows(load_history()).windows
    if not 0 <= options.last <= len(windows):
        parser.error(f"--last is {options.last}, allowed are 0 to {len(windows)}")
    windows = windows[-options.last :]
    try:
        with options.file.open("wb") as file:  # np.save would add a suffix to the name
            np.save(file, windows)
    except OSError as error:
        print(f"save_windows: cannot write {options.file}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"{options.file}: {len(windows)} windows of {' x '.join(map(str, windows.shape[1:]))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
