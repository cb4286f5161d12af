"""A deployed model without the host's overhead, by whatever the device has for that."""

from jaxtyping import Float
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.models.calling import takes
from psaq.models.place import device_of
from psaq.quantization.deployment.captured import CapturedModel
from psaq.quantization.deployment.cuda_graph import RecordedModel
from psaq.quantization.deployment.deploy import IntegerModel
from psaq.quantization.deployment.frozen import FrozenModel


def capture(model: nn.Module, images: Float[Tensor, "images 3 height width"]) -> CapturedModel:
    """Make the model ready for batches like ``images``, and for no others.

    At small batches a deployed model waits for Python for a good part of its time. On a GPU its launches are recorded
    in a CUDA graph; Triton kernels that are not compiled yet are compiled on all cores first. On a CPU it is compiled
    with its weights as constants, each product by the faster of oneDNN's and the compiler's own, which takes minutes.

    Args:
        model: in evaluation mode: what `psaq.deploy` returned; on a GPU also that compiled by ``torch.compile``, or a
            float model.
        images: any batch of the shape and dtype that will be asked for.

    Raises:
        PsaqError: on a CPU, a model that `psaq.deploy` did not return, that takes a list of images, or that
            torch.compile does not compile there.
    """
    device = device_of(model)
    if device.type == "cuda":
        return RecordedModel(model, images.to(device))
    if not isinstance(model, IntegerModel):
        raise PsaqError(f"{type(model).__name__}: on a {device.type}, capture takes what psaq.deploy returned")
    if takes(model) == "list":
        raise PsaqError("the model takes a list of images, which torch.compile does not; call it as it is")
    return FrozenModel(model, images.to(device))
