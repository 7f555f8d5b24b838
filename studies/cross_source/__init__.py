"""Train on some data sources and test on one that was left out: how recipes perform on unseen scanners."""
