// Asks the endpoint with the official Node client; prints what it got as JSON.
//   node ask.mjs ADDRESS MODEL PICTURE.png QUESTION
import { readFileSync } from "node:fs";
import OpenAI from "openai";

const [address, model, picture, question] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${address}/v1`, apiKey: "none", maxRetries: 0 });
const url = `data:image/png;base64,${readFileSync(picture).toString("base64")}`;
const messages = [{ role: "user", content: [{ type: "image_url", image_url: { url } }, { type: "text", text: question }] }];
const asked = { model, messages, temperature: 0, max_completion_tokens: 60 };

const whole = await client.chat.completions.create(asked);
let streamed = "", reasoning = "", usage = null;
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  reasoning += chunk.choices[0]?.delta?.reasoning_content ?? "";
  usage = chunk.usage ?? usage;
}

const controller = new AbortController();
let pieces = 0, aborted = false;
try {
  const long = { ...asked, max_completion_tokens: 1900, temperature: 1, stream: true };
  for await (const _ of await client.chat.completions.create(long, { signal: controller.signal })) {
    if (++pieces === 2) controller.abort();
  }
  aborted = controller.signal.aborted;
} catch (error) {
  aborted = error instanceof OpenAI.APIUserAbortError;
}

const errors = {};
for (const [name, change] of Object.entries({ bad: { temperature: 3 }, missing: { model: "other" } })) {
  try {
    await client.chat.completions.create({ ...asked, ...change });
  } catch (error) {
    errors[name] = [error.constructor.name, error.status, error.code, error.param];
  }
}
const parsed = await client.chat.completions.parse({
  ...asked,
  response_format: {
    type: "json_schema",
    json_schema: { name: "answer", strict: true, schema: { type: "object", properties: { colour: { enum: ["red", "green"] } }, required: ["colour"], additionalProperties: false } },
  },
});
console.log(JSON.stringify({
  content: whole.choices[0].message.content, streamed, reasoning, usage, wholeUsage: whole.usage, aborted, errors,
  parsed: JSON.parse(parsed.choices[0].message.content),
}));
