#!/bin/sh
# Run a Python command with ONNX Runtime's CUDA build on a machine without a GPU: `benchmarks/cuda_standin.sh -m
# benchmarks.cuda_kernels`. Needs a C compiler and 2.5 GB under .bench/, for NVIDIA's wheels. See cuda_standin.c.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
home=$root/.bench/cuda
python=$home/bin/python
if [ ! -e "$home/libcudnn.so.9" ]; then
    python3 -m venv "$home"
    "$python" -m pip install --quiet --disable-pip-version-check --constraint "$root/constraints.txt" "$root[gpu]" onnx
    for name in libcuda.so.1 libcudart-part.so libcudnn.so.9; do
        cc -shared -fPIC -w -Wl,-soname,$name -o "$home/$name" "$root/benchmarks/cuda_standin.c"
    done
fi
LD_PRELOAD="$home/libcudart-part.so $home/libcudnn.so.9" LD_LIBRARY_PATH=$home PYTHONPATH=$root exec "$python" "$@"
