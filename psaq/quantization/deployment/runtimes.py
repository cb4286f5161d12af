"""The runtimes that take an exported model, on the CPU: how each answers, and what it multiplies in integers."""

import importlib
import importlib.util
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from psaq.choices import Runtime
from psaq.errors import PsaqError

Images = Float[Tensor, "images channels height width"]
Session = Callable[[Images], Tensor]

ONNXRUNTIME: Runtime = "onnxruntime"
OPENVINO: Runtime = "openvino"
_NAMES: dict[Runtime, str] = {ONNXRUNTIME: "onnx", OPENVINO: "openvino"}
"""Runtime → the extra that installs it."""

_SPINNING = 0.1  # seconds; threads of the runtimes wait for work in a loop for tens of milliseconds

_INTEGER_OPERATORS = frozenset(
    {"MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "QLinearConv", "QGemm", "ConvInteger"}
    | {"DynamicQuantizeMatMul", "QAttention"}
)
_FLOAT_OPERATORS = frozenset({"MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv", "MatMulNBits"})
_OPENVINO_PRODUCTS = ("FullyConnected", "MatMul", "Convolution")


@dataclass(frozen=True)
class Products:
    """Layers and matrix products of a file, as its runtime runs them; fused attention is not among OpenVINO's."""

    integer: int
    total: int


def installed() -> list[Runtime]:
    """The runtimes that are at hand, and a way to write their files."""
    if importlib.util.find_spec("onnx") is None:
        return []
    return [name for name in _NAMES if importlib.util.find_spec(name) is not None]


def session(path: Path, runtime: Runtime = ONNXRUNTIME) -> Session:
    """Images to logits, or to all numbers of an output that has none, by an exported model, on the CPU with torch's
    number of threads and in float32 where not in integers. Raises PsaqError where the runtime is missing."""
    return (_onnxruntime_session if runtime == ONNXRUNTIME else _openvino_session)(path)


def products(path: Path, runtime: Runtime, images: Images) -> Products:
    """What of an exported model its runtime multiplies in integers. Raises PsaqError where the runtime is missing."""
    kinds = _onnxruntime_products(path) if runtime == ONNXRUNTIME else _openvino_products(path, images)
    counts = Counter(kinds)
    return Products(counts[True], counts.total())


def settle(run: Callable[[], object]) -> None:
    """Run what is to be timed until the threads of what ran before it have come to rest."""
    ends = time.perf_counter() + _SPINNING
    run()
    while time.perf_counter() < ends:
        run()


def _flat(outputs: Iterable[Any], images: int) -> Tensor:
    """A row of numbers for each image, of the outputs that hold one."""
    tensors = [torch.as_tensor(output) for output in outputs]
    return torch.cat([each.reshape(images, -1) for each in tensors if each.ndim and len(each) == images], 1)


# onnxruntime --------------------------------------------------------------------------------------------------------


def _onnxruntime_session(path: Path) -> Session:
    session = _onnxruntime(path)
    name = session.get_inputs()[0].name
    return lambda images: _flat(session.run(None, {name: images.numpy()}), len(images))


def _onnxruntime(path: Path, optimised: Path | None = None) -> Any:
    onnxruntime = imported(ONNXRUNTIME)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if optimised is not None:
        options.log_severity_level = 3  # it would warn that what it writes is for this processor
        options.optimized_model_filepath = str(optimised)
    start = partial(onnxruntime.InferenceSession, str(path), options, providers=["CPUExecutionProvider"])
    try:
        return start()
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
        # A pass that moves quantisation along breaks down where int8 is transposed, as keys of other runtimes are.
        return start(disabled_optimizers=["QDQPropagationTransformer"])


def _onnxruntime_products(path: Path) -> list[bool]:
    """In integers or not, by the graph that it has optimised."""
    import onnx

    with TemporaryDirectory() as folder:
        _onnxruntime(path, Path(folder) / "optimised.onnx")
        nodes = onnx.load(str(Path(folder) / "optimised.onnx")).graph.node
    operators = [node.op_type for node in nodes if node.op_type in _INTEGER_OPERATORS | _FLOAT_OPERATORS]
    return [operator in _INTEGER_OPERATORS for operator in operators]


# OpenVINO -----------------------------------------------------------------------------------------------------------


def _openvino_session(path: Path) -> Session:
    request = _openvino(path).create_infer_request()
    return lambda images: _flat((output.copy() for output in request.infer([images.numpy()]).values()), len(images))


def _openvino(path: Path, **more: Any) -> Any:
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # else floats beside weights of few bits would be rounded to bytes
        "ENABLE_CPU_PINNING": False,
    }
    return openvino_core(imported(OPENVINO)).compile_model(str(path), "CPU", {**options, **more})


@cache
def openvino_core(openvino: Any) -> Any:
    """One for the whole process. Each gives its thread a stack for signals and takes it back at its end; where two
    overlap, a stack stays whose memory is gone, and the next signal's handler ends the process."""
    return openvino.Core()


def _openvino_products(path: Path, images: Images) -> list[bool]:
    """In integers or not, by its profile of one batch."""
    request = _openvino(path, PERF_COUNT=True).create_infer_request()
    request.infer([images.numpy()])
    ran = [info for info in request.get_profiling_info() if info.node_type.startswith(_OPENVINO_PRODUCTS)]
    return [info.exec_type.upper().endswith(("I8", "U8")) for info in ran]


def imported(runtime: Runtime) -> Any:
    try:
        return importlib.import_module(runtime)
    except ImportError as error:
        raise PsaqError(f'{runtime} is not installed; run pip install "psaq[{_NAMES[runtime]}]"') from error
