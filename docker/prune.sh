#!/bin/sh
# Take out of an environment what no server runs: the packages' own tests, ONNX Runtime's tools for making models and its
# library for programs in C, of which Python's module is a second copy (kept beside CUDA, where this was not tried), the
# debug symbols of uvloop, which are most of it, and OpenCV's libraries for videos, AVIF and linear algebra.
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

# OpenCV's module is linked against those libraries, 80 MB, and is loaded only with all of them, while the service asks it
# for a dozen functions that use none. In the place of each that the module names comes one with the same symbols and nothing
# behind them: they are data, so that a call of one ends the process at once. `make image` asks the finished image for
# every kind of warp, and for what finds a page.
module=$packages/cv2/cv2.abi3.so
libraries=$packages/opencv_python_headless.libs
work=$(mktemp -d)
nm -D --undefined-only "$module" | awk '{ print $2 }' | sort -u >"$work/wanted"
for name in $(readelf -d "$module" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
    [ -e "$libraries/$name" ] || continue # the system's
    nm -D --defined-only "$libraries/$name" | awk '{ sub("@@", "@", $3); print $3 }' | sort -u |
        comm -12 - "$work/wanted" >"$work/symbols"
    version=$(sed -n 's/.*@//p' "$work/symbols" | sort -u)
    echo "$version { global: *; };" >"$work/versions"
    { echo .data; sed 's/@.*//; s/.*/.globl &\n&:/' "$work/symbols"; echo .quad 0; } | as --noexecstack -o "$work/object" -
    ld -shared -soname="$name" --version-script="$work/versions" -o "$work/$name" "$work/object"
done
rm "$libraries"/*
mv "$work"/*.so* "$libraries"
rm -r "$work"
