"""`bustseg doctor`."""

from __future__ import annotations


def doctor() -> int:
    """Check this machine: CPU, GPU, precision, data, store, disk, optional parts; exit code 1 if something is wrong.

    Example:
        bustseg doctor
    """
    from bustseg.doctor import doctor as look

    return look()
