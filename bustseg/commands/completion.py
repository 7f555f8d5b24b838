"""`bustseg completion`."""

from __future__ import annotations

from typing import Literal


def completion(shell: Literal["bash", "zsh", "tcsh"] = "bash") -> int:
    """Print a script that lets a shell complete commands, options and keys of an experiment.

    Example:
        bustseg completion bash > ~/.local/share/bash-completion/completions/bustseg

    Args:
        shell: for which
    """
    from bustseg.completion import script

    print(script(shell))
    return 0
