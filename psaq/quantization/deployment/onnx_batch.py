"""A graph for any number of images, from two that were traced for a fixed number each.

A trace for a fixed number holds every shape as a constant; one for any number computes them anew in dozens of small
operators. What differs between two such traces is where the number of images enters.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

FEW, MORE = 2, 3
"""Images that the two traces are made with."""

BATCH = "batch"
_COUNT = "number_of_images"
_OF_SHAPES = frozenset(
    {"Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Gather", "Identity", "Mul", "Range", "Reshape"}
    | {"Slice", "Squeeze", "Sub", "Unsqueeze", "Where"}
)
_SMALL = 64  # numbers; no weight is that small, and a shape never larger


def free_batch(few: "onnx.ModelProto", more: "onnx.ModelProto") -> bool:
    """Let ``few`` take any number of images; False, and it is of no more use, where a shape cannot be left open."""
    for model in (few, more):
        _fold(model)
    differing = _differing(few, more)
    if differing is None:
        return False
    repeated = {name: mine for name, (mine, _) in differing.items() if mine.dtype != np.int64}
    for name, values in repeated.items():
        _repeat_for_each(few, name, values)
    sizes = _sizes(few)
    if not all(_open_up(few, name, sizes, *pair) for name, pair in differing.items() if name not in repeated):
        return False
    for mine, other in zip(_ends(few), _ends(more), strict=True):
        for size, another in zip(mine.type.tensor_type.shape.dim, other.type.tensor_type.shape.dim, strict=True):
            if size.dim_value != another.dim_value:
                size.dim_param = BATCH
    del few.graph.value_info[:]
    _drop_unused(few)
    return True


def is_for_one_number(few: "onnx.ModelProto", more: "onnx.ModelProto") -> bool:
    """Whether the number of images is a constant in two graphs that were traced for any number."""
    return _differing(few, more) != {}


def _fold(model: "onnx.ModelProto") -> None:
    """Compute what depends on constants alone and is small: shapes, and what is made of them."""
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    known, kept = dict(_constants(model)), []
    for node in model.graph.node:
        inputs = [name for name in node.input if name]
        small = inputs and all(name in known and known[name].size <= _SMALL for name in inputs)
        if small and node.op_type in _OF_SHAPES:
            (value,) = ReferenceEvaluator(node).run(None, {name: known[name] for name in inputs})
            known[node.output[0]] = np.asarray(value)
            model.graph.initializer.append(numpy_helper.from_array(known[node.output[0]], node.output[0]))
        else:
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    _drop_unused(model)


def _drop_unused(model: "onnx.ModelProto") -> None:
    used = {name for node in model.graph.node for name in node.input} | {end.name for end in model.graph.output}
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in used]
    nodes = [node for node in model.graph.node if node.op_type != "Constant" or node.output[0] in used]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(tensors)
    model.graph.node.extend(nodes)


def _sizes(model: "onnx.ModelProto") -> dict[str, list[int]]:
    """The shape of everything that is computed, by name."""
    from onnx import shape_inference

    infos = shape_inference.infer_shapes(model).graph
    return {
        info.name: [size.dim_value for size in info.type.tensor_type.shape.dim]
        for info in (*infos.value_info, *infos.output)
    }


def _ends(model: "onnx.ModelProto") -> list[Any]:
    return [*model.graph.input, *model.graph.output]


def _differing(few: "onnx.ModelProto", more: "onnx.ModelProto") -> dict[str, tuple[Any, Any]] | None:
    """Constants that are not the same in both: shapes, and what is repeated for each image; None where the graphs
    differ in anything else."""
    mine, other = dict(_constants(few)), dict(_constants(more))
    if mine.keys() != other.keys() or _operators(few) != _operators(more):
        return None
    pairs = {name: (mine[name], other[name]) for name in mine if not np.array_equal(mine[name], other[name])}
    return pairs if all(_are_shapes(*pair) or _are_repeated(*pair) for pair in pairs.values()) else None


def _are_shapes(few: Any, more: Any) -> bool:
    return bool(few.dtype == np.int64 and few.ndim == 1 and few.shape == more.shape)


def _are_repeated(few: Any, more: Any) -> bool:
    counted = few.ndim > 0 and (len(few), len(more), few.shape[1:]) == (FEW, MORE, more.shape[1:])
    return counted and few.dtype != np.int64 and bool((few == few[:1]).all() and (more == few[:1]).all())


def _operators(model: "onnx.ModelProto") -> list[tuple[Any, ...]]:
    return [
        (node.op_type, *node.input, *node.output, *(each.SerializeToString() for each in node.attribute))
        for node in model.graph.node
        if node.op_type != "Constant"
    ]


def _constants(model: "onnx.ModelProto") -> Iterator[tuple[str, Any]]:
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        yield tensor.name, numpy_helper.to_array(tensor)
    for node in model.graph.node:
        if node.op_type == "Constant":
            yield node.output[0], numpy_helper.to_array(node.attribute[0].t)


def _open_up(model: "onnx.ModelProto", name: str, sizes: Mapping[str, list[int]], few: Any, more: Any) -> bool:
    """Replace a shape by one that leaves the number of images open. Whether all that use it could."""
    places = np.flatnonzero(few != more)
    if len(places) != 1 or few[places[0]] * MORE != more[places[0]] * FEW:
        return False
    users = [node for node in model.graph.node if name in node.input]
    for number, node in enumerate(users):
        if node.op_type == "Reshape" and (-1 not in few or all(sizes.get(node.output[0], [0]))):
            whole = few if -1 not in few else np.array(sizes[node.output[0]])
            open_shape = np.where(few != more, -1, whole)
            node.input[1] = _stored(model, f"{name}_open{number}", open_shape)
        elif node.op_type in ("Expand", "Tile") and few[places[0]] == FEW and places[0] == 0:
            node.input[1] = _with_count(model, f"{name}_open{number}", few[1:])
        else:
            return False
    return True


def _repeat_for_each(model: "onnx.ModelProto", name: str, values: Any) -> None:
    """Store one row of a constant, and repeat it for as many images as there are."""
    from onnx import helper, numpy_helper

    graph = model.graph
    for tensor in [tensor for tensor in graph.initializer if tensor.name == name]:
        graph.initializer.remove(tensor)
    for node in [node for node in graph.node if name in node.output]:
        graph.node.remove(node)
    graph.initializer.append(numpy_helper.from_array(values[:1], f"{name}_once"))
    shape = _with_count(model, f"{name}_shape", values.shape[1:])
    graph.node.insert(2, helper.make_node("Expand", [f"{name}_once", shape], [name]))


def _stored(model: "onnx.ModelProto", name: str, values: Any) -> str:
    from onnx import numpy_helper

    if all(tensor.name != name for tensor in model.graph.initializer):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.int64), name))
    return name


def _with_count(model: "onnx.ModelProto", name: str, rest: Any) -> str:
    """A shape that starts with the number of images, computed once at the graph's beginning."""
    from onnx import helper

    nodes = model.graph.node
    if all(_COUNT not in node.output for node in nodes):
        nodes.insert(0, helper.make_node("Shape", [model.graph.input[0].name], [_COUNT], start=0, end=1))
    if all(name not in node.output for node in nodes):
        nodes.insert(1, helper.make_node("Concat", [_COUNT, _stored(model, f"{name}_rest", rest)], [name], axis=0))
    return name
