"""``python -m psaq.tune`` is ``psaq tune``."""

from psaq.commands.tune import Tune
from psaq.program import run_command

__all__ = ["Tune"]

if __name__ == "__main__":
    run_command(Tune, prog="python -m psaq.tune")
