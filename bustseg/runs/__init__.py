"""Where runs live: their folders, what is written first and sent after, and the stores that it is sent to."""
