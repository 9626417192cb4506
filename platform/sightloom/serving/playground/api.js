// The public API, seen from the page: models, one streamed chat, errors as objects.

export class ApiFailure extends Error {
  constructor(status, error, retryAfter) {
    super(error?.message ?? `the endpoint answered ${status}`);
    this.status = status;
    this.code = error?.code ?? "";
    this.retryAfter = retryAfter ? Number(retryAfter) : null;
  }
}

const authorization = (key) => (key ? { authorization: `Bearer ${key}` } : {});

async function refuse(response) {
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // a proxy's page: the status alone has to do
  }
  throw new ApiFailure(response.status, error, response.headers.get("retry-after"));
}

export async function listModels(key) {
  const response = await fetch("/v1/models", { headers: authorization(key) });
  if (!response.ok) await refuse(response);
  return (await response.json()).data;
}

// Yields {reasoning}, {content}, {finish, thinking}, {usage}; the first item is {headers}.
export async function* chat(body, key, signal) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json", ...authorization(key) },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) await refuse(response);
  yield { headers: response.headers };
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new ApiFailure(200, { message: "the stream ended before the answer did", code: "engine_error" });
    held += value;
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue;
      const data = event.slice(6);
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiFailure(200, chunk.error);
      if (chunk.usage) yield { usage: chunk.usage };
      const choice = chunk.choices[0];
      if (!choice) continue;
      if (choice.delta.reasoning_content) yield { reasoning: choice.delta.reasoning_content };
      if (choice.delta.content) yield { content: choice.delta.content };
      if (choice.finish_reason) yield { finish: choice.finish_reason, thinking: choice.sightloom?.thinking };
    }
  }
}
