"""Chat templates in the manner of families of models, and a conversation for them."""

from __future__ import annotations

SPECIAL = {"bos_token": "<s>", "eos_token": '<"end">', "not a name_token": "x"}
# Line breaks by hand or by trimming, a start by variable or by hand, a default system
# message, trimmed contents, an end without a line break, thoughts that earlier turns lose, contents that may be lists.
TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}{{ '[system]' + eos_token + '\n' }}{% endif %}"
        "{{ '[' + m.role + ']\n' + m.content + eos_token + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant]\n' }}{% endif %}"
    ),
    "trimmed": (
        "  {% if messages[0].role == 'system' %}\n  {{ messages[0].content }}\n\n"
        "  {% set messages = messages[1:] %}\n  {% endif %}\n"
        "{% for m in messages %}\n    {% if m.role == 'user' %}\nQ: {{ m.content | trim }}\n    {% else %}\n"
        "A: {{ m.content }}{{ eos_token }}\n    {% endif %}\n{% endfor %}\n{% if add_generation_prompt %}\nA: {% endif %}\n"
    ),
    "start": (
        "{{ bos_token }}\n{%- for m in messages -%}\n{{ '<' + m.role + '>' }}{{ m.content }}{{ eos_token }}{%- endfor -%}\n"
        "{%- if add_generation_prompt -%}{{ '<assistant>' }}{%- endif -%}\n\n"
    ),
    "thoughts": (
        "{%- set last = namespace(user=0) -%}"
        "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}{%- endfor -%}"
        "{%- for m in messages -%}{{ '[' + m.role + ']' }}"
        "{%- if m.role == 'assistant' and loop.index0 > last.user -%}{{ '(thoughts)' }}{%- endif -%}"
        "{{ m.content + eos_token + '\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '[assistant]' }}{%- endif -%}"
    ),
    "lists": (
        "\n{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{{ eos_token }}\n\n{% endfor %}"
    ),
}
SYSTEM, ASK, ANSWER, AGAIN = (
    {"role": role, "content": text}
    for role, text in (("system", "Be brief. "), ("user", " Hi\n"), ("assistant", "Hello <\"end\"> 'x'"), ("user", "{{ 1 }}"))
)
