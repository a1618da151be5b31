"""Forms of a prompt around a message."""

from typing import Literal

PromptForm = Literal["chat", "lwm", "text"]
"""The model's chat template, exactly LWM's prompt, or the message alone, for base models."""
