"""Cases that repeat a check on one more model, width or target: `make test-all` runs them, `make test` does not."""

from typing import Any

import pytest


def also(*values: Any) -> list[Any]:
    """Values of a parameter that are left to `make test-all`."""
    return [pytest.param(value, marks=pytest.mark.repeat) for value in values]
