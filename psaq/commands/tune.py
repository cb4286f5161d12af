"""``psaq tune``: the kernels' fastest configurations on this GPU, or a check of all of them for another one."""

from dataclasses import dataclass

from psaq.errors import PsaqError
from psaq.models.table1_models import TABLE1_MODELS


@dataclass(frozen=True)
class Tune:
    """Find the fastest configuration of every GPU kernel for the shapes of the models, and remember it.

    What may win by a model of the machine is compiled on all cores, then timed on the GPU at hand; the winners go into
    a table in the user's cache directory, where every later run finds them. Stopped at any moment, the same command
    goes on with what the table lacks. With --target, nothing is timed: every configuration is compiled ahead of time
    for that GPU, which need not be here, and its registers, spills and shared memory are printed.
    """

    model: tuple[str, ...] = tuple(TABLE1_MODELS)
    """Whose shapes to tune for: Table 1 names, bundled models or timm tags."""
    batch: int = 32
    """Images in a batch."""
    kernel: tuple[str, ...] = ()
    """Only kernels whose name begins with one of these."""
    target: str | None = None
    """Only compile, for this GPU: sm_80, sm_86, sm_89, sm_90, sm_100, sm_120, gfx942, or all."""
    export: bool = False
    """Write the table where the package ships its own, instead of into the cache directory."""
    again: bool = False
    """Time what the table holds already, too."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise PsaqError(f"--batch must be at least 1, got {self.batch}")

    def run(self) -> None:
        from psaq.commands.work.tune import run

        run(self)
