"""The commands, one file each: a typed function that makes one call. Each is imported only when it is called."""
