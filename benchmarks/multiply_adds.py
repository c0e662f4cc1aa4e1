"""The multiply-adds of an ONNX graph for one picture: its convolutions and matrix products, all else left out."""

import math
from pathlib import Path

import onnx
from onnx import shape_inference


def multiply_adds(path: Path) -> int:
    """
    Raises:
        KeyError: the shape of a tensor cannot be inferred.
    """
    model = onnx.load(path)
    for given in model.graph.input:
        given.type.tensor_type.shape.dim[0].dim_value = 1
    graph = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = [size.dim_value for size in value.type.tensor_type.shape.dim]
    total = 0
    for node in graph.node:
        if node.op_type == "Conv":  # every weight meets every place of the output
            total += math.prod(shapes[node.input[1]]) * math.prod(shapes[node.output[0]][2:])
        elif node.op_type == "ConvTranspose":  # every weight meets every place of the input
            total += math.prod(shapes[node.input[1]]) * math.prod(shapes[node.input[0]][2:])
        elif node.op_type in ("Gemm", "MatMul"):
            total += math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    return total
