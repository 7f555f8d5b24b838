"""`bustseg data`: make, check and split data."""
