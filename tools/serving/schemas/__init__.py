"""Request schemas: fields of the OpenAI API and a few of our own, each used, without effect, or refused.

`fields.py` has the rules and the wording of refusals; the others hold the requests, one file for each part of the API.
`answers.py` describes what comes back. `openapi.py` beside this package makes the API's description of all of them.
"""
