// Asks a server by OpenAI's client, and prints as JSON what it answers.
import OpenAI from "openai";

const [url, asked, image] = [process.argv[2], ...process.argv.slice(3).map((each) => JSON.parse(each))];
const client = new OpenAI({ baseURL: url, apiKey: "none", maxRetries: 0 });

async function refused(body) {
  try {
    await client.chat.completions.create(body);
  } catch (error) {
    return error;
  }
}

const models = await client.models.list();
const whole = await client.chat.completions.create(asked);
let text = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
const drawn = await client.chat.completions.create({ ...image, modalities: ["text", "image"] });
const paint = { model: asked.model, prompt: "a red circle", seed: 4, n: 1 };
const painted = await client.images.generate(paint);
const events = [];
for await (const event of await client.images.generate({
  ...paint,
  stream: true,
  partial_images: 1,
})) {
  events.push(event);
}
const wrong = await refused({ ...asked, temperature: -1 });
const missing = await refused({ ...asked, model: "other" });
console.log(
  JSON.stringify({
    models: models.data.map((model) => model.id),
    whole: whole.choices[0].message.content,
    tokens: whole.usage.total_tokens,
    stream: text,
    images: drawn.choices[0].message.images.map((each) => each.image_url.url),
    painted: painted.data[0].b64_json,
    events: events.map((event) => event.type),
    last: events.at(-1).b64_json,
    refused: { status: wrong.status, param: wrong.param },
    missing: { status: missing.status, code: missing.code },
  }),
);
