#!/usr/bin/env bash
# Trains on all GPUs of one node, in one process. usage: scripts/train_node.sh CONFIG [any flag of train.py]
# Parameters are sharded over all GPUs; --config.mesh.fsdp=1 --config.mesh.data=-1 replicates them instead.
set -euo pipefail
config=${1:?usage: scripts/train_node.sh CONFIG [any flag of train.py]}
shift
root=$(cd "$(dirname "$0")/.." && pwd)
source "$root/scripts/gpu_flags.sh"
cd "$root"
python=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)
exec "$python" train.py --config="$config" --config.mesh.data=1 --config.mesh.fsdp=-1 "$@"
