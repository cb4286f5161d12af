"""psaq's quantiser among those of transformers, without importing transformers: once psaq is imported, whoever imports
transformers, before or after, has a ``from_pretrained`` that reads psaq's folders."""

import importlib.machinery
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

_REGISTRY = "transformers.quantizers.auto"


def register_with_transformers() -> None:
    """Register now where transformers has its quantisers already, else as soon as it gets them."""
    if _REGISTRY in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


class _AfterImport(MetaPathFinder):
    """Finds nothing by itself: the registry's module is imported as ever, and psaq registers when that is done."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != _REGISTRY:
            return None
        others = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                if module.__name__ == _REGISTRY:
                    _register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    try:
        from psaq.quantization.hugging_face.quantizer import register
    except ImportError as error:
        if (error.name or "").startswith("transformers"):
            return  # a transformers that is too old for it; psaq says so where it needs it
        raise
    register()
