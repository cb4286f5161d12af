"""Files that are whole or absent: safetensors, JSON and CSV, written beside their name and renamed into place."""

import argparse
import csv
import io
import json
import os
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from psaq.digests import PARTS, WHOLE, json_digest, tensor_digests, what_differs
from psaq.errors import PsaqError

OLDEST_FORMAT, FORMAT_WITH_GROUPS = 1, 2
NEWEST_FORMAT = FORMAT_WITH_GROUPS
"""Of all that are read. A file is written in the oldest that holds it, so that earlier versions read what they can."""
_NAMES = ("psaq", "format_version", "header")
_ALSO = {WHOLE, PARTS, "format"}
"""What else a file's metadata may hold; "format" is what transformers adds."""
PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")
"""The endings of files that torch.save wrote; .tar is the last of .pth.tar, which holds no archive."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Run ``write`` on a temporary name in ``path``'s folder, flush it to disk, then rename it to ``path``.

    A reader sees the old file or the new one, never a part; a failed write leaves nothing behind.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = _temporary_beside(path)
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())
        _flush_to_disk(temporary)
        temporary.replace(path)
    except OSError as error:
        raise PsaqError(f"{path}: could not be written ({error.strerror or error}); nothing was changed") from error
    except SafetensorError as error:
        raise PsaqError(f"{path}: could not be written ({error}); nothing was changed") from error
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_beside(path: Path) -> Path:
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise PsaqError(f"{path}: could not be written ({error.strerror or error}); name another folder") from error
    os.close(handle)
    return Path(name)


def make_folder(folder: Path) -> Path:
    """Create ``folder`` and its parents where absent. Raises PsaqError where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PsaqError(f"{folder}: cannot be used as a folder ({error.strerror}); name another one") from error
    return folder


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all; what of a file's name is no UTF-8 is escaped."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write ``rows`` as CSV under ``columns`` to ``path``, floats to four decimals, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()})
    write_text(path, text.getvalue())


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON to ``path``, whole or not at all."""
    write_text(path, json.dumps(content, indent=2, sort_keys=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises PsaqError where it is absent or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refused)
    except OSError as error:
        raise PsaqError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise PsaqError(f"{path}: is damaged or not JSON ({error})") from error


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as JSON with a digest of itself, whole or not at all."""
    plain = json.loads(json.dumps(content))
    write_json(path, {**plain, WHOLE: json_digest(plain)})


def read_record(path: Path) -> dict[str, Any]:
    """Read what `write_record` wrote; a file from before digests is read without one.

    Raises:
        PsaqError: the file is absent, damaged, or not as it was written.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise PsaqError(f"{path}: is damaged (no names in it); remove it, or run again")
    stated = content.pop(WHOLE, None)
    if stated is not None and stated != json_digest(content):
        raise PsaqError(f"{path}: is not as it was written (SHA-256); restore it, or remove it and run again")
    return content


def save_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    kind: str,
    header: Mapping[str, Any],
    version: int = OLDEST_FORMAT,
) -> None:
    """Write named tensors and a JSON ``header`` as one safetensors file of the given ``kind`` and format ``version``.

    ``kind`` says what the file holds ("images", "quantised model", …); `load_tensors` refuses any other.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = file_metadata(kind, header, whole, version)
    write_whole(Path(path), lambda temporary: save_file(whole, temporary, metadata))


def file_metadata(
    kind: str, header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], version: int = OLDEST_FORMAT
) -> dict[str, str]:
    """What a safetensors file of psaq's says of itself, a digest of all that is in it included."""
    metadata = {"psaq": kind, "format_version": str(version), "header": json.dumps(dict(header))}
    return {**metadata, **tensor_digests(tensors, _digested(metadata))}


def load_tensors(path: Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote: the tensors and the header. A file from before digests is read without one.

    Raises:
        PsaqError: the file is absent, of another kind, of a newer format, or not as it was written.
    """
    tensors, metadata = read_safetensors(path)
    _check_metadata(Path(path), metadata, kind)
    try:
        header = json.loads(metadata["header"], parse_constant=_refused)
    except (KeyError, ValueError) as error:
        raise PsaqError(f"{path}: its header is damaged ({error}); write the file anew") from error
    if not isinstance(header, dict):
        raise PsaqError(f"{path}: its header is damaged (no names in it); write the file anew")
    _check_digest(Path(path), metadata, tensors)
    return tensors, header


def _digested(metadata: Mapping[str, str]) -> str:
    """The part of the metadata that a digest covers."""
    return "\n".join(metadata[name] for name in _NAMES)


def _check_digest(path: Path, metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> None:
    if WHOLE not in metadata and PARTS not in metadata:
        return
    differs = what_differs(metadata, tensors, _digested(metadata))
    if differs is not None:
        raise PsaqError(f"{path}: is not as it was written: {differs} differs (SHA-256); write or fetch it anew")


def _refused(constant: str) -> float:
    """For `json.loads`: an infinity may be a figure (a signal without noise), NaN is none."""
    if constant == "NaN":
        raise ValueError("NaN stands in it")
    return float(constant)


def read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Every tensor of any safetensors file, and its metadata. Raises PsaqError where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise PsaqError(f"{path}: there is no such file") from error
    except OSError as error:
        raise PsaqError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise PsaqError(f"{path}: is truncated or not a safetensors file ({error})") from error


def read_checkpoint(path: Path) -> Any:
    """What a user's weight file holds: a safetensors file's tensors, or what torch.save wrote, told by its ending
    (`PICKLED`).

    Only tensors and plain containers are read; a pickle that asks for anything else is refused before it runs.

    Raises:
        PsaqError: the file is absent or damaged, or would run code.
    """
    path = Path(path)
    if path.suffix.lower() not in PICKLED:
        return _safetensors_of_any_name(path)
    if not path.is_file():
        raise PsaqError(f"{path}: there is no such file")
    try:
        # Training scripts keep their command line beside the weights: a Namespace holds values and does nothing.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            # torch doubts pickles of other protocols than its own; what it cannot read is an error all the same.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        more = f", it asks for {wanted[1]}" if wanted else ""
        raise PsaqError(
            f"{path}: is no plain file of weights{more}; nothing of it was run. Where you trust it, load it yourself "
            "and save its state_dict() as safetensors"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise PsaqError(f"{path}: is damaged or was not written by torch.save ({_first_line(error)})") from error


def _safetensors_of_any_name(path: Path) -> dict[str, torch.Tensor]:
    try:
        return read_safetensors(path)[0]
    except PsaqError as error:
        if path.suffix.lower() == ".safetensors" or not path.is_file():
            raise
        raise PsaqError(f"{error}; what torch.save wrote is read where it ends in {', '.join(PICKLED)}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _check_metadata(path: Path, metadata: Mapping[str, str], kind: str) -> None:
    if metadata.get("psaq") != kind:
        found = metadata.get("psaq", "nothing that psaq wrote")
        raise PsaqError(f"{path}: holds {found}, not {kind}; name a file of the right kind")
    version = metadata.get("format_version", "")
    if not version.isdigit():
        raise PsaqError(f"{path}: its format version {version!r} is not a number; write the file anew")
    if int(version) > NEWEST_FORMAT:
        raise PsaqError(
            f"{path}: has format {version}, newer than the {NEWEST_FORMAT} read here; upgrade psaq to read it"
        )
    unknown = metadata.keys() - _ALSO - {*_NAMES}
    if unknown:
        raise PsaqError(f"{path}: its metadata has {min(unknown)!r}, which is unknown here; write the file anew")


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
