"""Server of tools/serve.py: an OpenAI-compatible API over one exported model, and a page to try it.

`gate.py` decides who comes in, `schemas.py` what a request may say, `chat.py` and `images.py` turn it into a job,
`jobs.py` is where it waits, `worker.py` the thread that owns the model, `lifetime.py` how all of it ends.
"""
