"""Files to samples to a split to batches."""
