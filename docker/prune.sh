#!/bin/sh
# Take out of an environment what no server runs: the packages' own tests, ONNX Runtime's tools for making models and its
# library for programs in C, of which Python's module is a second copy (kept beside CUDA, where this was not tried), and
# the debug symbols of uvloop, which are most of it.
set -eu
packages=$(echo "$1"/lib/python3*/site-packages)
find "$packages/numpy" "$packages/onnxruntime" -type d -name tests -prune -exec rm -rf {} +
for tool in transformers quantization tools; do
    rm -rf "$packages/onnxruntime/$tool"
done
strip --strip-unneeded "$packages"/uvloop/*.so
if [ ! -e "$packages/onnxruntime/capi/libonnxruntime_providers_cuda.so" ]; then
    rm -f "$packages"/onnxruntime/capi/libonnxruntime.so.*
fi
