"""The checks and the images of every command that calibrates."""

from pathlib import Path

from torch import Tensor, nn

from psaq.commands.calibration import Calibrating
from psaq.errors import PsaqError
from psaq.images.batches import CalibrationImages, gaussian_images
from psaq.images.pictures import load_pictures, normalised_for, picture_files
from psaq.images.preprocessing import check_crop_pct
from psaq.images.synthetic import FILE_NAME, load_images
from psaq.models.features import example_image
from psaq.progress import note
from psaq.quantization.model.conversion import converted
from psaq.quantization.pipeline import check_overrides
from psaq.quantization.recipes import Recipe
from psaq.runs import RUN_FILE
from psaq.synthesis import SynthesisConfig
from psaq.synthesis.folder import synthesize_into
from psaq.tasks.dense import DenseTask
from psaq.tasks.find import task_of


def check(options: Calibrating, model: nn.Module, recipe: Recipe) -> None:
    """Raise PsaqError for whatever can be seen to be wrong before the folder is made and images are synthesised."""
    if options.images is not None and options.gaussian:
        raise PsaqError("--images and --gaussian: both name the calibration images; give one of them")
    if options.num_images < 1:
        raise PsaqError(f"--num-images {options.num_images}: calibration needs at least 1")
    if options.images is not None and _is_synthesised(options.images):
        load_images(options.images)
    elif options.images is not None:
        _pictures_in(options.images)
    check_crop(options.crop_pct, options.images, model)
    check_overrides(converted(model, example_image(model))[0], recipe)


def check_crop(crop_pct: float | None, place: Path | None, model: nn.Module) -> None:
    """Raise PsaqError for a crop that cannot be, or of images that are not cropped: only pictures are, and these only
    for models of classes or features."""
    check_crop_pct(crop_pct)
    cropped = place is not None and not _is_synthesised(place) and not isinstance(task_of(model), DenseTask)
    if crop_pct is not None and not cropped:
        raise PsaqError("--crop-pct: does nothing for the images that are taken here; leave it out")


def calibration_images(options: Calibrating, model: nn.Module, folder: Path) -> CalibrationImages:
    """The images asked for; without a word on them, synthesised into ``folder``."""
    if options.gaussian:
        return gaussian_images(model, options.num_images, options.seed)
    if options.images is None:
        config = SynthesisConfig(num_images=options.num_images, seed=options.seed)
        return synthesize_into(folder, model, config, progress=True)
    return images_in(options.images, model, options.num_images, options.crop_pct)


def images_in(place: Path, model: nn.Module, count: int, crop_pct: float | None = None, spread: bool = False) -> Tensor:
    """The images of a run of ``psaq synthesize``, or a folder's real pictures in sorted path order: the first
    ``count``, or as many spread evenly over all."""
    if _is_synthesised(place):
        images = normalised_for(model, load_images(place))
        return images[_taken(place, len(images), count, spread)]
    files = _pictures_in(place)
    files = [files[index] for index in _taken(place, len(files), count, spread)]
    return load_pictures(files, model, crop_pct=crop_pct, whole=isinstance(task_of(model), DenseTask))


def _taken(place: Path, there: int, count: int, spread: bool) -> list[int]:
    if there < count and not spread:
        note(f"{place}: holds {there} images, fewer than {count}; all are taken")
    count = min(there, count)
    return [index * there // count for index in range(count)] if spread else list(range(count))


def _pictures_in(place: Path) -> list[Path]:
    """A folder's pictures. Raises PsaqError where some are a run's, whose figures nobody calibrates on."""
    files = picture_files([place])
    folders = {folder for file in files for folder in file.parents if folder.is_relative_to(place)}
    if any((folder / name).exists() for folder in folders for name in (RUN_FILE, FILE_NAME)):
        synthesised = ", ".join(str(folder) for folder in sorted(folders) if _is_synthesised(folder))
        raise PsaqError(
            f"{place}: holds a run of psaq and its figures; name {synthesised or 'a folder of real pictures alone'}"
        )
    return files


def _is_synthesised(images: Path) -> bool:
    return images.is_file() or (images / FILE_NAME).exists()
