"""ModelTesterMixin and ConfigTester of the installed transformers on UniXModel and UniXForCausalLM, one class a layout.

`run.py` puts the suites' files where `transformers_tests` is found; this file is no test_*.py, so that pytest leaves it
alone elsewhere.
"""

from __future__ import annotations

import unittest

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin

from model.hf.configuration_uni_x import UniXConfig
from model.hf.modeling_uni_x import UniXForCausalLM, UniXModel
from tests.model.tiny_hf import tiny_config
from tests.transformers_suite.skips import ONLY_IN_5, SKIPS

LAYOUTS = {
    "shared": ("shared", "shared"),
    "separated": ("separated", "separated"),
    "mixed": ("moe_hard", "separated"),
}

# The suite finds the labels of a class, and which classes have none, by the names that transformers itself lists.
modeling_auto.MODEL_MAPPING_NAMES["uni_x"] = "UniXModel"
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["uni_x"] = "UniXForCausalLM"


class UniXTester:
    """What the suite asks of a model: sizes by their names, a configuration, and inputs."""

    def __init__(self, parent: unittest.TestCase, layout: str) -> None:
        self.parent, self.layer_kinds = parent, LAYOUTS[layout]
        self.batch_size, self.seq_length, self.is_training = 5, 11, True
        config = self.get_config()
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size"):
            setattr(self, name, getattr(config, name))
        self.encoder_seq_length = self.key_length = self.seq_length

    def get_config(self) -> UniXConfig:
        return tiny_config(layer_kinds=self.layer_kinds, num_hidden_layers=len(self.layer_kinds))

    def prepare_config_and_inputs_for_common(self) -> tuple[UniXConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        ids = torch.randint(1, config.vocab_size, (self.batch_size, self.seq_length))
        return config, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def suite_of(layout: str) -> type:
    """The test class of one layout, without the tests that `SKIPS` leaves out."""

    class UniXSuite(ModelTesterMixin, unittest.TestCase):
        all_model_classes = (UniXModel, UniXForCausalLM)
        all_generative_model_classes = (UniXForCausalLM,)
        test_resize_embeddings = False  # refused: skips.py
        test_resize_embeddings_untied = False
        test_pruning = False  # there are no heads to prune
        test_head_masking = False
        test_missing_keys = False
        fx_compatible = False
        test_torchscript = False
        has_attentions = True

        def setUp(self) -> None:
            self.model_tester = UniXTester(self, layout)
            self.config_tester = ConfigTester(
                self,
                config_class=UniXConfig,
                has_text_modality=False,  # that would set vocab_size alone, too
                # the suite sets one size alone; numbers of heads and layers have to fit others, or are refused by name
                common_properties=["hidden_size", "intermediate_size"],
            )
            name = self._testMethodName
            for beginning, (layouts, reason) in SKIPS.items():
                if beginning in ONLY_IN_5 and transformers.__version__.startswith("4."):
                    continue
                if name.startswith(beginning) and (not layouts or layout in layouts):
                    self.skipTest(f"skips.py: {reason}")

        def test_config(self) -> None:
            self.config_tester.run_common_tests()

    UniXSuite.__name__ = UniXSuite.__qualname__ = f"TestUniX{layout.capitalize()}"
    return UniXSuite


TestUniXShared, TestUniXSeparated, TestUniXMixed = (suite_of(layout) for layout in LAYOUTS)
