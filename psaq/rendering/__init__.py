"""How procedural scenes are drawn: random draws, shapes, textures, and the painter that layers them."""
