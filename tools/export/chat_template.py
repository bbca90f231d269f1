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
{%- set kind = item['type'] if item is mapping and 'type' in item else 'none' %}
{%- if kind == 'text' and 'text' in item and item['text'] is string %}{{ item['text'] }}
{%- elif kind in PICTURES %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- else %}{{ raise_exception('a part of type ' + kind|string + ': give a text as type text, or a picture as type image') }}
{%- endif %}
{%- endfor %}{% endif %}{% endset %}
{{- 'BEFORE' + message['role'] + 'AFTER' }}
{%- if message['role'] == 'assistant' %}{% generation %}{{ said + 'END' }}{% endgeneration %}{{ 'BETWEEN' }}
{%- else %}{{ said + 'ENDBETWEEN' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'BEFOREassistantAFTER' }}{% endif %}"""


def chat_template() -> str:
    """The template. Assistant text is marked for training on answers only; `add_generation_prompt` opens a turn."""
    from model.hf.sources_uni_x import PICTURE_PARTS, SPOKEN  # which imports torch

    before, after = TURN_START.split("{role}")
    marks = {
        "SPOKEN": str(list(SPOKEN)),
        "PICTURES": str(list(PICTURE_PARTS)),
        "BEFORE": before,
        "AFTER": after,
        "BETWEEN": BETWEEN_TURNS,
        "END": TURN_END,
    }
    template = TEMPLATE
    for mark, text in marks.items():
        template = template.replace(mark, text.replace("\n", "\\n"))
    return template
