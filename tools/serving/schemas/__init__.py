"""What requests may say: the fields of the OpenAI API and a few of our own, each used, asking for nothing, or refused.

`fields.py` has the rules and the wording of refusals; the others hold the requests, one file for each part of the API.
`answers.py` describes what comes back. `openapi.py` beside this package makes the API's description of all of them.
"""
