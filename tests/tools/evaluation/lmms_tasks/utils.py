"""What local_choice.yaml refers to."""

from PIL import Image


def pictures(doc):
    return [Image.open(doc["image"]).convert("RGB")]


def question(doc, lmms_eval_specific_kwargs=None):
    lines = [f"{letter}. {name}" for letter, name in zip("ABCD", doc["names"])]
    return "\n".join(["What is it?", *lines, "Answer with the option's letter."])


def results(doc, said):
    return {"right": float(said[0] == doc["answer"]), "named_an_option": float(said[0] in "ABCD")}
