"""What this software is and is not, in the words that every page, answer, file and command repeats."""

from __future__ import annotations

RESEARCH = "Research software, not a medical device"

NOTICE = f"{RESEARCH}: these outlines are no diagnosis."
"""Beside outlines."""

PATIENTS = f"{RESEARCH}: no finding in a patient may rest on it."
"""Beside models."""

WORDS = "research only, not a medical device"
"""Drawn into pictures, where there is room for one line."""
