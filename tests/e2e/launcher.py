"""Becomes `python -m server`, in a process that the kernel ends when the tests end."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Arguments: the process id of the tests, then the server's own."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):  # the tests ended before the call
        sys.exit(1)
    os.execv(sys.executable, [sys.executable, "-m", "server", *sys.argv[2:]])


if __name__ == "__main__":
    main()
