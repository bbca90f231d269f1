"""trl itself on an export: what its trainers make of texts, conversations and pictures, and what is learned and sampled.

`make test-trl` runs these with trl, of which the other tests know nothing.
"""

from __future__ import annotations

import json
import runpy
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from tests.model.processor_of_export import modules_apart
from tests.tools.tiny_export import CHATML, write_export

ROOT = Path(__file__).resolve().parents[2]
COMMON = {"use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
TEXTS = [{"text": "one two"}, {"text": "three"}]
SAID = [("a", "bee"), ("cc", "d")]
TURNS = [
    {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]} for asked, said in SAID
]
PAIRS = [
    {
        "prompt": [{"role": "user", "content": asked}],
        "chosen": [{"role": "assistant", "content": said}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    for asked, said in SAID
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    with modules_apart(str(tmp_path_factory.mktemp("modules"))):
        yield write_export(tmp_path_factory.mktemp("trl") / "export", CHATML, max_position_embeddings=512)


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder, trust_remote_code=True)


def open_model(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def processing(folder, name: str):
    """What people give a trainer: nothing, so that it opens the folder's processor; the processor; the tokenizer."""
    if name == "default":
        return None
    opener = AutoTokenizer if name == "tokenizer" else AutoProcessor
    return opener.from_pretrained(folder, trust_remote_code=True)


def sft(folder, tmp_path, rows, processing_class=None, model=None, peft_config=None, **settings) -> SFTTrainer:
    values = {"per_device_train_batch_size": len(rows), "max_steps": 1, "trust_remote_code": True, **COMMON}
    return SFTTrainer(
        open_model(folder) if model is None else model,
        SFTConfig(str(tmp_path), **{**values, **settings}),
        train_dataset=Dataset.from_list(rows),
        processing_class=processing_class,
        peft_config=peft_config,
    )


def rows_of(batch, name: str = "input_ids") -> list[list[int]]:
    """What each row of a batch has under a name, without its padding."""
    return [row[mask.bool()].tolist() for row, mask in zip(batch[name], batch.get("attention_mask", batch[name] >= 0))]


def batch_of(trainer):
    return next(iter(trainer.get_train_dataloader()))


given = pytest.mark.parametrize("name", ["default", "tokenizer"])


@given
def test_a_tuned_model_stops(folder, processor, tmp_path, name):
    """trl ends texts with the end of text, as text: it has to be one id, and to be learned."""
    trainer = sft(
        folder,
        tmp_path,
        TEXTS,
        processing(folder, name),
        max_steps=60,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
    )
    rows = rows_of(batch_of(trainer))
    assert sorted(rows) == sorted([*processor.encode(row["text"]), processor.eos] for row in TEXTS)
    trainer.train()
    prompts = processor([row["text"][:1] for row in TEXTS], return_tensors="pt")
    said = trainer.model.generate(**prompts, max_new_tokens=20, do_sample=False).tolist()
    for row, text in zip(said, TEXTS, strict=True):
        stop = row.index(processor.eos)
        assert row[:stop] == processor.encode(text["text"])


@given
def test_of_conversations_answers_alone_are_learned_and_end(folder, processor, tmp_path, name, caplog):
    settings = {"max_steps": 60, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer = sft(folder, tmp_path, TURNS, processing(folder, name), assistant_only_loss=True, **settings)
    assert not [record for record in caplog.records if "end-of-turn" in record.getMessage()]
    batch = batch_of(trainer)
    expected = [processor.apply_chat_template(row["messages"])["input_ids"][0] for row in TURNS]
    assert sorted(rows_of(batch)) == sorted(expected)
    learned = [[token for token in row.tolist() if token != -100] for row in batch["labels"]]
    assert sorted(map(processor.tokenizer.decode, learned)) == ["bee<|im_end|>", "d<|im_end|>"]
    trainer.train()
    closing = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    for asked, said in SAID:
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": asked}], add_generation_prompt=True, return_tensors="pt"
        )
        found = trainer.model.generate(**prompt, max_new_tokens=12, do_sample=False, eos_token_id=closing)
        assert found[0, prompt["input_ids"].shape[1] :].tolist() == [*processor.encode(said), closing]


def test_workers_get_the_processor(folder, processor, tmp_path):
    """`dataset_num_proc`: data sets send the processor to other processes, by dill."""
    batch = batch_of(sft(folder, tmp_path, TURNS, processing(folder, "processor"), dataset_num_proc=2))
    assert sorted(rows_of(batch)) == sorted(
        processor.apply_chat_template(row["messages"])["input_ids"][0] for row in TURNS
    )


@pytest.mark.parametrize("settings", [{"packing": True, "max_length": 64}, {"padding_free": True, "max_length": None}])
def test_documents_of_a_packed_row_are_apart(folder, tmp_path, settings):
    """The loss of a packed row is that of its documents, each alone."""
    trainer = sft(folder, tmp_path, [*TEXTS, {"text": "and a third one"}], **settings)
    batch = trainer._prepare_inputs(batch_of(trainer))
    assert len(batch["input_ids"]) == 1 and "attention_mask" not in batch
    model = trainer.model.eval()
    with torch.no_grad():
        for caching in (True, False):
            packed = model(**{k: v for k, v in batch.items() if k != "labels"}, use_cache=caching).logits[0]
            starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), batch["input_ids"].shape[1]]
            assert len(starts) == 4
            for start, end in zip(starts, starts[1:]):
                alone = model(batch["input_ids"][:, start:end]).logits[0]
                assert (packed[start:end] - alone).abs().max() < 1e-5


def grpo(folder, tmp_path, processing_class, prompts, **settings) -> list[list[int]]:
    """Trains two steps of GRPO, rewarding texts that differ -> ids of all answers that were sampled."""
    sampled: list[list[int]] = []

    def reward(completions, completion_ids, **_):
        sampled.extend(completion_ids)
        return [float(len(set(ids))) for ids in completion_ids]

    values = {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 12,
        "trust_remote_code": True,
        **COMMON,
        **settings,
    }
    GRPOTrainer(
        eager_for_pictures(open_model(folder)),
        reward_funcs=reward,
        args=GRPOConfig(str(tmp_path), **values),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=processing_class,
    ).train()
    assert len(sampled) == 16
    return sampled


def eager_for_pictures(model):
    """The model, whose head makes it likely to open pictures, and a code likelier than text."""
    config = model.config
    head = torch.nn.Linear(config.hidden_size, config.vocab_size)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()
        head.bias[[config.vision_start_token_id, *range(config.image_token_offset, config.vocab_size)]] = 3.0
    model.lm_head = head
    return model


@pytest.mark.parametrize("name", ["default", "processor", "tokenizer"])
@pytest.mark.parametrize(
    "prompts", [["ab", "a longer one"], [PAIRS[0]["prompt"], PAIRS[1]["prompt"]]], ids=["text", "chat"]
)
def test_reinforced_texts_hold_no_codes_but_those_of_pictures_that_were_opened(
    folder, tmp_path, name, prompts, processor
):
    config = open_model(folder).config
    opened = 0
    for ids in grpo(folder, tmp_path, processing(folder, name), prompts):
        inside = False
        for token in ids:
            assert inside == (token >= config.image_token_offset or token == config.vision_end_token_id), ids
            inside = token == config.vision_start_token_id or (inside and token != config.vision_end_token_id)
            opened += token == config.vision_start_token_id
    assert bool(opened) == (name == "tokenizer")  # with a processor trl asks for no picture at all


def test_prompts_of_reinforcement_have_no_padding(folder, processor, tmp_path):
    """trl takes every id that the processor gives for one of the prompt's, and pads with a mask of its own."""
    seen = []
    texts = ["a", "a longer one"]
    model = open_model(folder)
    with pytest.MonkeyPatch.context() as patch:
        whole = type(model).generate
        patch.setattr(
            type(model), "generate", lambda self, *args, **all_: seen.append(all_) or whole(self, *args, **all_)
        )
        grpo(folder, tmp_path, processing(folder, "processor"), texts)
    rows = [row for one in seen for row in rows_of(one)]
    assert sorted({tuple(row) for row in rows}) == sorted(tuple(processor.encode(text)) for text in texts)


@given
def test_preferences_are_learned(folder, processor, tmp_path, name):
    trainer = DPOTrainer(
        open_model(folder),
        args=DPOConfig(
            str(tmp_path),
            max_steps=5,
            learning_rate=1e-3,
            per_device_train_batch_size=2,
            trust_remote_code=True,
            logging_steps=1,
            **COMMON,
        ),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=processing(folder, name),
    )
    batch = batch_of(trainer)
    learned = [
        row[mask.bool()].tolist() for row, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True)
    ]
    decoded = sorted(processor.tokenizer.decode(row).strip() for row in learned)
    assert decoded == ["bee<|im_end|>", "d<|im_end|>", "no<|im_end|>", "no<|im_end|>"]
    trainer.train()
    assert [line["rewards/accuracies"] for line in trainer.state.log_history if "loss" in line][-1] == 1.0


