"""ctranslate2: the plain text folder, converted and run in float32."""

import ctranslate2
import numpy as np
from ctranslate2.converters import TransformersConverter
from steps import TEXT, WORK, difference, say, text_ids, wanted_logits

folder = str(WORK / "ct2")
# in a shell: ct2-transformers-converter --model TEXT --output_dir FOLDER
TransformersConverter(str(TEXT)).convert(folder)
generator = ctranslate2.Generator(folder, device="cpu", compute_type="float32")
ids = text_ids().tolist()
logits = generator.forward_batch(ids, return_log_probs=False)
say("largest difference of logits", difference(np.array(logits), wanted_logits()))
