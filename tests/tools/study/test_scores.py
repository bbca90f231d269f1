"""Log probabilities of pairs against one document at a time, and who comes first."""

from __future__ import annotations

import numpy
import pytest
import torch

from model.prompts import DEFAULT_TEMPLATES
from pretrain.rows import RowSize
from pretrain.tasks import IMAGE_TO_TEXT, TEXT_TO_IMAGE, build_document, tokenize_prompts
from tests.model.tiny_hf import TEXT_IDS
from tests.model.tiny_training import document_logits, routing_of, row_of, training_config, training_model
from tools.study.scores import document_log_likelihoods, first_place, pair_scores


def test_scores_are_log_probabilities_of_the_documents_targets():
    config = training_config(layer_kinds=("separated", "shared", "mot"))
    model = training_model(config)
    tokenized = tokenize_prompts(lambda text: [1 + len(text) % 7, 2], config.vocabulary, DEFAULT_TEMPLATES)
    texts, pictures = [[5, 9], [7], [3, 3, 8]], [numpy.array([1, 2, 3, 4]), numpy.array([9, 9, 0, 31])]

    def losses(row):
        with torch.no_grad():
            return model(row.ids, row.labels, row.targets, routing_of(row, config))[0].double()

    for task in (TEXT_TO_IMAGE, IMAGE_TO_TEXT):
        found = pair_scores(losses, tokenized, texts, pictures, task, sequence_length=64)
        assert found.shape == (3, 2)
        for i, text in enumerate(texts):
            for j, codes in enumerate(pictures):
                ids, labels = build_document(tokenized, task, 0, text, codes, False)
                row = row_of([ids.tolist()], config, tokens=64)
                log_p = document_logits(model, row, config)[: len(ids)].double().log_softmax(-1)
                chosen = [(place, label) for place, label in enumerate(labels) if label >= 0]
                expected = sum(float(log_p[place, label]) for place, label in chosen)
                assert found[i, j] == pytest.approx(expected, abs=1e-4)
                codes_among = sum(label >= TEXT_IDS for _, label in chosen)
                assert codes_among == (4 if task == TEXT_TO_IMAGE else 0)
    documents = [build_document(tokenized, TEXT_TO_IMAGE, 0, text, pictures[0], False) for text in texts]
    wide, narrow = (document_log_likelihoods(losses, tokenized, documents, RowSize(n, 8)) for n in (512, 32))
    assert numpy.allclose(wide, narrow, atol=1e-5)


def test_what_a_candidate_has_with_all_queries_is_taken_out():
    likely = numpy.array([0.0, 50.0, -20.0])  # of candidates, whatever the query
    scores = numpy.eye(3) * 2 + likely
    assert first_place(scores) == {"accuracy": 1.0, "rank": 1.0, "candidates": 3}
    wrong = numpy.roll(numpy.eye(3), 1, axis=1) * 2 + likely
    assert first_place(wrong)["accuracy"] == 0.0
    blind = first_place(numpy.zeros((4, 4)) + numpy.arange(4.0))
    assert blind["accuracy"] == 0.0 and blind["rank"] == pytest.approx(
        1 / 2.5
    )  # all equal: a middle place, never the first
