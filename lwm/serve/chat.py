"""`/v1/chat/completions`: chats in text, images and videos, whole or as a stream."""

from collections.abc import AsyncGenerator
from typing import Any

from lwm.generate.answer import Answer
from lwm.generate.output import Frame, assemble
from lwm.media.text import note
from lwm.serve.errors import ApiError
from lwm.serve.messages import Prompt, prompt_of
from lwm.serve.params import seeded, text_sampling, vision_sampling
from lwm.serve.pictures import FPS, IMAGE_TYPES, VIDEO_TYPES, data_address, encoded
from lwm.serve.report import Chunks, head, timings, token, usage
from lwm.serve.running import Answers, Ask, Caller, Event
from lwm.serve.schema import ChatRequest, refuse_unsupported
from lwm.serve.service import Service


class Chat:
    """One request for the next turn of a chat."""

    def __init__(self, service: Service, body: ChatRequest, prompt: Prompt, answers: Answers):
        """Takes the request and its answers, which have begun."""
        self._service, self._body, self._prompt = service, body, prompt
        self.answers = answers
        pairs = zip(answers.answers, answers.asks, strict=True)
        self._choices = [_Choice(service, body, *each, i) for i, each in enumerate(pairs)]

    @classmethod
    async def start(cls, service: Service, body: ChatRequest, caller: Caller) -> "Chat":
        """Reads the messages, and sends the request to the engine.

        Raises:
            ApiError: The request is refused.
            UserError: The chat cannot be answered.
        """
        refuse_unsupported(body)
        service.require_n(body.n or 1)
        model = service.model
        prompt = await prompt_of(service, body, caller)
        most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        params = text_sampling(body, most)
        options: dict[str, Any] = {"is_turn": True, "continues": bool(body.continue_final_message)}
        if _draws(service, body):
            options["sampling"] = vision_sampling(model, body.image, body.video)
        if body.logprobs and body.top_logprobs:
            options["top_logprobs"] = body.top_logprobs
        asks = [service.ask(prompt.ids, each, **options) for each in seeded(params, body.n or 1)]
        return cls(service, body, prompt, await service.answer(asks, caller))

    async def whole(self) -> dict[str, Any]:
        """Returns the answer once it is complete."""
        async for event in self.answers.events():
            await self._choices[event.index].take(event)
        made = head(self._service, "chat.completion", "chatcmpl")
        made["choices"] = [choice.to_json() for choice in self._choices]
        made["usage"] = self._usage()
        made["timings"] = timings(self.answers)
        return made

    async def stream(self) -> AsyncGenerator[bytes]:
        """Yields the answer in events as it is written."""
        same = head(self._service, "chat.completion.chunk", "chatcmpl")
        chunk = Chunks(same, self._body.stream_options, self._usage)
        for choice in self._choices:
            yield chunk(choice.delta({"role": "assistant", "content": ""}))
        async for event in self.answers.events():
            choice = self._choices[event.index]
            if event.reading is not None:
                if self._body.return_progress:
                    yield chunk(choice.delta({}), prompt_progress=self._progress(event))
                continue
            for delta in await choice.take(event):
                yield chunk(choice.delta(delta) | {"logprobs": choice.new_logprobs()})
            if event.answer.finish_reason is not None:
                ended = choice.delta({}) | {"logprobs": choice.new_logprobs()} | choice.ended()
                yield chunk(ended, timings=timings(self.answers))
            elif choice.is_drawing:
                yield chunk(choice.delta({}), progress=choice.progress)
        yield chunk.end()

    def _usage(self) -> dict[str, Any]:
        return usage(
            self._service.model, self.answers.answers, image_tokens=self._prompt.image_tokens
        )

    def _progress(self, event: Event) -> dict[str, Any]:
        assert event.reading is not None
        elapsed = timings(self.answers)["prompt_ms"]
        cached = event.answer.num_cached
        done, total = event.reading
        return {"total": total, "cache": cached, "processed": done, "time_ms": round(elapsed)}


