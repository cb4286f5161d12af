"""Weights of up to 4 bits in an ONNX graph: two to a byte in the file, and bytes in the runtime."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx


def store_nibbles(graph: "onnx.GraphProto", names: set[str], widened: bool) -> None:
    """Store the named weights as int4; if ``widened``, followed by a Cast to int8.

    A runtime folds the Cast as it loads the file, and then multiplies as it does with weights of 8 bits. Weights in
    groups get none: their products are in float whatever they are stored as.
    """
    grouped = {node.input[0] for node in graph.node if any(each.name == "block_size" for each in node.attribute)}
    for weight in [tensor for tensor in graph.initializer if tensor.name in names]:
        casts = widened and weight.name not in grouped
        stored = _as_int4(weight, f"{weight.name}.int4" if casts else weight.name)
        if casts:
            graph.node.insert(0, _cast_to_int8(stored.name, weight.name))
        weight.CopyFrom(stored)


def _as_int4(tensor: "onnx.TensorProto", name: str) -> Any:
    """Two neighbours to a byte, the first in the low half, as ONNX has it."""
    import onnx

    integers = onnx.numpy_helper.to_array(tensor).flatten()
    return onnx.helper.make_tensor(name, onnx.TensorProto.INT4, tensor.dims, integers)


def _cast_to_int8(source: str, name: str) -> Any:
    import onnx

    return onnx.helper.make_node("Cast", [source], [name], to=onnx.TensorProto.INT8)