def with_pictures(rows, key: str) -> list[dict]:
    return [
        {**row, key: [Image.new("RGB", (16, 16), colour)]} for row, colour in zip(rows, ("red", "blue"), strict=True)
    ]


def test_pictures_of_prompts_are_their_codes(folder, processor, tmp_path):
    """SFT and DPO: trl puts a data set's pictures before the first words of the user."""
    rows = [
        {"prompt": row["messages"][:1], "completion": row["messages"][1:], "images": pictures["images"]}
        for row, pictures in zip(TURNS, with_pictures(TURNS, "images"), strict=True)
    ]
    batch = batch_of(sft(folder, tmp_path, rows))
    expected = [
        processor.apply_chat_template(
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": row["images"][0]},
                        {"type": "text", "text": row["prompt"][0]["content"]},
                    ],
                },
                *row["completion"],
            ]
        )["input_ids"][0]
        for row in rows
    ]
    assert sorted(rows_of(batch)) == sorted(expected)
    learned = [[token for token in row.tolist() if token != -100] for row in batch["labels"]]
    assert sorted(processor.tokenizer.decode(row).strip() for row in learned) == ["bee<|im_end|>", "d<|im_end|>"]
    trainer = DPOTrainer(
        open_model(folder),
        args=DPOConfig(str(tmp_path), max_steps=1, per_device_train_batch_size=2, trust_remote_code=True, **COMMON),
        train_dataset=Dataset.from_list(with_pictures(PAIRS, "images")),
    )
    assert sorted(rows_of(batch_of(trainer)))[0][: len(expected[0]) // 2] in [
        row[: len(expected[0]) // 2] for row in expected
    ]
    trainer.train()


@given
def test_adapters_are_saved_merged_and_loaded(folder, processor, tmp_path, name):
    """trl refuses a head as a target by name; tests/model/test_hf_peft.py has one, with peft alone."""
    trainer = sft(
        folder,
        tmp_path / "run",
        TURNS,
        processing(folder, name),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        max_steps=4,
        learning_rate=1e-2,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapters"))
    ids = processor(["one"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = trainer.model.eval()(ids).logits
        plain = open_model(folder)
        assert (plain(ids).logits - expected).abs().max() > 1e-3
        again = PeftModel.from_pretrained(plain, tmp_path / "adapters")
        assert torch.equal(again.eval()(ids).logits, expected)
        again.merge_and_unload().save_pretrained(tmp_path / "merged")
        whole = open_model(tmp_path / "merged").eval()
        assert (whole(ids).logits - expected).abs().max() < 1e-4
    prompts = AutoProcessor.from_pretrained(tmp_path / "merged", trust_remote_code=True).draw(["a"])
    assert whole.generate_images(**prompts).shape == (1, 16)


@given
def test_what_a_trainer_saves_reads_and_draws(folder, tmp_path, name):
    trainer = sft(folder, tmp_path / "run", TURNS, processing(folder, name))
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoProcessor.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    codes = open_model(tmp_path / "saved").generate_images(**again.draw(["a"]))
    assert again.pictures(codes)[0].size == (8, 8) and again.codes([Image.new("RGB", (16, 16))]).shape == (1, 16)


@pytest.fixture
def workplace(folder, tmp_path, monkeypatch) -> Path:
    """A folder in which the export and a small corpus lie where `make demo` puts them."""
    shutil.copytree(folder, tmp_path / "work/demo/model")
    for part in ("train", "heldout"):
        corpus = tmp_path / "work/data/corpus" / part / "folder"
        corpus.mkdir(parents=True)
        lines = []
        for number, colour in enumerate(("red", "green", "blue", "white")):
            Image.new("RGB", (16, 16), colour).save(corpus / f"{number}.png")
            lines.append(json.dumps({"captions": [colour], "image": f"{number}.png"}))
        (corpus / "captions.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("kind", "corpus"), [("sft", "heldout"), ("dpo", "train"), ("grpo", "train")])
def test_the_examples_run_as_their_page_says(workplace, monkeypatch, capsys, kind, corpus):
    page = (ROOT / "docs/other-tools.md").read_text(encoding="utf-8")
    command = (
        f"python docs/examples/trl_{kind}_pictures.py --model work/demo/model --corpus work/data/corpus/{corpus}/folder"
    )
    assert f"\n{command} --output work/{kind}\n" in page
    few = ["--output", f"work/{kind}", "--names", "4" if kind == "sft" else "2", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", [*command.split()[1:], *few])
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"before", "after", "seconds", "seed"} <= set(found)
    assert Image.open(f"work/{kind}/pictures.png").width > 0
    assert open_model(workplace / "work" / kind / "model").config.model_type == "uni_x"


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "work"], "--model work: is no export: a folder of tools/convert_to_hf.py is needed"),
        (["--corpus", "work"], "--corpus work: has no captions.jsonl: a folder like "),
        (["--names", "5"], "--names 5: work/data/corpus/train/folder/captions.jsonl has 4 pictures, and "),
        (["--names", "0"], "--names 0: "),
    ],
)
def test_what_an_example_cannot_use_is_refused_in_a_line(workplace, monkeypatch, capsys, kind, words, message):
    given = ["--model", "work/demo/model", "--corpus", "work/data/corpus/train/folder", "--output", "work/o", *words]
    monkeypatch.setattr(sys, "argv", [f"trl_{kind}_pictures.py", *given])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / f"docs/examples/trl_{kind}_pictures.py"), run_name="__main__")
    assert stopped.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]
    assert not Path("work/o").exists()


def test_the_python_of_the_page_runs(workplace):
    page = (ROOT / "docs/other-tools.md").read_text(encoding="utf-8")
    code = page.split("## Trainers")[1].split("```python\n")[1].split("```")[0]
    assert code.startswith("from datasets import Dataset")
    exec(compile(code, "docs/other-tools.md", "exec"), {})
    assert open_model(workplace / "work/tuned").config.model_type == "uni_x"
