"""Fig. 2: synthesised images in true colours, under their class and the model's confidence in it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from numpy import ndarray
from torch import Tensor, nn

from psaq.errors import PsaqError
from psaq.files import write_whole
from psaq.images.batches import batches_for
from psaq.images.pictures import normalised_for
from psaq.images.synthetic import NO_CLASS, SyntheticImages
from psaq.models.answers import Answering
from psaq.models.classes import class_names, find_class
from psaq.models.zoo import classes_or_none, data_config
from psaq.synthesis import SynthesisConfig
from psaq_plots import Style, film_figure, samples_figure, save_figure


def plot_generated(
    images: SyntheticImages, model: nn.Module, columns: int | None = None, style: str | Style = "paper"
) -> Figure:
    """A grid of images, each under its class and ``model``'s confidence that it shows it, where both know
    classes."""
    names = _shown_names(images, model)
    captions = names and [
        f"{names[label]}\n{confidence:.0%}"
        for label, confidence in zip(images.labels.tolist(), confidences(model, images).tolist(), strict=True)
    ]
    return samples_figure(_last_colours(images.true_colours()), captions or None, columns, style)


def plot_film(images: SyntheticImages, model: nn.Module, style: str | Style = "paper") -> Figure:
    """A row per image, from noise to the end. Raises PsaqError where the synthesis kept no frames of them."""
    if images.film is None or images.film.shape[1] == 0:
        raise PsaqError("film: the synthesis kept no frames of these images, only of its first; choose among them")
    names = _shown_names(images, model)
    captions = names and [names[label] for label in images.labels[: images.film.shape[1]]]
    return film_figure(_last_colours(images.film), _film_steps(images), captions or None, style)


def plot_strip(strip: UInt8[Tensor, "rounds images 3 height width"], file: Path) -> None:
    """Write a picture of the first new images of every round of an evolution: a row per round."""
    captions = [f"round {number}" for number in range(1, len(strip) + 1) for _ in range(strip.shape[1])]
    figure = samples_figure(_last_colours(strip.flatten(0, 1)), captions, strip.shape[1])
    write_whole(file, partial(save_figure, figure))


def draw_run(images: SyntheticImages, model: nn.Module, folder: Path) -> None:
    """Write ``samples.png`` and, where the synthesis kept frames, ``film.png`` of a run into its folder."""
    figures = {"samples.png": plot_generated(choose_images(images, model, count=16), model)}
    if images.film is not None:
        figures["film.png"] = plot_film(choose_images(images, model, count=4), model)
    for name, figure in figures.items():
        write_whole(folder / name, partial(save_figure, figure))


def choose_images(
    images: SyntheticImages, model: nn.Module, classes: Sequence[str] = (), count: int | None = None
) -> SyntheticImages:
    """The first ``count`` images of the classes asked for, by name or number; of every class where none is.

    Raises:
        PsaqError: images of another size or other classes than the model's, or none of a class asked for.
    """
    names, wanted = _names(model), find_classes(model, classes)
    _check_fit(images, model, len(names))
    labels = images.labels.tolist()
    known = sorted({*labels} - {NO_CLASS})
    if wanted and not known:
        raise PsaqError("generated images were synthesised for no class; leave the classes out")
    for label in wanted:
        if label not in known:
            there = ", ".join(f"{index} ({names[index]})" for index in known[:8])
            raise PsaqError(f"class {label} ({names[label]}): no image was synthesised for it; there are {there}")
    kept = [index for index, label in enumerate(labels) if not wanted or label in wanted][:count]
    return _select(images, kept)


def find_classes(model: nn.Module, classes: Sequence[str]) -> list[int]:
    """The indices of classes by name or number. Raises PsaqError where the model does not know one of them."""
    names = _names(model)
    if classes and not names:
        raise PsaqError(f"{type(model).__name__}: tells no classes apart; leave the classes out")
    return [find_class(names, name) for name in classes]


def confidences(model: nn.Module, images: SyntheticImages) -> Float[Tensor, "images"]:
    """The probability that ``model`` gives to each image's own class."""
    with torch.no_grad():
        batches = batches_for(model, normalised_for(model, images), 32)
        answers = Answering(model)
        probabilities = torch.cat([answers(batch).softmax(-1).cpu() for batch in batches])
    return probabilities.gather(1, images.labels[:, None])[:, 0]


def _shown_names(images: SyntheticImages, model: nn.Module) -> list[str]:
    """What the images' classes are called; nothing where one of them was synthesised for none."""
    return [] if bool((images.labels == NO_CLASS).any()) else _names(model)


def _names(model: nn.Module) -> list[str]:
    """What the classes are called; nothing of a model without classes."""
    return [] if classes_or_none(model) is None else class_names(model)


def _check_fit(images: SyntheticImages, model: nn.Module, classes: int) -> None:
    size = data_config(model).image_size
    if tuple(images.images.shape[2:]) != size:
        found = "×".join(map(str, images.images.shape[2:]))
        raise PsaqError(f"generated images are {found} pixels, the model takes {size[0]}×{size[1]}; name their model")
    if int(images.labels.max()) >= classes:
        raise PsaqError(
            f"generated images have class {int(images.labels.max())}, the model knows {classes}; name the model that "
            "they were synthesised from"
        )


def _select(images: SyntheticImages, kept: list[int]) -> SyntheticImages:
    film = images.film
    if film is not None:
        film = film[:, [index for index in kept if index < film.shape[1]]]
    return replace(images, images=images.images[kept], labels=images.labels[kept], film=film)


def _film_steps(images: SyntheticImages) -> list[int]:
    try:
        steps = SynthesisConfig(**images.provenance["config"]).film_steps
    except (KeyError, TypeError) as error:
        raise PsaqError(f"film: the images do not say how they were synthesised ({error}); synthesise anew") from error
    return steps


def _last_colours(
    pictures: UInt8[Tensor, "*batch 3 height width"],
) -> UInt8[ndarray, "*batch height width 3"]:
    return pictures.movedim(-3, -1).numpy()
