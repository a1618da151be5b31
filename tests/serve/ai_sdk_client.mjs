// Asks a server by the AI SDK, and prints as JSON what it answers.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage, generateText, streamText } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false;
const [url, asked] = [process.argv[2], JSON.parse(process.argv[3])];
const provider = createOpenAICompatible({
  name: "lwm",
  baseURL: url,
  apiKey: "none",
  includeUsage: true,
});
const [question, picture] = asked.messages[0].content;
const same = {
  maxRetries: 0,
  maxOutputTokens: asked.max_tokens,
  seed: asked.seed,
  messages: [
    {
      role: "user",
      content: [
        { type: "text", text: question.text },
        { type: "file", mediaType: "image/png", data: picture.image_url.url },
      ],
    },
  ],
};

const whole = await generateText({ ...same, model: provider(asked.model) });
const stream = streamText({ ...same, model: provider(asked.model) });
let text = "";
for await (const part of stream.textStream) {
  text += part;
}
const painted = await generateImage({
  model: provider.imageModel(asked.model),
  prompt: "a red circle",
  maxRetries: 0,
  providerOptions: { lwm: { seed: 4 } },
});
let status;
try {
  await generateText({ ...same, model: provider("other") });
} catch (error) {
  status = error.statusCode;
}
console.log(
  JSON.stringify({
    whole: whole.text,
    stream: text,
    tokens: [whole.usage.totalTokens, (await stream.usage).totalTokens],
    reason: whole.finishReason,
    painted: painted.image.base64,
    refused: status,
  }),
);
