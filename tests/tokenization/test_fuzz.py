"""A short run of the fuzz trial; `fuzz_readers.py` says what it does."""

from __future__ import annotations

from pathlib import Path

from tests.tokenization.fuzz_readers import fuzz, mutant, sound_inputs


def test_mutated_inputs_are_accepted_or_rejected_with_a_reason(tmp_path: Path):
    outcomes, failures, _ = fuzz(tmp_path, 600, seed=2611)
    assert not failures
    assert sum(sum(counts.values()) for counts in outcomes.values()) == 600
    reasons = {reason for counts in outcomes.values() for reason in counts}
    assert reasons > {"accepted", "refused", "damaged_file", "undecodable_picture", "not_a_picture", "invalid_json"}


def test_mutations_can_be_made_again(tmp_path: Path):
    seeds = sound_inputs(tmp_path)
    made = [mutant(seeds, number, 0) for number in range(200)]
    assert made == [mutant(seeds, number, 0) for number in range(200)]
    assert sum(data != seeds[name] for name, data in made) > 180
