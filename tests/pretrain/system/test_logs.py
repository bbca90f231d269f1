"""Lines of a run as log records: on the console as people read them, elsewhere with rank, level and time."""

import json
import logging

from pretrain.coordination import Coordinator
from pretrain.rank_log import RankLog
from pretrain.records import Records
from pretrain.system.logs import LOGGER, EarlyWarnings


class Kept(logging.Handler):
    """What somebody who adds a handler gets, in a format of their own."""

    def __init__(self):
        super().__init__()
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(levelname)s [rank %(rank)d] %(message)s"))

    def emit(self, record):
        self.lines.append(self.format(record))


def test_the_console_has_bare_lines_and_handlers_have_rank_and_level(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    kept = Kept()
    LOGGER.addHandler(kept)
    try:
        alone = Coordinator()
        alone.say("step 4")
        alone.warn("a checkpoint could not be written: 100% full")
        LOGGER.error("all is lost")
        Coordinator(rank=1, size=2).warn("said by rank 0 alone")
    finally:
        LOGGER.removeHandler(kept)
    said = capsys.readouterr()
    assert (
        said.out == "step 4\nwarning: a checkpoint could not be written: 100% full\n"
        and said.err == "error: all is lost\n"
    )
    assert kept.lines == [
        "INFO [rank 3] step 4",
        "WARNING [rank 3] a checkpoint could not be written: 100% full",
        "ERROR [rank 3] all is lost",
    ]


def test_a_rank_that_is_no_number_costs_no_line(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "")
    Coordinator().say("step 1")
    assert capsys.readouterr().out == "step 1\n"


def test_warnings_of_a_rank_stand_in_its_own_log_while_it_is_open(tmp_path, capsys):
    with Records(lambda level, line: None) as records:
        with RankLog(tmp_path, 7, records):
            Coordinator().say("not there")
            LOGGER.warning("loader worker 12 was killed")
        LOGGER.warning("too late")
    (line,) = map(json.loads, (tmp_path / "rank_0007.jsonl").read_text().splitlines())
    assert line.pop("time") > 0 and line == {"level": "warning", "message": "loader worker 12 was killed"}
    assert "warning: too late" in capsys.readouterr().out


def test_warnings_of_a_start_stand_in_the_ranks_log_before_those_of_the_run(tmp_path):
    with EarlyWarnings() as early, Records(lambda level, line: None) as records:
        LOGGER.info("not there")
        LOGGER.warning("held-out data are training data")
        with RankLog(tmp_path, 0, records, early):
            LOGGER.warning("loader worker 12 was killed")
        LOGGER.warning("too late")
    lines = [json.loads(line) for line in (tmp_path / "rank_0000.jsonl").read_text().splitlines()]
    assert [line["message"] for line in lines] == ["held-out data are training data", "loader worker 12 was killed"]
    assert lines[0]["time"] <= lines[1]["time"] and early not in LOGGER.handlers
