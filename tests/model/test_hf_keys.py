"""Every key of a real config.json is used, without effect for a reason, or refused by name."""

from __future__ import annotations

import pytest
import torch
import transformers

from model.families import COMMON_DEFAULTS, FAMILIES, OTHERS
from model.hf_keys import HARMLESS, PLAIN, USED, WITHOUT_EFFECT, check_keys, plain_keys
from model.hf_keys import PUBLISHED as PUBLISHED_KEYS
from model.hf_source import HuggingFaceFolder, model_config
from pretrain.system.errors import UserError
from tests.model.base_configs import CLASSES, PUBLISHED, TINY, written_by_4, written_by_5
from tests.model.tiny_hf import randomise

KINDS = [kind for kind in CLASSES if kind in FAMILIES]
FILES = {name: values for name, values in PUBLISHED.items() if values["model_type"] in FAMILIES}
FILES |= {f"{kind} of 4.57.6": written_by_4(kind) for kind in KINDS}
FILES |= {f"{name}, saved by 5.24.0": written_by_5(values) for name, values in list(FILES.items())}


class Recorded(dict):
    """A dict that knows which of its keys were asked for."""

    def __init__(self, values):
        super().__init__(values)
        self.read = set()

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key, default=None):
        self.read.add(key)
        return super().get(key, default)


def config_of(values, tmp_path):
    return model_config(HuggingFaceFolder(tmp_path, values, {}, {}), (250, 251, 252), None, 64, 0, 64)


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_used_or_harmless_or_refused(name, tmp_path):
    """And what is called used is read: a key that the code forgets is found here."""
    values = FILES[name]
    check_keys(values, name)
    read = Recorded(values)
    config_of(read, tmp_path)
    plain = plain_keys(values["model_type"])
    for key, value in values.items():
        ways = [key in read.read, key in WITHOUT_EFFECT, key in plain or key == "layer_types"]
        assert sum(ways) == 1 or value is None, key
        if ways[2] and value is not None:
            with pytest.raises(UserError, match=key):
                check_keys({**values, key: ["sliding_attention"] if key == "layer_types" else "another"}, name)


def test_the_lists_of_keys_do_not_overlap():
    lists = [*HARMLESS.values(), USED, PUBLISHED_KEYS, tuple(PLAIN)]
    keys = [key for some in lists for key in some]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_is_called_harmless_is(kind):
    """transformers' own class gives the same logits whatever the value."""
    others = {
        **dict.fromkeys(HARMLESS["dropout in training is the run's to choose"], 0.5),
        "sliding_window": 3,
        "max_window_layers": 1,
        "pretraining_tp": 2,
        "chunk_size_feed_forward": 1,
        "bos_token_id": 7,
        "eos_token_id": 7,
        "pad_token_id": 7,
        "use_cache": False,
        "is_decoder": True,
        "tie_encoder_decoder": True,
        "prefix": "x",
        "torchscript": False,
        "tf_legacy_loss": True,
        "temperature": 0.1,
        "top_k": 1,
        "repetition_penalty": 2.0,
        "classifier_dropout": 0.5,
        "tokenizer_class": "X",
        "id2label": {"0": "a"},
    }
    assert others.keys() <= WITHOUT_EFFECT.keys()
    others = {
        key: value for key, value in others.items() if key not in FAMILIES[kind].plain
    }  # those have an effect there
    ids = torch.randint(0, 272, (2, 20), generator=torch.Generator().manual_seed(3))
    model = getattr(transformers, FAMILIES[kind].causal_lm)
    base = randomise(model(CLASSES[kind](**TINY)), seed=5)
    changed = model(CLASSES[kind](**TINY, **others)).eval()
    changed.load_state_dict(base.state_dict())
    assert torch.equal(changed(ids).logits, base(ids).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_absent_key_means(kind):
    """As transformers' class has it."""
    theirs = CLASSES[kind]().to_dict()
    theirs = {**(theirs.get("rope_parameters") or {}), **theirs}  # where transformers 5 keeps rope_theta
    for key, value in {**COMMON_DEFAULTS, **FAMILIES[kind].defaults}.items():
        if value is None:
            bare = CLASSES[kind](hidden_size=96, num_attention_heads=6)
            expected = {"num_key_value_heads": 6, "head_dim": 16}[key]
            found = getattr(bare, key, None)  # None: the class leaves it to its model
            assert found in (None, expected), key
        else:
            assert theirs[key] == value, key


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"rope_local_base_freq": 1e4}, "rope_local_base_freq (10000.0) is not known here"),
        ({"num_experts": 64}, "num_experts (64) is not known here"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: quantised weights"),
        ({"use_sliding_window": True}, "use_sliding_window is True: a sliding window .* set it to false"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has .*sliding_attention"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"hidden_size": None}, "hidden_size is None: a whole number"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers is '4'"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True: a whole number"),
        ({"max_position_embeddings": "4096"}, "max_position_embeddings is '4096': a whole number"),
        ({"max_position_embeddings": 4096.5}, "max_position_embeddings is 4096.5: a whole number"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0: a whole number"),
        ({"head_dim": "128"}, "head_dim is '128': a whole number"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6': a number above 0"),
        ({"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06: a number above 0"),
        ({"initializer_range": float("nan")}, "initializer_range is nan: a number above 0"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false': true or false"),
        ({"layer_types": "full_attention"}, "layer_types has 'full_attention'"),
        ({"layer_types": 3}, "layer_types has 3"),
        *[({"model_type": other}, f"model_type is '{other}', {why}") for other, why in OTHERS.items()],
        ({"model_type": "gpt2"}, "model_type is 'gpt2'"),
    ],
)
def test_what_is_refused_is_named(changes, parts):
    with pytest.raises(UserError, match="a/config.json: " + parts.replace("(", r"\(").replace(")", r"\)")) as error:
        check_keys({**PUBLISHED["Qwen2.5"], **changes}, "a/config.json")
    assert "\n" not in str(error.value)
