"""The whole picture as a model of boxes or pixels wants it."""

from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import functional

from psaq.images.preprocessing import Preprocessing
from psaq.models.calling import takes
from psaq.models.data import data_config


class WholePicture:
    """Resize to the model's size, cutting nothing off, and normalise. What takes a list of images, as detectors do,
    gets them at their own size and resizes them itself, unless all of them are to have ``one_size``. Raises PsaqError
    as `Preprocessing`."""

    def __init__(self, model: nn.Module, one_size: bool = False):
        self._as_it_is = takes(model) == "list" and not one_size
        self._preprocessing = Preprocessing(data_config(model))

    def __call__(self, image: Image.Image) -> Float[Tensor, "channels height width"]:
        config = self._preprocessing.config
        image = self._preprocessing.coloured(image)
        if not self._as_it_is:
            mode = transforms.InterpolationMode(config.interpolation)
            image = functional.resize(image, list(config.image_size), mode)
        return functional.normalize(functional.to_tensor(image), config.mean, config.std)
