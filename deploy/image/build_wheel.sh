#!/bin/sh
# build_wheel.sh FOLDER: builds tickring's wheel from the checkout that this script lies in, into FOLDER.
# Needs a C++17 compiler and the headers of Python, which is $PYTHON or python3, with pip. Changes nothing in the checkout.
set -eu
mkdir -p "$1"
folder=$(cd "$1" && pwd)
python=${PYTHON:-python3}
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Into an environment of their own rather than an isolated build, so that constraints.txt pins them all.
"$python" -m venv --without-pip "$work/venv"
"$python" -m pip --python "$work/venv/bin/python" install --quiet -c constraints.txt \
  scikit-build-core nanobind cmake ninja
"$python" -m pip --python "$work/venv/bin/python" wheel --quiet --no-deps --no-build-isolation \
  --config-settings "build-dir=$work/build" --wheel-dir "$folder" .
