"""What one core reaches in one hour: bustseg's recipe, and what else a user of a laptop would take."""
