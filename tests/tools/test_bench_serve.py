"""What the benchmark of the server says of its memory."""

from __future__ import annotations

from tools.bench_serve import of_memory


def test_a_server_that_was_hardly_looked_at_has_what_was_seen():
    """On a busy machine a second may pass without a look."""
    mib = 2**20
    assert of_memory([]) == "all looks: none in this time"
    assert of_memory([mib]) == "all looks: 1.0" and of_memory([mib, 2 * mib]) == "all looks: 1.0, 2.0"
    assert of_memory([mib, 2 * mib, 4 * mib]) == "median of each third: 1.0, 2.0, 4.0"
