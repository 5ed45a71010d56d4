#!/bin/sh
# install_wheel.sh PREFIX FOLDER: installs the wheel that build_wheel.sh left in FOLDER where install_dependencies.sh has been.
set -eu
python=${PYTHON:-python3}
"$python" -m pip --python "$1/bin/python" install --quiet --no-index --no-deps "$2"/tickring-*.whl
# --no-deps would not notice a dependency that is missing.
"$python" -m pip --python "$1/bin/python" check
