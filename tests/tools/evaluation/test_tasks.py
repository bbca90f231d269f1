"""The table of evaluations and the flags of the command line fit together."""

from __future__ import annotations

import pytest

from pretrain.system.errors import UserError
from tools.evaluation.arguments import FLAGS, build_parser, check_arguments
from tools.evaluation.tasks import EVALUATIONS

SHARED = {"model"}  # of the command line itself


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_evaluation_reads_flags_that_there_are_and_its_function_is_there(name):
    evaluation = EVALUATIONS[name]
    assert set(evaluation.flags) <= set(FLAGS) and set(evaluation.needs) <= set(FLAGS) | SHARED
    assert callable(evaluation.function())


def test_every_flag_is_read_by_an_evaluation():
    assert set(FLAGS) == {flag for evaluation in EVALUATIONS.values() for flag in evaluation.flags}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_what_is_not_given_becomes_the_default_and_flags_of_others_are_refused(name):
    evaluation = EVALUATIONS[name]
    parser = build_parser("", "{tasks}")
    of = ["--checkpoint", "X"] if evaluation.of_checkpoints else ["--model", "X"]
    needed = {"prompts_file", "pictures", *evaluation.needs} & set(evaluation.flags) - {"check"}
    words = ["--task", name, "--output", "Y", *of]
    words += [word for flag in sorted(needed) for word in (f"--{flag.replace('_', '-')}", "Z")]
    args = parser.parse_args(words)
    check_arguments(args)
    given = needed | {"checkpoint"}
    expected = {flag: default for flag, default in evaluation.flags.items() if flag not in given}
    assert {flag: getattr(args, flag) for flag in expected} == expected
    other = next(flag for flag in ("vq", "judge") if flag not in evaluation.flags)
    with pytest.raises(UserError, match=f"--{other} means nothing to --task {name}"):
        check_arguments(parser.parse_args([*words, f"--{other}", "Q"]))


GENEVAL = ["--task", "geneval", "--prompts-file", "Z"]
IMGEDIT = ["--task", "imgedit", "--prompts-file", "Z"]
HELDOUT = ["--task", "heldout", "--checkpoint", "X"]


@pytest.mark.parametrize(
    "words, message",
    [
        ([*GENEVAL, "--check", "--scored", "S"], "--check and --scored: give one of them"),
        ([*GENEVAL, "--check", "--seed", "4"], "--seed changes nothing of --check"),
        ([*GENEVAL, "--check", "--model", "X"], "--model changes nothing of --check"),
        ([*GENEVAL, "--check", "--device", "cpu"], "--device changes nothing of --check"),
        ([*GENEVAL, "--check", "--judge", "J"], "--judge changes nothing of --check"),
        ([*GENEVAL, "--scored", "S", "--guidance", "4"], "--guidance changes nothing of --scored"),
        ([*GENEVAL, "--scored", "S", "--model", "X"], "--model changes nothing of --scored"),
        ([*GENEVAL, "--model", "X", "--judge", "J"], "--judge changes nothing without --scored"),
        ([*IMGEDIT, "--scored", "S", "--judge", "J", "--pictures", "P"], "--pictures changes nothing of --scored"),
        ([*HELDOUT, "--dtype", "bfloat16"], "--dtype changes nothing of --checkpoint"),
        ([*HELDOUT, "--device", "cpu"], "--device changes nothing of --checkpoint"),
        (["--task", "reconstruction", "--data", "D", "--vq", "V", "--model", "X"], "--vq or --model, one of them"),
    ],
)
def test_a_flag_that_would_change_nothing_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        check_arguments(build_parser("", "{tasks}").parse_args(["--output", "Y", *words]))


def test_what_a_check_and_scores_are_of_may_be_said():
    for words in (
        [*GENEVAL, "--check", "--rewritten", "R", "--per-kind", "2"],
        [*IMGEDIT, "--check", "--pictures", "P"],
        [*GENEVAL, "--scored", "S", "--rewritten", "R", "--judge", "J"],
    ):
        check_arguments(build_parser("", "{tasks}").parse_args(["--output", "Y", *words]))
