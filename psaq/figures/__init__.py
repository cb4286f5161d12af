"""The paper's figures of a run: its images (Fig. 2) and their patch-similarity densities (Fig. 3)."""
