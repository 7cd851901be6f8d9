#!/usr/bin/env bash
# The rows of bench/gpu.py on a machine with a GPU and no network, in one command of under nine minutes.
#
#   bench/gpu.sh bring FOLDER               with network: the packages that such a machine may lack, as wheels, into FOLDER/wheels
#   bench/gpu.sh run FOLDER [options ...]   there: installs them beside its own torch; FOLDER/data is DATA of bench/recipes.py
#
# The machine has torch, accelerate, numpy, pyarrow, safetensors, scikit-learn, matplotlib and the like of its own; W&B, datasets and
# ONNX are not asked for by what is run.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:?bring or run} folder=$(realpath -m "${2:?a folder}")
shift 2

case $what in
bring)
    mkdir -p "$folder/wheels"
    python3 -m pip download --no-deps --only-binary=:all: --python-version "${PYTHON_VERSION:-3.12}" --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
        --constraint constraints.txt -d "$folder/wheels" pydantic pydantic-core annotated-types typing-inspection xxhash
    ;;
run)
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    if compgen -G "$folder/wheels/*.whl" >/dev/null; then
        python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$folder"/wheels/*.whl
    fi
    export PYTHONPATH="$site:$PWD" PYTHONUNBUFFERED=1
    python3 -m bench.gpu --data "$folder/data" "$@"
    ;;
*)
    echo "bench/gpu.sh: $what is neither bring nor run" >&2
    exit 2
    ;;
esac
