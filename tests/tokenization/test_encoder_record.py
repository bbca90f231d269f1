"""What encoded a dataset is recorded, compared between workers, and said where a part that is made again differs."""

from __future__ import annotations

import json
from pathlib import Path

from tests.tokenization.corpora import Command, contents, folder_corpus
from tokenization.encoder_record import described, distinct, rounds_alike
from tokenization.parts import PARTS, sealed, unsealed


def elsewhere(record: dict) -> dict:
    return record | {"capability": "x86_64 AVX2", "torch": "2.9.0"}


def test_job_parts_and_manifest_say_what_encoded_them(command: Command, tmp_path: Path):
    assert command([folder_corpus(tmp_path / "in", 3)], tmp_path / "out")[0] == 0
    recorded = json.loads((tmp_path / "out/job.json").read_text())["encoder"]
    assert recorded.keys() == {"device", "capability", "torch", "pillow", "threads"} and recorded["device"] == "cpu"
    assert json.loads((tmp_path / "out/manifest.json").read_text())["encoders"] == [recorded]
    assert unsealed(tmp_path / "out" / PARTS / "000000.0000/part.json")["encoder"] == recorded


def test_a_worker_on_another_processor_is_told(command: Command, tmp_path: Path):
    folder = folder_corpus(tmp_path / "in", 3)
    assert command([folder], tmp_path / "out")[0] == 0
    path = tmp_path / "out/job.json"
    job = json.loads(path.read_text())
    path.write_text(json.dumps(job | {"encoder": elsewhere(job["encoder"])}))
    code, stderr = command([folder], tmp_path / "out")
    assert code == 0 and "x86_64 AVX2), torch 2.9.0" in stderr and "began this dataset" in stderr
    del job["encoder"]  # as written before it was recorded
    path.write_text(json.dumps(job))
    code, stderr = command([folder], tmp_path / "out")
    assert code == 0 and "an unrecorded processor began this dataset" in stderr


def test_a_part_that_is_made_again_says_why_it_differs(command: Command, tmp_path: Path):
    folder, output = folder_corpus(tmp_path / "in", 3), tmp_path / "out"
    assert command([folder], output)[0] == 0
    pristine = contents(output)
    shard = output / PARTS / "000000.0000/shard.00000.mds"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    code, stderr = command([folder], output)
    assert code == 0 and "made again and differs" not in stderr and contents(output) == pristine
    record = output / "files/000000.json"
    stored = unsealed(record)
    part = stored["parts"][0]
    part["encoder"] = elsewhere(part["encoder"])
    part["shards"][0]["raw_data"]["hashes"]["sha256"] = "0" * 64  # what the other processor had made
    record.write_bytes(sealed(stored))
    (output / "manifest.json").unlink()
    code, stderr = command([folder], output)
    assert code == 0 and "part 000000.0000 was made again and differs" not in stderr  # part.json says it is sound
    shard.write_bytes(whole[:-1])
    stored["parts"][0] = part
    record.write_bytes(sealed(stored))
    (output / "manifest.json").unlink()
    code, stderr = command([folder], output)
    assert code == 0 and "part 000000.0000 was made again and differs" in stderr and "torch 2.9.0" in stderr


def test_records_compare_by_what_rounds():
    one = {"device": "cpu", "capability": "x86_64 AVX2", "torch": "2.13.0", "pillow": "13.0.0", "threads": 1}
    assert rounds_alike(one, one | {"threads": 64})
    assert not rounds_alike(one, elsewhere(one)) and not rounds_alike({}, one)
    assert distinct([one, {}, elsewhere(one), one]) == [one, elsewhere(one)]
    assert "64 threads" in described(one | {"threads": 64})
