// The form as the body of a chat completion.

const number = (field) => (field.value.trim() ? Number(field.value) : undefined);

export function buildBody(at, model, question, pictures) {
  const parts = pictures.map((picture) => ({ type: "image_url", image_url: { url: picture.url } }));
  const messages = [{ role: "user", content: [...parts, { type: "text", text: question }] }];
  if (at("system").value.trim()) messages.unshift({ role: "system", content: at("system").value.trim() });
  const body = {
    model,
    messages,
    temperature: number(at("temperature")),
    top_p: number(at("top-p")),
    max_completion_tokens: number(at("max")),
    seed: number(at("seed")),
    response_format: schema(at("schema").value),
    stream: true,
    stream_options: { include_usage: true },
  };
  if (!at("thinking").disabled) {
    if (at("thinking").checked) body.thinking_token_budget = number(at("budget"));
    else body.chat_template_kwargs = { enable_thinking: false };
  }
  return JSON.parse(JSON.stringify(body)); // what is undefined is not sent
}

function schema(text) {
  if (!text.trim()) return undefined;
  try {
    return { type: "json_schema", json_schema: { name: "answer", strict: true, schema: JSON.parse(text) } };
  } catch (error) {
    throw new Error(`The JSON schema is not JSON: ${error.message}`);
  }
}
