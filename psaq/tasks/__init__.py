"""What models are for: how their answers are read, how two of them differ, and how they are scored."""
