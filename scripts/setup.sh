#!/usr/bin/env bash
# Makes a virtual environment with t6jax, editable, and everything that its tests need.
# usage: scripts/setup.sh FOLDER [tested|newest|oldest] [EXTRAS]
# tested: the versions of requirements*.txt. newest: what pip takes today. oldest: the lower bounds of pyproject.toml.
# On a machine with an NVIDIA driver it adds the CUDA build of the same JAX.
set -euo pipefail
folder=$1
versions=${2:-tested}
extras=${3:-train,eval,interop,triton,kubernetes,test,docs}

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; }
for python in python3.12 python3 python3.13 python python3.14 none; do
  recent "$python" && break
done
if [ "$python" = none ]; then
  echo "t6jax needs Python 3.12 or newer, and none is on the PATH (python3 is $(python3 --version 2>&1))." >&2
  exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  echo "$python cannot make virtual environments: install its venv module (Debian, Ubuntu: apt install python3-venv)." >&2
  exit 1
fi
case $versions in
  tested) choice=(-c requirements.txt -c requirements-test.txt -c requirements-torch.txt) ;;
  newest) choice=(--upgrade -c requirements-test.txt) ;;
  oldest) choice=(--resolution lowest-direct -c requirements-test.txt) ;;
  *) echo "scripts/setup.sh: VERSIONS must be tested, newest or oldest; got $versions" >&2 && exit 1 ;;
esac

echo "setting up $folder with $("$python" --version)"
"$python" -m venv --clear "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check)
# uv takes half a minute where pip takes three. It does not read pip's configuration: where the index that it knows
# cannot be reached, pip installs instead.
"${pip[@]}" install --quiet -c requirements-test.txt uv || true
install() {
  "$folder/bin/python" -m uv pip install --quiet --python "$folder/bin/python" "$@" || "${pip[@]}" install --quiet "$@"
}
install "${choice[@]}" --editable ".[$extras]"
# once more, since lm-eval may have come last: its commands are to be those of t6jax, which know the model t6jax
"${pip[@]}" install --quiet --no-deps --editable .

# the driver says which CUDA it can run: 13 from driver 580 on
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 || true)
if [[ $driver =~ ^[0-9]+\. ]]; then # not what nvidia-smi prints where it finds no device
  cuda=$([ "${driver%%.*}" -ge 580 ] && echo cuda13 || echo cuda12)
  version=$("$folder/bin/python" -c 'import importlib.metadata; print(importlib.metadata.version("jax"))')
  echo "NVIDIA driver $driver: adding JAX $version for $cuda"
  install "jax[$cuda]==$version"
fi
