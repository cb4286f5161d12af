"""For the API reference's tables, which show a docstring's first line: its whole first paragraph is put into one."""

from typing import Any

import griffe


class Summaries(griffe.Extension):
    """Joins the lines of every docstring's first paragraph."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each object that is read."""
        if obj.docstring is not None:
            first, blank, rest = obj.docstring.value.partition("\n\n")
            obj.docstring.value = " ".join(first.split()) + blank + rest
