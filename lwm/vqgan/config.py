"""The shape of a VQGAN, and facts about its codebook."""

import dataclasses
from typing import Any, Literal, get_args

from lwm.errors import UserError
from lwm.model.config import Dtype

WEIGHTS, CONFIG = "vqgan.safetensors", "vqgan.json"
"""Files of a VQGAN, perhaps in the folder of a language model."""
GROUPS = 32
"""Groups of channels in a group normalisation."""

Search = Literal["nearest", "cosine", "product"]
"""Rule that chooses the code of a latent: the smallest distance, the smallest angle (ViT-VQGAN,
arXiv 2110.04627) or the largest inner product (IBQ, arXiv 2412.02692)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """The shape of a convolutional tokenizer of frames (Esser et al. 2021, arXiv 2012.09841)."""

    resolution: int
    """Pixels along a side of the frames that the weights were trained on."""
    channels: int = 3
    """Colour channels of a frame."""
    hidden: int
    """Channels at full resolution; each level has a multiple of them."""
    multipliers: tuple[int, ...]
    """One for each level; the sides halve from one level to the next."""
    res_blocks: int
    """Residual blocks in each level of the encoder; the decoder has one more in each."""
    z_channels: int
    """Channels of the encoder's output and of the decoder's input."""
    codes: int
    """Entries of the codebook."""
    code_dim: int
    """Width of an entry."""
    dtype: Dtype = "float32"
    """Type of the computation; statistics, latents and the code search are always float32, and with
    the search `product` the whole encoder, as bfloat16 would change every tenth code."""
    attention: tuple[int, ...] = ()
    """Levels, from 0 at full resolution, whose residual blocks are each followed by attention."""
    middle_attention: bool = False
    """Attention between the two blocks in the middle of encoder and decoder."""
    search: Search = "nearest"
    """Rule that chooses the code of a latent."""
    unit_codes: bool = False
    """True if the decoder gets codes scaled to unit length."""
    decoder: bool = True
    """False if only the encoder is there; some models only read images."""

    def __post_init__(self):
        """Checks the sizes.

        Raises:
            ValueError: A size is out of range, or sizes do not fit each other.
        """
        sizes = {name: getattr(self, name) for name in _SIZES}
        sizes |= {f"multipliers[{i}]": each for i, each in enumerate(self.multipliers)}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}, but must be at least 1")
        if not 1 <= len(self.multipliers) <= 16 or self.res_blocks > 64:
            raise ValueError("there must be 1 to 16 multipliers and at most 64 res_blocks")
        for width in (self.hidden, *self.widths):
            if width % GROUPS:
                raise ValueError(
                    f"hidden {self.hidden} with multipliers {self.multipliers} makes {width} "
                    f"channels, which do not divide into {GROUPS} groups"
                )
        if self.resolution % self.downsampling:
            raise ValueError(
                f"resolution {self.resolution} does not divide by {self.downsampling}, the pixels "
                f"to a code with {len(self.multipliers)} levels"
            )
        if not set(self.attention) <= set(range(len(self.multipliers))):
            raise ValueError(
                f"attention is at the levels {self.attention}, but there are only 0 to "
                f"{len(self.multipliers) - 1}"
            )
        if self.search == "cosine" and not self.unit_codes:
            raise ValueError("codes that are searched by cosine must be unit_codes")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.hidden * each for each in self.multipliers)

    @property
    def downsampling(self) -> int:
        """Pixels along a side of a frame for each code."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def codes_per_side(self) -> int:
        """Codes along a side of a frame of `resolution`."""
        return self.resolution // self.downsampling

    @property
    def tokens_per_frame(self) -> int:
        """Codes of a frame of `resolution`."""
        return self.codes_per_side**2

    @property
    def is_plain(self) -> bool:
        """True for the kind of LWM: no part that its VQGANs lack, and a decoder."""
        return not self.to_json().keys() & ADDED.keys()

    @property
    def encoder_dtype(self) -> Dtype:
        """Type in which the encoder computes."""
        return "float32" if self.search == "product" else self.dtype

    def require_decoder(self) -> None:
        """Refuses to decode where only the encoder is there.

        Raises:
            UserError: It is.
        """
        if not self.decoder:
            raise UserError(
                "the vision tokenizer only reads images: its files hold no decoder; to write "
                "images, give the files of a tokenizer that has one"
            )

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns the rows and columns of codes for a frame of `height` × `width` pixels.

        Raises:
            UserError: A side is not a multiple of `downsampling`.
        """
        step = self.downsampling
        if height % step or width % step or not height or not width:
            raise UserError(
                f"frames of {height} × {width} pixels do not divide into codes of {step} × {step}; "
                f"resize them, best to {self.resolution} × {self.resolution}"
            )
        return height // step, width // step

    def to_json(self) -> dict[str, Any]:
        """Returns the configuration as plain values; `from_json` reads them back.

        Parts that LWM's VQGANs lack are left out, so that earlier versions read theirs.
        """
        values = dataclasses.asdict(self)
        values |= {name: list(values[name]) for name in _LISTS}
        return {name: each for name, each in values.items() if each != ADDED.get(name)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "VQGANConfig":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: A value is missing, unknown or impossible.
        """
        names = {each.name for each in dataclasses.fields(cls)}
        if not names - {"channels", "dtype", *ADDED} <= values.keys() <= names:
            raise ValueError(f"it should have {', '.join(sorted(names - ADDED.keys()))}")
        for name, value in values.items():
            if name in _LISTS and not isinstance(value, list):
                raise ValueError(f"{name} is not a list")
            if type(ADDED.get(name)) is bool:
                is_wrong = type(value) is not bool
            elif name in _CHOICES:
                is_wrong = value not in _CHOICES[name]
            else:
                is_wrong = any(type(n) is not int for n in (value if name in _LISTS else [value]))
            if is_wrong:
                among = f", none of {', '.join(_CHOICES[name])}" if name in _CHOICES else ""
                raise ValueError(f"{name} is {value!r}{among}")
        tuples: dict[str, Any] = {name: tuple(values.get(name, ())) for name in _LISTS}
        return cls(**values | tuples)


_SIZES = ("resolution", "channels", "hidden", "res_blocks", "z_channels", "codes", "code_dim")
_LISTS = ("multipliers", "attention")
_CHOICES: dict[str, tuple[str, ...]] = {"dtype": get_args(Dtype), "search": get_args(Search)}
ADDED: dict[str, Any] = {
    "attention": [],
    "middle_attention": False,
    "search": "nearest",
    "unit_codes": False,
    "decoder": True,
}
"""Values of the fields that LWM's VQGANs, and files of earlier versions, do not have."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodebookInfo:
    """The VQGAN that made some codes, as data sets keep it, and the size of the frames."""

    source: str
    """Its path at that time; another path will do, if the fingerprint is the same."""
    fingerprint: str
    """SHA-256 of the weights, independent of how they are stored."""
    resolution: int
    """Pixels along a side of a frame."""
    codes: int
    """Entries of the codebook."""
    tokens_per_frame: int
    dtype: str
    """Type of the computation."""


LWM_VQGAN = VQGANConfig(
    resolution=256,
    hidden=128,
    multipliers=(1, 2, 2, 4, 6),
    res_blocks=2,
    z_channels=64,
    codes=8192,
    code_dim=64,
)
"""The VQGAN of LWM: 256 codes per frame, 146 million weights."""
