"""``python -m psaq`` is ``psaq``."""

from psaq.cli import main

main()
