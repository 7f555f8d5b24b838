"""Studies behind the published figures; each is a package or a module with a command of its own."""
