"""What shape LWM's own models have, known without a file of theirs."""

from lwm.hub.catalog import KnownModel
from lwm.model.config import LlamaConfig, Rope, preset
from lwm.tokens import TokenSpace

VISION = TokenSpace(text=32_000, vision=8448, codes=8192)
"""The ids of the models that read images and video."""


def known_config(entry: KnownModel) -> LlamaConfig | None:
    """Returns the configuration of a model of LWM's; None for others, whose files say it."""
    if not any(repo.startswith("LargeWorldModel/") for repo in entry.repos):
        return None
    tokens = VISION if "image" in entry.modality else TokenSpace(text=32_000)
    return preset("7b", tokens=tokens, max_context=entry.context, rope=Rope(theta=entry.theta))
