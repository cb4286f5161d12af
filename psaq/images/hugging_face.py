"""Image data sets of the Hugging Face hub, on disk: Parquet files as downloaded, or what ``save_to_disk`` wrote.

Read with pyarrow (the extra ``psaq[huggingface]``) as they lie there: nothing is copied, converted or downloaded.
"""

import io
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from psaq.errors import PsaqError
from psaq.files import read_json
from psaq.images.preprocessing import preprocessing_for, read_image
from psaq.models.zoo import num_classes

SPLITS = {"validation": ("validation", "val"), "train": ("train",)}
"""What the files and folders of a split are called, by its name here."""


@dataclass(frozen=True)
class Columns:
    """Where the pictures and their classes are, and how many classes there are where the data set says so."""

    image: str
    label: str
    classes: int | None


class HuggingFaceImages(Dataset[tuple[Tensor, int]]):
    """Labelled images of one split, in the files' order: (normalised image (3, height, width), class index)."""

    def __init__(self, shards: "list[ParquetShard | ArrowShard]", preprocess: Callable[[Image.Image], Tensor]):
        self.shards = shards
        self.preprocess = preprocess
        self._ends = list(accumulate(len(shard) for shard in shards))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "3 height width"], int]:
        number = bisect_right(self._ends, index)
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        shard = self.shards[number]
        row = index - (self._ends[number] - len(shard))
        picture, label = shard.row(row)
        where = f"{shard.path}, row {row}"
        if label is None or label < 0:
            raise PsaqError(f"{where}: has no label; take a split that has them")
        return self.preprocess(read_image(io.BytesIO(_bytes(picture, where)), where)), label


def hugging_face_images(
    root: Path | str, model: nn.Module, split: str = "validation", crop_pct: float | None = None
) -> HuggingFaceImages:
    """A split of the data set in ``root``, preprocessed as ``model`` was trained.

    Args:
        split: "validation" or "train", where the files tell splits apart; they are taken as they are where not.
        crop_pct: part of the resized image's side that the centre crop keeps; None takes the model's own.

    Raises:
        PsaqError: no such data set or split, pyarrow is not installed, a damaged file, or classes that are not the
            model's.
    """
    files = split_files(Path(root), split)
    if not files:
        raise PsaqError(f"{root}: holds no Hugging Face data set with a split {split!r}")
    shards = [ArrowShard(file) if file.suffix == ".arrow" else ParquetShard(file) for file in files]
    known = shards[0].columns.classes
    if known not in (None, num_classes(model)):
        raise PsaqError(f"{root}: has {known} classes, the model {num_classes(model)}; take the model's data set")
    return HuggingFaceImages(shards, preprocessing_for(model, crop_pct))


def is_hugging_face(root: Path) -> bool:
    """Whether a folder is laid out as a Hugging Face data set."""
    return any(split_files(root, split) for split in SPLITS)


def split_files(root: Path, split: str) -> list[Path]:
    """The files of a split, in order; none where the folder is no Hugging Face data set or has no such split."""
    if (root / "state.json").exists():
        return [root / file["filename"] for file in read_json(root / "state.json").get("_data_files", [])]
    if (root / "dataset_dict.json").exists():
        return next((split_files(root / name, split) for name in SPLITS[split] if (root / name).is_dir()), [])
    files = [file for folder in (root, root / "data") for file in sorted(folder.glob("*.parquet"))]
    if any(_split_of(file) for file in files):
        return [file for file in files if _split_of(file) == split]
    return files


class ParquetShard:
    """A Parquet file, a row group in memory at a time: its images stay compressed."""

    def __init__(self, path: Path):
        self.path = path
        with _open(path, lambda: _arrow("pyarrow.parquet").ParquetFile(path)) as file:
            self.columns = _columns(path, file.schema_arrow)
            groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        self._ends = list(accumulate(groups))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def row(self, index: int) -> tuple[Any, int | None]:
        """A row's picture as stored, and its class."""
        group = bisect_right(self._ends, index)
        rows = _row_group(self.path, group, self.columns)
        return rows[index - (self._ends[group - 1] if group else 0)]


class ArrowShard:
    """An Arrow stream, mapped into memory when first read: by each process that reads it for itself."""

    def __init__(self, path: Path):
        self.path = path

    def __len__(self) -> int:
        return len(self._table)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    @cached_property
    def columns(self) -> Columns:
        """Where its pictures and classes are."""
        return _columns(self.path, self._table.schema)

    @cached_property
    def _table(self) -> Any:
        arrow = _arrow("pyarrow")
        return _open(self.path, lambda: arrow.ipc.open_stream(arrow.memory_map(str(self.path))).read_all())

    def row(self, index: int) -> tuple[Any, int | None]:
        """A row's picture as stored, and its class."""
        row = self._table.slice(index, 1)
        return row[self.columns.image][0].as_py(), row[self.columns.label][0].as_py()


@lru_cache(maxsize=2)
def _row_group(path: Path, group: int, columns: Columns) -> list[tuple[Any, int | None]]:
    # Opened anew each time: a reader process would share its place in a file that its parent had opened.
    names = [columns.image, columns.label]
    with _open(path, lambda: _arrow("pyarrow.parquet").ParquetFile(path)) as file:
        table = _open(path, lambda: file.read_row_group(group, columns=names, use_threads=False))
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def _columns(path: Path, schema: Any) -> Columns:
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = metadata.get("info", {}).get("features", {})
    image = next(_of_type(features, "Image"), "image")
    label = next(_of_type(features, "ClassLabel"), "label")
    if image not in schema.names or label not in schema.names:
        raise PsaqError(f"{path}: has the columns {', '.join(schema.names)}; an image and a label are needed")
    types, kind = _arrow("pyarrow").types, schema.field(label).type
    if not (types.is_integer(kind) or types.is_boolean(kind)):
        raise PsaqError(f"{path}: its column {label!r} holds {kind}, not numbers of classes; save it as a ClassLabel")
    names = features.get(label, {}).get("names")
    return Columns(image, label, len(names) if names else None)


def _of_type(features: dict[str, Any], kind: str) -> Iterator[str]:
    return (name for name, feature in features.items() if isinstance(feature, dict) and feature.get("_type") == kind)


def _bytes(picture: Any, where: str) -> bytes:
    content = picture.get("bytes") if isinstance(picture, dict) else picture
    if not isinstance(content, bytes):
        raise PsaqError(f"{where}: holds no picture, only its name; save the data set with its pictures in it")
    return content


def _split_of(file: Path) -> str | None:
    return next((split for split, names in SPLITS.items() if file.name.split("-")[0].split(".")[0] in names), None)


def _open(path: Path, read: Callable[[], Any]) -> Any:
    arrow = _arrow("pyarrow")
    try:
        return read()
    except (OSError, arrow.ArrowException) as error:
        raise PsaqError(f"{path}: cannot be read ({str(error).splitlines()[0]}); download it anew") from error


def _arrow(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise PsaqError(
            "a Hugging Face data set is read with pyarrow, which is not installed: pip install 'psaq[huggingface]'"
        ) from error
