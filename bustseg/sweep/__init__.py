"""`bustseg sweep`: search a space of configs with Optuna, in one process or many, on one machine or several."""
