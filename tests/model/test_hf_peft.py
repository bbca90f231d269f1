"""peft on the classes of exports: adapters on layers and head, adapters of other models, and what is refused."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from model.hf.modeling_uni_x import UniXForCausalLM
from pretrain.system.errors import UserError
from tests.model.tiny_hf import KINDS, document, tiny_config, tiny_model
from tools.export.folder import check_export

IDS = torch.tensor([document([4, 3, 2])])


def adapted(**changes):
    """A model with LoRA on every linear layer and the head, whose second halves are not zero."""
    model = tiny_model(tie_word_embeddings=False, **changes)
    names = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    torch.manual_seed(0)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=names))
    with torch.no_grad():
        for index, (name, weight) in enumerate(tuned.named_parameters()):
            if "lora_B" in name:
                weight.normal_(std=0.2, generator=torch.Generator().manual_seed(index))
    return tuned.eval()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    adapted().save_pretrained(folder)
    return folder


@torch.no_grad()
def test_layers_and_head_are_tuned_saved_loaded_and_merged(adapter, tmp_path):
    tuned = adapted()
    expected = tuned(IDS).logits
    base = tiny_model(tie_word_embeddings=False)
    assert (base(IDS).logits - expected).abs().max() > 0.1
    again = PeftModel.from_pretrained(base, adapter).eval()
    assert torch.equal(again(IDS).logits, expected)
    again.merge_and_unload().save_pretrained(tmp_path)
    merged = UniXForCausalLM.from_pretrained(tmp_path).eval()
    assert (merged(IDS).logits - expected).abs().max() < 1e-4
    options = {"num_codes": 6, "guidance_scale": 1.0, "temperature": 0}
    prompt = torch.tensor([[5, 6, merged.config.vision_start_token_id]])
    assert torch.equal(merged.generate_images(prompt, **options), tuned.generate_images(prompt, **options))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 16}, r"has shape \[122, 32\], and this model has shape \[122, 16\]"),
        ({"layer_kinds": ("shared",) * 4}, r"vision_layers.0.* and this model has no such part"),
        ({"layer_kinds": KINDS[:2]}, r"layers.2.* and this model has no such part"),
    ],
    ids=["sizes", "kinds", "layers"],
)
def test_an_adapter_of_another_model_is_refused_in_one_line(adapter, changes, message):
    """torch drops weights without a place, and peft says nothing (0.21.2)."""
    other = UniXForCausalLM(tiny_config(tie_word_embeddings=False, **changes))
    with pytest.raises(ValueError, match=f"the adapter is of another model: .*{message}: open the model that") as error:
        PeftModel.from_pretrained(other, adapter)
    assert "\n" not in str(error.value)


def test_other_loads_are_as_in_torch(adapter):
    model = tiny_model(tie_word_embeddings=False)
    weights = {**model.state_dict(), "more": torch.zeros(1)}
    assert model.load_state_dict(weights, strict=False).unexpected_keys == ["more"]
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(ValueError, match="of another model"):
            copied.load_state_dict({"model.layers.9.lora_A.weight": torch.zeros(2, 2)}, strict=False)


def test_the_folder_of_an_adapter_is_no_model(adapter):
    with pytest.raises(UserError, match="is an adapter of peft, not a model: load it onto its model"):
        check_export(adapter)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            PromptTuningConfig,
            "inputs_embeds do not say which tokens are of pictures: .*prompt tuning .*: tune with LoRA",
        ),
        (PrefixTuningConfig, "3 tokens whose modality is not known: .*prefix tuning .*: tune with LoRA"),
    ],
)
def test_learned_prompts_are_refused_by_name(settings, message):
    tuned = get_peft_model(tiny_model(), settings(task_type="CAUSAL_LM", num_virtual_tokens=3))
    # with transformers 5.24.0, generate of peft 0.21.2 leaves the prefix out by itself (seen of Qwen2, too)
    left_out = settings is PrefixTuningConfig and not transformers.__version__.startswith("4.")
    for call in (tuned,) if left_out else (tuned, tuned.generate):
        with pytest.raises(ValueError, match=message):
            call(input_ids=IDS)


@pytest.mark.parametrize("settings", [PromptTuningConfig, PrefixTuningConfig])
def test_pictures_are_not_drawn_without_the_prompt_that_was_learned(settings):
    """A model of shared layers alone takes learned prompts in texts; peft leaves them out of methods that are ours."""
    model = tiny_model(layer_kinds=("shared",) * 4)
    prompt = torch.tensor([[5, 6, model.config.vision_start_token_id]])
    options = {"num_codes": 2, "guidance_scale": 1.0}
    assert model.generate_images(prompt, **options).shape == (1, 2)
    tuned = get_peft_model(model, settings(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    assert tuned(input_ids=prompt).logits.isfinite().all()
    for call in (
        lambda: tuned.generate_images(prompt, **options),
        lambda: tuned.generate_documents([[5, 6]], num_codes=2, guidance_scale=1.0),
    ):
        with pytest.raises(ValueError, match="without the prompt that peft learned: tune with LoRA"):
            call()
