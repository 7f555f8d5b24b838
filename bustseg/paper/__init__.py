"""Reproduction of the tables of Anari et al. 2025."""
