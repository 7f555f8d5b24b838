"""Train on some data sources, test on one that was left out: what a recipe is worth on scanners it has never seen."""
