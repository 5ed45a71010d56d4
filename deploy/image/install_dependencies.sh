#!/bin/sh
# install_dependencies.sh PREFIX: a virtual environment with all that a server on a GPU needs, but for tickring itself.
# Needs pyproject.toml and constraints.txt two folders up, and Python, which is $PYTHON or python3, with pip; no compiler.
# Apart from the wheel because it takes gigabytes and changes rarely: one layer of the image is this, the next the wheel.
set -eu
prefix=$1
python=${PYTHON:-python3}
cd "$(dirname "$0")/../.."
requirements=$(mktemp)
trap 'rm -f "$requirements"' EXIT

"$python" deploy/image/requirements.py server gpu >"$requirements"
# What runs a server needs no pip.
"$python" -m venv --without-pip "$prefix"
"$python" -m pip --python "$prefix/bin/python" install --quiet --only-binary :all: \
  -c constraints.txt -r "$requirements"
