"""The one check of arguments: what does not hold is said by name."""


def require(holds: bool, message: str) -> None:
    """Raise ValueError with ``message`` unless ``holds``."""
    if not holds:
        raise ValueError(message)
