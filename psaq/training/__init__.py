"""How the bundled models were trained, on procedural scenes."""
