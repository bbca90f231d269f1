"""Server of tools/serve.py: an OpenAI-compatible API over one exported model, and a page to try it.

`admission.py` admits requests, `schemas/` validates them, `chat.py`, `completions.py`, `responses.py` and `images.py` make
jobs of them, `jobs.py` is the queue, `worker.py` the thread that owns the model, `shutdown.py` the graceful shutdown.
"""
