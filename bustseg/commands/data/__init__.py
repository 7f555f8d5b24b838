"""`bustseg data`: create, check and split data."""
