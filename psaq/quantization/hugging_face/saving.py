"""How a quantised model of transformers saves itself."""

from typing import TypeVar

from torch import nn

from psaq.models.transformers_data import is_transformers

Model = TypeVar("Model", bound=nn.Module)


def own_way_to_save(qmodel: Model) -> Model:
    """The model; one of transformers' now has a ``save_pretrained`` that writes integers, as `psaq.save` does."""
    if is_transformers(qmodel):
        from psaq.quantization.hugging_face.quantizer import give_quantizer

        give_quantizer(qmodel)
    return qmodel
