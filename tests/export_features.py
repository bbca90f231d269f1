"""Features of transformers, peft and accelerate tried on an export, one function each; tests/export_by_hand.py calls them.

Each takes the export's folder and an empty folder to work in, raises an error where the feature fails, and returns what
the table says. It is run where the repository cannot be imported.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

DRAW = {"guidance_scale": 3.0}


def generator(seed: int = 0):
    import torch

    return torch.Generator().manual_seed(seed)


def open_model(folder: Path, **options):
    import torch
    from transformers import AutoModelForCausalLM

    options = {"dtype": torch.float32, **options}
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()


def open_processor(folder: Path):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(folder, trust_remote_code=True)


def picture(seed: int = 0):
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (70, 60, 3), dtype=np.uint8))


def codes_of(model, processor, **options) -> list[list[int]]:
    prompts = processor.draw(["red heart", "pizza"])
    return model.generate_images(**prompts, **DRAW, generator=[generator(1), generator(2)], **options).tolist()


def opened_without_a_question(folder: Path, work: Path) -> str:
    """AutoProcessor and AutoTokenizer with trust_remote_code; the input is closed, so that a question is an error."""
    from transformers import AutoTokenizer

    processor, tokenizer = open_processor(folder), AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert tokenizer("red heart")["input_ids"] == processor.encode("red heart")
    assert set(tokenizer("red heart")) == {"input_ids", "attention_mask"}
    return "processor and tokenizer"


def tokenizer_without_the_flag(folder: Path, work: Path) -> str:
    """transformers 5 asks about the model's code, of which the tokenizer needs nothing: no is as good as yes."""
    code = "import sys; from transformers import AutoTokenizer as A; print(A.from_pretrained(sys.argv[1])('red')['input_ids'])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(folder)],
        cwd=work,
        capture_output=True,
        text=True,
        input="n\n",
        check=False,
    )
    assert done.returncode == 0 and done.stdout.strip().endswith(str(open_processor(folder).encode("red"))), (
        done.stderr[-300:]
    )
    return "asks; opens when answered no" if "[y/N]" in done.stdout + done.stderr else "opens"


def snippet_of_the_card(folder: Path, work: Path) -> str:
    """As it stands, in a process of its own."""
    said = run_snippet(folder / "README.md", work, str(folder))
    assert (work / "picture.png").is_file()
    return f"a picture, and {len(said.split())} words"


def run_snippet(page: Path, work: Path, *words: str, after: str = "") -> str:
    """Run the first block of Python of a page, and `after` it more, in a process in `work` -> what it printed."""
    snippet = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    done = subprocess.run(
        [sys.executable, "-I", "-c", snippet + after, *words],
        cwd=work,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-300:]
    return done.stdout


def snippet_of_docs_transformers(folder: Path, work: Path) -> str:
    """The page's compiled drawing and text, as they stand; compiling takes minutes."""
    (work / "work/demo").mkdir(parents=True)
    (work / "work/demo/model").symlink_to(folder)
    said = run_snippet(Path(__file__).with_name("transformers.md"), work, after="print(codes.shape, said.shape[0])\n")
    return said.strip().splitlines()[-1]


def text_generation_pipeline(folder: Path, work: Path) -> str:
    from transformers import pipeline

    write = pipeline("text-generation", model=str(folder), trust_remote_code=True)
    said = write("red", max_new_tokens=6, do_sample=False)[0]["generated_text"]
    prompt = write.tokenizer("red", return_tensors="pt")
    ids = write.model.generate(**prompt, max_new_tokens=6, do_sample=False)[0]
    assert said == write.tokenizer.decode(ids, skip_special_tokens=True), said
    answer = write([{"role": "user", "content": "red"}], max_new_tokens=6, do_sample=False)[0]["generated_text"]
    assert answer[-1]["role"] == "assistant"
    return "text and conversation"


def image_text_to_text_pipeline(folder: Path, work: Path) -> str:
    from transformers import pipeline

    read = pipeline("image-text-to-text", model=str(folder), processor=open_processor(folder), trust_remote_code=True)
    content = [{"type": "image", "image": picture()}, {"type": "text", "text": "What is it?"}]
    said = read(text=[{"role": "user", "content": content}], max_new_tokens=6)
    assert said[0]["generated_text"]
    other = read(images=[picture()], text="What is it?", max_new_tokens=6)
    assert other[0]["generated_text"].startswith("What is it?")
    return "conversation, picture and text"


def feature_extraction_pipeline(folder: Path, work: Path) -> str:
    from transformers import AutoTokenizer, pipeline

    found = pipeline(
        "feature-extraction",
        model=str(folder),
        tokenizer=AutoTokenizer.from_pretrained(folder, trust_remote_code=True),
        trust_remote_code=True,
    )("red heart")
    return f"{len(found[0])} x {len(found[0][0])}"


