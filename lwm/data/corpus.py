"""Records and how they become examples, together."""

import dataclasses

from lwm.data.example import Example
from lwm.data.fields import RecordEncoder
from lwm.data.sources import Source
from lwm.files import within


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Numbered examples, each encoded when it is asked for.

    Where the format has variants, each record stands there once in each of them.
    """

    source: Source
    encoder: RecordEncoder

    def __len__(self) -> int:
        return len(self.source) * self.encoder.format.captions.variants

    def __getitem__(self, number: int, /) -> Example:
        """Reads one example.

        Raises:
            UserError: The record is bad; file, line and reason.
        """
        variant, number = divmod(within(number, len(self)), len(self.source))
        record = self.source[number]
        return self.encoder.encode(
            record.value, name=record.name, line=record.line, variant=variant
        )
