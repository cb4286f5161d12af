"""``psaq doctor``: what this machine has and what psaq will use of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Doctor:
    """Say what this machine has, which backend the kernels will take, and which weights are at hand."""

    def run(self) -> None:
        from psaq.commands.work.doctor import run

        run(self)
