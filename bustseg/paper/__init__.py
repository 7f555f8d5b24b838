"""The tables of Anari et al. 2025, measured again."""
