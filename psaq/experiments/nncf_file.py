"""What NNCF makes of a float model with its usual recipe for transformers: what psaq is measured beside."""

from pathlib import Path

from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.quantization.deployment.onnx_graph import export_float_onnx
from psaq.quantization.deployment.runtimes import OPENVINO, imported, openvino_core
from psaq.quantization.pipeline import quantize
from psaq.quantization.recipes import Recipe


def nncf_file(model: nn.Module, images: Tensor, folder: Path) -> Path:
    """The model in int8, calibrated on the images, for OpenVINO; made from the float graph that psaq exports.

    Raises:
        PsaqError: nncf or openvino is missing.
    """
    try:
        import nncf
    except ImportError as error:
        raise PsaqError("nncf is not installed; run pip install nncf") from error
    openvino = imported(OPENVINO)
    export_float_onnx(quantize(model, images[:1], Recipe.paper(8, 8, scope="linear")), folder / "float.onnx")
    quantised = nncf.quantize(
        openvino_core(openvino).read_model(str(folder / "float.onnx")),
        nncf.Dataset([image[None].numpy() for image in images]),
        subset_size=len(images),
        model_type=nncf.ModelType.TRANSFORMER,
    )
    openvino.save_model(quantised, folder / "nncf.xml", compress_to_fp16=False)
    return folder / "nncf.xml"
