"""Every picture that bustseg draws, in one style; matplotlib is imported when the first one is drawn."""
