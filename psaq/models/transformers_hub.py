"""Where models of transformers lie: folders and the hub, what may be asked of them, and what can go wrong."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from psaq.errors import PsaqError
from psaq.models.published import hub_can_be_found
from psaq.models.transformers_library import first_line, quietly

T = TypeVar("T")

OWN_WAY = "or load it with transformers yourself and pass the module"

_SCHEME = "transformers:"


def is_transformers_name(name: str) -> bool:
    """Whether a name is that of a folder or a hub name for transformers."""
    return name.startswith(_SCHEME)


def place_of(name: str) -> str:
    """The folder or the hub's name. Raises PsaqError for a folder that is not there."""
    place = name.removeprefix(_SCHEME)
    if place and Path(place).is_dir():
        if not (Path(place) / "config.json").is_file():
            raise PsaqError(f"model {name!r}: the folder has no config.json; name one that save_pretrained wrote")
    elif not place or place.startswith(("/", ".", "~")) or place.count("/") > 1:
        raise PsaqError(f"model {name!r}: there is no such folder; name one, or a model of the hub as OWNER/NAME")
    return place


def access_to(place: str) -> dict[str, Any]:
    """Nothing of the model's own is ever run; the network is asked only where it can answer."""
    return {"trust_remote_code": False, "local_files_only": Path(place).is_dir() or not hub_can_be_found()}


def check_for_safetensors(place: str, name: str) -> None:
    """Raise PsaqError for a folder without weights that can be read and nothing else."""
    folder = Path(place)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(file.name for file in folder.glob("*.bin"))
    if pickles:
        raise PsaqError(
            f"model {name!r}: has pickled weights alone ({pickles[0]}); name the file with --weights, "
            "which reads its tensors and runs nothing of it"
        )
    raise PsaqError(f"model {name!r}: the folder has no .safetensors file; name one that save_pretrained wrote")


def asked(name: str, ask: Callable[[], T]) -> T:
    """What transformers answers, its errors in psaq's words."""
    try:
        with quietly():
            return ask()
    except PsaqError:
        raise
    except Exception as error:  # transformers, the hub's client and safetensors each have their own
        raise PsaqError(f"model {name!r}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = str(error)
    if "trust_remote_code" in text or "custom code" in text:
        return f"needs code from its own repository, which psaq never runs; take another model, {OWN_WAY}"
    if "connect" in text or "cached files" in text or "offline mode" in text:
        return (
            "is neither a folder nor in the local cache, and the hub cannot be reached; connect once, or name a folder"
        )
    if "does not recognize this architecture" in text or "model type" in text:
        return f"is of a model type that this transformers does not know; upgrade it, {OWN_WAY}"
    return f"transformers cannot load it ({first_line(error)}); mend the folder, {OWN_WAY}"
