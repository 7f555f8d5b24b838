"""The commands, one file each: a typed function that makes one call. Nothing here is imported before it is called."""
