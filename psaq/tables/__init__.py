"""Tables like the paper's Table 1: their cells, what is calibrated and measured on, and what the paper reports."""
