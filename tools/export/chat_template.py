"""Chat template of exports, in Jinja, from the turn format in model/prompts.py.

`processing_uni_x.py` makes the same ids, with pictures in them.
"""

from __future__ import annotations

from model.prompts import BETWEEN_TURNS, TURN_END, TURN_START

TEMPLATE = """\
{%- if tools is defined and tools %}{{ raise_exception('this model calls no tools: leave them out') }}{% endif %}
{%- for message in messages %}
{%- for key in SPOKEN %}
{%- if key in message and message[key] %}
{{- raise_exception('a message has ' + key + ', which this model has no form for: write it into the content') }}
{%- endif %}
{%- endfor %}
{%- set said %}{% if message['content'] is string %}{{ message['content'] }}{% elif message['content'] %}
{%- for item in message['content'] %}
{%- if item['type'] == 'text' %}{{ item['text'] }}
{%- else %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% endif %}
{%- endfor %}{% endif %}{% endset %}
{{- 'BEFORE' + message['role'] + 'AFTER' }}
{%- if message['role'] == 'assistant' %}{% generation %}{{ said + 'END' }}{% endgeneration %}{{ 'BETWEEN' }}
{%- else %}{{ said + 'ENDBETWEEN' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'BEFOREassistantAFTER' }}{% endif %}"""


def chat_template() -> str:
    """The template. Assistant text is marked for training on answers only; `add_generation_prompt` opens a turn."""
    from model.hf.sources_uni_x import SPOKEN  # which imports torch

    before, after = TURN_START.split("{role}")
    marks = {"SPOKEN": str(list(SPOKEN)), "BEFORE": before, "AFTER": after, "BETWEEN": BETWEEN_TURNS, "END": TURN_END}
    template = TEMPLATE
    for mark, text in marks.items():
        template = template.replace(mark, text.replace("\n", "\\n"))
    return template
