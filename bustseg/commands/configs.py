"""`bustseg configs`."""

from __future__ import annotations

from typing import Annotated

from bustseg.command_line import Option
from bustseg.errors import UserError


def configs(name: Annotated[str | None, Option(metavar="NAME")] = None, *, schema: bool = False) -> int:
    """List the configs that ship, or print one; --config accepts their names in any folder.

    Example:
        bustseg configs baselines/unet_lite0

    Args:
        name: the config to print
        schema: print the JSON schema of the configs instead, with which editors complete and check them
    """
    if schema:
        if name is not None:
            raise UserError(f"--schema describes all configs: leave out {name}")
        import json

        from bustseg.config_schema import schema as schema_of_configs

        print(json.dumps(schema_of_configs(), indent=1))
        return 0
    from bustseg.presets import about, find_config, presets
    from bustseg.progress import print_entry

    if name is not None:
        print(find_config(name).read_text(encoding="utf-8"), end="")
        return 0
    known = presets()
    width = max(map(len, known), default=0)
    for own, path in known.items():
        print_entry(own, about(path), width)
    return 0
