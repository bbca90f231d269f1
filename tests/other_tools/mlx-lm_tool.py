"""mlx-lm on a CPU (mlx[cpu]): the plain text folder as it is."""

import mlx.core as mx
import numpy as np
from mlx_lm import load
from steps import TEXT, difference, say, text_ids, wanted_logits

model, tokenizer = load(str(TEXT))
logits = model(mx.array(text_ids().numpy()))
say("largest difference of logits", difference(np.array(logits), wanted_logits()))
