"""How long models, layers and steps take, and how much memory."""
