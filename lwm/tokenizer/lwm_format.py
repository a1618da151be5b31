"""LWM's chat format: its name, its system prompt, and its source in Jinja for other programs."""

LWM_TEMPLATE = "lwm"
"""The name of the format, which `lwm.tokenizer.template` writes itself."""
LWM_SYSTEM = "You are a helpful assistant."

LWM_JINJA = """\
{#- LWM's chat format. An image or a video is "<vision></vision>": the ids of its codes belong \
between the two, and texts before, between and after are encoded each by itself. -#}
{%- set ns = namespace(text=bos_token | default('', true), said='') -%}
{%- set turns = messages -%}
{%- set system = 'SYSTEM' -%}
{%- if messages[0].role == 'system' -%}
    {%- set turns = messages[1:] -%}
    {%- set system = messages[0].content -%}
    {%- if system is not string -%}
        {%- set system = system | map(attribute='text') | join -%}
    {%- endif -%}
{%- endif -%}
{%- if system -%}
    {%- set ns.text = ns.text ~ system ~ ' ' -%}
{%- endif -%}
{%- for turn in turns -%}
    {%- if turn.role not in ('user', 'assistant') -%}
        {{- raise_exception("LWM's format has no " ~ turn.role ~ " message after the first") -}}
    {%- endif -%}
    {%- set ns.text = ns.text ~ ('USER: ' if turn.role == 'user' else 'ASSISTANT: ') -%}
    {%- set ns.said = turn.content if turn.content is string else '' -%}
    {%- for part in turn.content if turn.content is not string -%}
        {%- if part.type == 'text' -%}
            {%- set ns.said = ns.said ~ part.text -%}
        {%- else -%}
            {%- if turn.role == 'user' and ns.said[-1:].strip() -%}
                {%- set ns.said = ns.said ~ '\\n' -%}
            {%- endif -%}
            {%- set ns.text = (ns.text ~ ns.said).rstrip(' ') ~ '<vision></vision>' -%}
            {%- set ns.said = '' -%}
        {%- endif -%}
    {%- endfor -%}
    {%- set ns.text = ns.text ~ ns.said -%}
    {%- set ns.text = ns.text ~ (' ' if turn.role == 'user' else eos_token | default('', true)) -%}
{%- endfor -%}
{{- (ns.text ~ ('ASSISTANT:' if add_generation_prompt else '')).rstrip(' ') -}}
""".replace("SYSTEM", LWM_SYSTEM)
"""A template that `apply_chat_template` of transformers turns into the same ids, of texts."""
