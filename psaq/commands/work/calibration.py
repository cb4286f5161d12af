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
    check_crop_pct(options.crop_pct)
    check_overrides(converted(model, example_image(model))[0], recipe)


def calibration_images(options: Calibrating, model: nn.Module, folder: Path) -> CalibrationImages:
    """The images asked for; without a word on them, synthesised into ``folder``."""
    if options.gaussian:
        return gaussian_images(model, options.num_images, options.seed)
    if options.images is None:
        config = SynthesisConfig(num_images=options.num_images, seed=options.seed)
        return synthesize_into(folder, model, config, progress=True)
    return images_in(options.images, model, options.num_images, options.crop_pct)


def images_in(place: Path, model: nn.Module, count: int | None = None, crop_pct: float | None = None) -> Tensor:
    """The images of a run of ``psaq synthesize``, or a folder's real pictures, the first in sorted path order."""
    if _is_synthesised(place):
        return normalised_for(model, load_images(place))[:count]
    files, whole = _pictures_in(place)[:count], isinstance(task_of(model), DenseTask)
    return load_pictures(files, model, crop_pct=crop_pct, whole=whole)


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
