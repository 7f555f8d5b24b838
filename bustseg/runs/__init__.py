"""Storage of runs: their folders, journals that are written first and sent afterwards, and the stores."""
