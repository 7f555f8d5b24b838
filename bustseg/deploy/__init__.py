"""Networks that were trained, in use: prediction, export, benches."""

from bustseg.deploy.formats import ExportFormat, register_format, unregister_format

__all__ = ["ExportFormat", "register_format", "unregister_format"]
