"""The disclaimers that every page, answer, file and command shows."""

from __future__ import annotations

RESEARCH = "Research software, not a medical device"

NOTICE = f"{RESEARCH}: these outlines are no diagnosis."
"""Beside outlines."""

PATIENTS = f"{RESEARCH}: no finding in a patient may rest on it."
"""Beside models."""

WORDS = "research only, not a medical device"
"""Drawn into pictures, which have room for one line only."""
