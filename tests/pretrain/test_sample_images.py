"""Pictures drawn while training: the others never wait for longer than between two signs of life, and errors are of all."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pretrain import sample_images, sample_writer
from pretrain.coordination import Coordinator
from pretrain.sample_writer import SampleWriter, place_of_drawing
from tests.pretrain import checkpoint_jobs


@pytest.mark.parametrize("fails, found", [(False, ["done", None]), (True, ["OSError", "ReportedByOtherRank"])])
def test_others_hear_of_long_work_until_it_ends(world, fails, found):
    assert world.run(checkpoint_jobs.wait_for_long_work, 2, signs=3, fails=fails) == [(found[0], 3), (found[1], 3)]


def test_on_a_cpu_pictures_are_drawn_in_float32_on_it():
    assert place_of_drawing() == (torch.device("cpu"), torch.float32)


def test_a_gpu_without_room_costs_a_warning_and_no_run(monkeypatch, capsys):
    """The error is the one that CUDA's allocator raises; the model that asks for the memory is not made here."""

    def no_room(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(sample_images, "hugging_face_model", no_room)
    drawing = object.__new__(SampleWriter)
    drawing.captions, drawing.coordinator, drawing.data = (
        ("a",),
        Coordinator(),
        SimpleNamespace(model_config=None, picture_shapes=list),
    )
    engine = SimpleNamespace(weights=lambda: iter([("w", torch.zeros(1 << 10))]))
    drawing.draw(engine, 7, records=None, alive=lambda: None)
    assert "warning: the sample pictures of step 7 are not drawn" in capsys.readouterr().out
    assert sample_writer.place_of_drawing()[0].type == "cpu"
