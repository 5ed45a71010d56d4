"""Exits with 0 while the service on this machine answers /healthz, else with 1 and a line on stderr.

The port is that of the setting server.http_port when it comes from the environment, else the default.
Answering is the supervisor's: a service that loads its models or mends an engine is healthy, but not
ready (/readyz), and restarting its container would only take longer.
"""

import http.client
import os
import sys

TIMEOUT_S = 2.0

port = int(os.environ.get("TICKRING_SERVER__HTTP_PORT", "8002"))
# Not 127.0.0.1: a service told to listen on :: answers there only.
connection = http.client.HTTPConnection("localhost", port, timeout=TIMEOUT_S)
try:
    connection.request("GET", "/healthz")
    status = connection.getresponse().status
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"healthcheck: localhost:{port}: {error}")
if status != http.HTTPStatus.OK:
    sys.exit(f"healthcheck: localhost:{port}: HTTP status {status}")
