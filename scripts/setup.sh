#!/usr/bin/env bash
# Makes a virtual environment with all that t6jax and its tests need. usage: setup.sh FOLDER [MORE_REQUIREMENTS]
# The CUDA build of the same JAX is added where an NVIDIA driver is present.
set -euo pipefail
folder=$1
more=${2:+-r $2}

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; }
for python in python3.12 python3 python3.13 python python3.14 none; do
  recent "$python" && break
done
if [ "$python" = none ]; then
  echo "t6jax needs Python 3.12 or newer, and there is none on the PATH (python3 is $(python3 --version 2>&1))." >&2
  exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  echo "$python cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv)." >&2
  exit 1
fi

echo "setting up $folder with $("$python" --version)"
"$python" -m venv --clear "$folder"
pip=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check)
# shellcheck disable=SC2086 # no requirements, or two words
"${pip[@]}" -r requirements.txt -r requirements-test.txt $more
# t6jax itself, from here: behind its requirements, since it brings lm-eval's commands anew, which then know the model t6jax
"${pip[@]}" --no-deps --editable .

# the driver says which CUDA it can run: 13 from driver 580 on
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 || true)
if [[ $driver =~ ^[0-9]+\. ]]; then # not what nvidia-smi prints where it finds no device
  cuda=$([ "${driver%%.*}" -ge 580 ] && echo cuda13 || echo cuda12)
  version=$(sed -n 's/^jax==//p' requirements.txt)
  echo "NVIDIA driver $driver: adding JAX $version for $cuda"
  "${pip[@]}" "jax[$cuda]==$version"
fi