def trainer(folder: Path, work: Path) -> str:
    """5 steps in bf16 with gradient checkpointing; the saved folder draws."""
    import torch
    from transformers import Trainer, TrainingArguments

    model, processor = open_model(folder), open_processor(folder)
    start = processor.draw(["red heart"])["input_ids"][0].tolist()
    row = [*start, *(processor.codes([picture()])[0] + processor.offset).tolist(), processor.end, processor.eos]
    rows = [{"input_ids": row, "attention_mask": [1] * len(row), "labels": row}] * 8
    arguments = TrainingArguments(
        str(work / "trainer"),
        max_steps=5,
        per_device_train_batch_size=2,
        bf16=True,
        gradient_checkpointing=True,
        use_cpu=True,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        seed=1,
    )
    made = Trainer(
        model,
        arguments,
        train_dataset=rows,
        processing_class=processor,
        data_collator=lambda some: {k: torch.tensor([one[k] for one in some]) for k in some[0]},
    )
    made.train()
    losses = [line["loss"] for line in made.state.log_history if "loss" in line]
    assert len(losses) == 5 and losses[-1] < losses[0], losses
    made.save_model(work / "trained")
    assert len(codes_of(open_model(work / "trained"), open_processor(work / "trained"))) == 2
    return f"loss {losses[0]:.2f} to {losses[-1]:.2f}"


def lora(folder: Path, work: Path) -> str:
    """On layers of both branches and on the head; merged and saved it draws the same."""
    import torch
    from peft import LoraConfig, get_peft_model

    model, processor = open_model(folder), open_processor(folder)
    plain = codes_of(model, processor)
    names = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and name != "lm_head"]
    torch.manual_seed(0)
    tied = model.config.tie_word_embeddings  # then merging the head would change the embedding, too
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=names + [] * tied + ["lm_head"] * (not tied)))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    ids = processor.caption([picture()])["input_ids"]
    with torch.no_grad():
        logits, drawn = adapted(ids).logits, codes_of(adapted, processor)
    assert drawn != plain, "the adapter was not heard"
    adapted(ids, labels=ids).loss.backward()
    heard = [n for n, p in adapted.named_parameters() if "lora_B" in n and p.grad is not None and p.grad.abs().sum()]
    assert any("lm_head" in name for name in heard) != tied and any("vision_layers" in name for name in heard)
    merged = adapted.merge_and_unload()
    assert (merged(ids).logits - logits).abs().max() < 1e-4 and codes_of(merged, processor) == drawn
    merged.save_pretrained(work / "merged")
    assert codes_of(open_model(work / "merged"), open_processor(work / "merged")) == drawn
    return f"{len(names) + (not tied)} modules"


def text_streamer(folder: Path, work: Path) -> str:
    import contextlib
    import io

    from transformers import TextStreamer

    model, processor = open_model(folder), open_processor(folder)
    prompt, said = processor.caption([picture()]), io.StringIO()
    streamer = TextStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    options = {"max_new_tokens": 8, "do_sample": False, "logits_processor": model.text_only()}
    with contextlib.redirect_stdout(said):
        ids = model.generate(**prompt, streamer=streamer, **options)
    assert said.getvalue().strip() == processor.texts(ids, prompt)[0]
    return "the text of generate"


def beams_with_pictures(folder: Path, work: Path) -> str:
    model, processor = open_model(folder), open_processor(folder)
    prompt = processor.caption([picture(1), picture(2)])
    options = {"max_new_tokens": 8, "do_sample": False, "logits_processor": model.text_only()}
    for beams in (1, 3):
        both = model.generate(**prompt, num_beams=beams, **options)
        for row in range(2):
            alone = model.generate(**processor.caption([picture(1 + row)]), num_beams=beams, **options)
            assert alone[0].tolist() == both[row].tolist()[-alone.shape[1] :] or alone.shape[1] != both.shape[1]
    return "3 beams, 2 pictures, each as alone"


def assisted_decoding(folder: Path, work: Path) -> str:
    model, helper, processor = open_model(folder), open_model(folder), open_processor(folder)
    prompt = processor.caption([picture()])
    options = {"max_new_tokens": 10, "do_sample": False, "logits_processor": model.text_only()}
    expected = model.generate(**prompt, **options)
    assert model.generate(**prompt, assistant_model=helper, **options).tolist() == expected.tolist()
    assert model.generate(**prompt, prompt_lookup_num_tokens=2, **options).tolist() == expected.tolist()
    return "the text of greedy decoding"


def offloaded(folder: Path, work: Path) -> str:
    import accelerate

    processor = open_processor(folder)
    expected = codes_of(open_model(folder), processor)
    assert codes_of(accelerate.cpu_offload(open_model(folder), "cpu"), processor) == expected
    assert codes_of(accelerate.disk_offload(open_model(folder), str(work / "disk"), "cpu"), processor) == expected
    return "CPU, disk: the same codes"


