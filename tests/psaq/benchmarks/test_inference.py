"""Which layers are timed as one kind."""

from psaq.benchmarks.inference import by_kind


def test_layers_are_grouped_by_name_without_numbers() -> None:
    assert by_kind(["a.0.b", "a.11.b", "fc1"]) == {"a.*.b": ["a.0.b", "a.11.b"], "fc1": ["fc1"]}
