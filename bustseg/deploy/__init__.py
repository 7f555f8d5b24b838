"""Use of trained networks: prediction, export and benchmarks."""

from bustseg.deploy.formats import ExportFormat, NetworkToWrite, register_format, unregister_format

__all__ = ["ExportFormat", "NetworkToWrite", "register_format", "unregister_format"]