def device_map(folder: Path, work: Path) -> str:
    """The map "auto" over a budget that holds a part of the weights; the rest lies on the disk."""
    processor = open_processor(folder)
    expected = codes_of(open_model(folder), processor)
    size = (folder / "model.safetensors").stat().st_size
    model = open_model(folder, device_map="auto", max_memory={"cpu": size * 6 // 10}, offload_folder=str(work / "rest"))
    places = [str(place) for place in model.hf_device_map.values()]
    assert {"cpu", "disk"} <= set(places), model.hf_device_map
    assert codes_of(model, processor) == expected
    return f"{places.count('cpu')} parts in memory, {places.count('disk')} on the disk"


def compiled(folder: Path, work: Path) -> str:
    """One graph of the model; pictures over a static cache; generate with a static cache."""
    import torch

    model, processor = open_model(folder), open_processor(folder)
    expected = codes_of(model, processor)
    assert codes_of(model, processor, compiled=True) == expected
    prompt = processor.caption([picture()])
    options = {"max_new_tokens": 8, "do_sample": False, "logits_processor": model.text_only()}
    said = model.generate(**prompt, **options)
    ids = prompt["input_ids"]
    logits = model(ids).logits
    assert (torch.compile(model, fullgraph=True)(ids).logits - logits).abs().max() < 1e-4
    model.compile(fullgraph=True, dynamic=False)
    assert model.generate(**prompt, cache_implementation="static", **options).tolist() == said.tolist()
    return "the same codes and text"


def exported(folder: Path, work: Path) -> str:
    import torch

    model, processor = open_model(folder), open_processor(folder)
    ids = processor.caption([picture()])["input_ids"]
    program = torch.export.export(model, (), {"input_ids": ids, "use_cache": False}, strict=False)
    torch.export.save(program, work / "model.pt2")
    found = torch.export.load(work / "model.pt2").module()(input_ids=ids, use_cache=False).logits
    assert (found - model(ids).logits).abs().max() < 1e-4
    return "saved and loaded"


def resized(folder: Path, work: Path) -> str:
    """More rows are refused by name; a new token of text is, too, when its id is a code's."""
    model, processor = open_model(folder), open_processor(folder)
    try:
        model.resize_token_embeddings(model.config.vocab_size + 8)
    except ValueError as error:
        assert "picture codes" in str(error)
    else:
        raise AssertionError("not refused")
    processor.tokenizer.add_tokens(["<new>"], special_tokens=True)
    try:
        processor(text="<new>")
    except ValueError as error:
        assert "no room for added tokens" in str(error)
        return "refused by name"
    return "has spare rows"


def two_of_one_name(folder: Path, work: Path) -> str:
    """Two folders called `model`, whose code differs in a file that others import: each runs its own."""
    import hashlib

    found = []
    for place in ("a", "b", "c"):
        copy = work / place / "model"
        shutil.copytree(folder, copy)
        if place == "b":
            layers = (copy / "layers_uni_x.py").read_text() + "UniXMLP.other = True\n"
            digest = hashlib.sha256(layers.encode()).hexdigest()[:16]
            (copy / "layers_uni_x.py").write_text(layers)
            for path in copy.glob("*_uni_x.py"):  # as tools/convert_to_hf.py ends each file
                path.write_text(path.read_text() + f'CODE = "{digest}"\n')
        found.append(hasattr(open_model(copy).model.layers[0].mlp, "other"))
        open_processor(copy)
    assert found == [False, True, False], found
    return "each its own code"


def attention_kinds(folder: Path, work: Path) -> str:
    """eager gives sdpa's logits; flash, and flex on a CPU, are refused by name."""
    import torch

    prompt = open_processor(folder).caption([picture(1), picture(2)], "What is it?")
    with torch.no_grad():
        expected = open_model(folder)(**prompt).logits
        found = open_model(folder, attn_implementation="eager")(**prompt, output_attentions=True)
    assert (found.logits - expected)[prompt["attention_mask"].bool()].abs().max() < 1e-4 and found.attentions
    for kind in ("flash_attention_2", "flex_attention"):
        try:
            open_model(folder, attn_implementation=kind)(**prompt)
        except (ValueError, ImportError) as error:
            assert kind.split("_")[0] in str(error).lower(), error
        else:
            raise AssertionError(f"{kind} was taken")
    return "sdpa, eager; flash and flex refused"


CHECKS = (
    opened_without_a_question,
    tokenizer_without_the_flag,
    snippet_of_the_card,
    text_generation_pipeline,
    image_text_to_text_pipeline,
    feature_extraction_pipeline,
    text_streamer,
    beams_with_pictures,
    assisted_decoding,
    attention_kinds,
    trainer,
    lora,
    offloaded,
    device_map,
    resized,
    two_of_one_name,
    exported,
    compiled,
    snippet_of_docs_transformers,
)
