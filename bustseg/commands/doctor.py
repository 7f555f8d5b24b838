"""`bustseg doctor`."""

from __future__ import annotations


def doctor() -> int:
    """Look at this machine: CPU, GPU, precision, data, store, disk, optional parts; exit 1 when something is wrong.

    Example:
        bustseg doctor
    """
    from bustseg.doctor import doctor as look

    return look()