class _Choice:
    """One answer: its text, images and videos so far."""

    def __init__(self, service: Service, body: ChatRequest, answer: Answer, ask: Ask, index: int):
        self.index = index
        self._note = note(model=service.name, seed=ask.params.seed)
        self._service, self._body, self._answer = service, body, answer
        self._parts: list[dict[str, Any]] = []
        self._text: list[str] = []
        self._images: list[dict[str, Any]] = []
        self._videos: list[dict[str, Any]] = []
        self._frames: list[Frame] = []
        self._num_logged = 0

    def delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        """Returns a part of the message as a choice of an event."""
        return {"index": self.index, "delta": delta, "logprobs": None, "finish_reason": None}

    async def take(self, event: Event) -> list[dict[str, Any]]:
        """Adds the pieces of an event, and returns them as deltas of the message."""
        deltas = []
        for piece in event.pieces:
            if isinstance(piece, str):
                self._add_text(piece)
                deltas.append({"content": piece})
                continue
            self._frames.append(piece)
            self._service.metrics.count("lwm:frames_drawn")
            if piece.is_last:
                deltas.append(await self._drawn())
        if event.answer.finish_reason is not None and self._frames:
            deltas.append(await self._drawn())  # a video that was cut
        return deltas

    @property
    def is_drawing(self) -> bool:
        """True if the last id belongs to an image or a video."""
        tokens, ids = self._service.model.llama.config.tokens, self._answer.ids
        return bool(ids) and ids[-1] >= tokens.text and ids[-1] != tokens.end_of_vision

    @property
    def progress(self) -> dict[str, int]:
        """Frames that are complete of the image or video that is drawn, and all tokens so far."""
        return {"frames": len(self._frames), "tokens": len(self._answer.ids)}

    def _add_text(self, text: str) -> None:
        self._text.append(text)
        if self._parts and self._parts[-1]["type"] == "text":
            self._parts[-1]["text"] += text
        else:
            self._parts.append({"type": "text", "text": text})

    async def _drawn(self) -> dict[str, Any]:
        """Returns the image or video of the frames so far as a delta."""
        frames, self._frames = self._frames, []
        return await self._service.on_thread(self._vision, frames, media=True)

    def _vision(self, frames: list[Frame]) -> dict[str, Any]:
        vision = assemble(self._service.model, frames)
        if not vision.is_video:
            url = data_address(encoded(vision, "png", text=self._note), IMAGE_TYPES["png"])
            made = {"type": "image_url", "image_url": {"url": url}, "index": len(self._images)}
            self._parts.append({"type": "image", "index": len(self._images)})
            self._images.append(made)
            return {"images": [made]}
        kind = self._body.clip_format
        options = self._body.video
        fps = FPS if options is None or options.fps is None else options.fps
        url = data_address(encoded(vision, kind, fps=fps, text=self._note), VIDEO_TYPES[kind])
        made = {"type": "video_url", "video_url": {"url": url}, "index": len(self._videos)}
        self._parts.append({"type": "video", "index": len(self._videos)})
        self._videos.append(made)
        return {"videos": [made]}

    def new_logprobs(self) -> dict[str, Any] | None:
        """Returns the log-probabilities of text ids since the last call, if they are asked for."""
        if not self._body.logprobs:
            return None
        answer, model, start = self._answer, self._service.model, self._num_logged
        self._num_logged = len(answer.ids)
        if start == self._num_logged > 0:
            return None
        content = []
        for place in range(start, self._num_logged):
            if answer.ids[place] < model.llama.config.tokens.text:
                entry = token(model, answer.ids[place], answer.logprobs[place])
                tops = answer.top_logprobs[place] if self._body.top_logprobs else ()
                entry["top_logprobs"] = [token(model, *top) for top in tops]
                content.append(entry)
        return {"content": content, "refusal": None}

    def ended(self) -> dict[str, Any]:
        """Returns why the answer has ended, and its ids if they are asked for."""
        made: dict[str, Any] = {
            "finish_reason": self._answer.finish_reason,
            "stop_reason": self._answer.stopped_by,
        }
        if self._body.return_token_ids:
            made["token_ids"] = self._answer.ids
        return made

    def to_json(self) -> dict[str, Any]:
        """Returns the choice of an answer that is not a stream."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(self._text),
            "refusal": None,
        }
        if self._images:
            message["images"] = self._images
        if self._videos:
            message["videos"] = self._videos
        if self._images or self._videos:
            message["parts"] = self._parts
        made = {"index": self.index, "message": message, "logprobs": self.new_logprobs()}
        return made | self.ended()


def _draws(service: Service, body: ChatRequest) -> bool:
    """Returns whether answers may hold images; by default they may if the model draws.

    Raises:
        ApiError: They are asked for, and the model writes text only.
    """
    asked = body.modalities
    wants = asked is None or "image" in asked or "video" in asked
    if asked and wants and not service.draws:
        raise ApiError(
            f"{service.name} writes text only; ask for the modality text", param="modalities"
        )
    return wants and service.draws
