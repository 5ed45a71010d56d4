"""Entry point of every child process: `python -m server.child ROLE CONTROL_FD`, by the supervisor only."""

import logging
import os
import signal
import socket
import sys
from functools import partial
from importlib import import_module

from server import considerate, control
from server.boot import Boot


def main() -> None:
    """Waits for the boot message, then becomes a front end, an engine or the telemetry process."""
    # The supervisor decides when to end; a Ctrl-C reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    role, control_fd = sys.argv[1], int(sys.argv[2])
    sock = socket.socket(fileno=control_fd)
    message = control.receive(sock)
    if message is None:
        os._exit(1)
    boot = Boot.from_message(message)
    control.die_with_parent(boot.parent_pid)
    # Here, not above: a front end must never load torch, an engine never needs gRPC.
    if role in ("frontend", "telemetry"):
        # gRPC's core writes to stderr what a peer has sent, line ends and all: lines that look like ours.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        # And its Python a traceback for a path that is no UTF-8. Bugs of ours are logged by the guard.
        logging.getLogger("grpc").setLevel(logging.CRITICAL)
    if role == "frontend":
        from server import frontend

        frontend.run(boot, sock)
    elif role == "telemetry":
        from server.telemetry import exporter

        exporter.run(boot, sock)
    else:
        engine = considerate.done(partial(import_module, "server.engine"), considerately=boot.considerate)
        engine.run(boot, sock)


if __name__ == "__main__":
    main()
