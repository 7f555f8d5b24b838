"""Networks that were trained, in use: prediction, export, benches."""
