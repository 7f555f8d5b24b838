"""Studies behind the published results; each is a package or a module with its own command."""
