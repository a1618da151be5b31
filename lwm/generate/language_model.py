"""The public methods of a model: see, chat, draw and generate."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lwm.generate.chat import Conversation, Reader
from lwm.generate.loaded import LoadedModel
from lwm.generate.vision import draw_whole
from lwm.sampling_params import SamplingParams, VisionSampling
from lwm.tokenizer.message import Part, Vision
from lwm.tokenizer.tokenizer import TextStream

if TYPE_CHECKING:
    from lwm.media.frames import Frames


class LanguageModel(LoadedModel):
    """A model ready to generate: `lwm.load` returns one."""

    def see(
        self,
        file: str | Path | bytes,
        *,
        max_frames: int | None = 8,
        fps: float | None = None,
        background: str = "white",
        check: "Callable[[Frames], None]" = lambda frames: None,
    ) -> Vision:
        """Reads an image or a video for a question about it.

        Args:
            file: A path, or what a file holds; its content says what it is.
            max_frames: Of a video, evenly spaced; None is all.
            fps: The frames shown at each 1/fps seconds; `max_frames` then thins these out.
            background: A colour, for where a picture is transparent.
            check: Told of the frames before they are encoded, which takes far longer; may raise.

        Raises:
            UserError: It cannot be read, or the model sees nothing.
        """
        from lwm.media.frames import read_frames

        frames = read_frames(
            file,
            resolution=self.vision.resolution,
            max_frames=max_frames,
            fps=fps,
            background=background,
        )
        check(frames)
        name = "" if isinstance(file, bytes) else Path(file).name
        return Vision(
            codes=self.vision.encode(frames.pixels),
            is_video=frames.is_video,
            pixels=frames.pixels,
            times=frames.times,
            name=name,
        )

    def chat(
        self, question: str | Sequence[Part], *, document: str | None = None, **writing
    ) -> str:
        """Answers one question in text, about a document if one is given.

        Args:
            question: What to ask: a text, or texts and what `see` returns, in any order.
            document: A text that is put before the question.
            **writing: The fields of `SamplingParams`, such as max_tokens, temperature, seed.

        Raises:
            UserError: The prompt and the answer do not fit into the context.
        """
        conversation = Conversation(self, document=document)
        pieces = conversation.ask(question, writing=SamplingParams(**writing))
        return "".join(piece for piece in pieces if isinstance(piece, str))

    def draw(
        self,
        prompt: str,
        *,
        frames: int = 1,
        n: int = 1,
        seed: int = 0,
        first: Vision | None = None,
        drawings: VisionSampling = VisionSampling(),
    ) -> list[Vision]:
        """Draws images or videos of what a text says.

        Args:
            prompt: What is to be seen.
            frames: One for an image, more for a video.
            n: How many to draw, together.
            seed: Of the first; the second has the next one, and so on.
            first: An image or a video that each goes on from; its frames count.
            drawings: How.

        Raises:
            UserError: The model cannot draw, or it does not fit.
        """
        kind = "video" if frames > 1 else "image"
        return draw_whole(
            self, [prompt] * n, kind=kind, frames=frames, first=first, drawings=drawings, seed=seed
        )

    def generate(self, prompt: str, **writing) -> str:
        """Continues a text.

        Args:
            prompt: The text; the beginning-of-text token is put before it where the model
                was trained so.
            **writing: The fields of `SamplingParams`, such as max_tokens, temperature, seed.

        Raises:
            UserError: The prompt is empty, or it and the continuation do not fit.
        """
        ids = self.encode_prompt(prompt)
        reader = Reader(self)
        stream = TextStream(self.tokenizer, continues=True)
        pieces = reader.answer(ids, stream, SamplingParams(**writing))
        return "".join(piece for piece in pieces if isinstance(piece, str))
