"""Networks that were trained, in use: prediction, export, benches."""

from bustseg.deploy.formats import ExportFormat, NetworkToWrite, register_format, unregister_format

__all__ = ["ExportFormat", "NetworkToWrite", "register_format", "unregister_format"]
