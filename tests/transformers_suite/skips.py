"""What of transformers' common suites is not run, and why: name of a test (its beginning) -> (configurations, reason).

No name of a configuration means all.
"""

from __future__ import annotations

CONFIGURATIONS = ("shared", "separated", "mixed")
ROUTED = ("separated", "mixed")

SKIPS: dict[str, tuple[tuple[str, ...], str]] = {}
