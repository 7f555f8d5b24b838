"""All of bustseg's figures, in one style; matplotlib is imported when the first one is drawn."""
