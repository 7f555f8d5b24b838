"""Data: from files to samples, a split and batches."""
