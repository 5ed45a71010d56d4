"""For what can only be seen from outside: Python in a process of its own, with our packages."""

import os
import sys

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
