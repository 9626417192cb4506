// The last request, as a command or a program that does the same.

const withoutPicture = (body) =>
  JSON.parse(JSON.stringify(body, (name, value) => (name === "url" ? "PICTURE" : value)));

export function asCurl(body, address) {
  const plain = { ...withoutPicture(body), stream: false };
  delete plain.stream_options;
  const json = JSON.stringify(plain, null, 2);
  const quoted = json.replaceAll("'", "'\\''");
  if (!json.includes('"PICTURE"')) {
    return `curl ${address}/v1/chat/completions -H 'content-type: application/json' -d '${quoted}'\n`;
  }
  return [
    `# picture.png is the picture; the body goes through standard input because it may be long`,
    `printf '%s' '${quoted}' \\`,
    `  | sed "s|PICTURE|data:image/png;base64,$(base64 < picture.png | tr -d '\\n')|" \\`,
    `  | curl ${address}/v1/chat/completions -H 'content-type: application/json' -d @-`,
    "",
  ].join("\n");
}

export function asPython(body, address) {
  const { model, messages, ...rest } = withoutPicture(body);
  const known = new Set(["temperature", "seed", "max_completion_tokens"]);
  const own = Object.entries(rest).filter(([name]) => known.has(name));
  const extra = Object.entries(rest).filter(([name]) => !known.has(name) && !name.startsWith("stream"));
  const shown = (value) => JSON.stringify(value).replaceAll("true", "True").replaceAll("false", "False");
  const pictured = JSON.stringify(messages).includes('"PICTURE"');
  const said = JSON.stringify(messages, null, 4).replaceAll('"PICTURE"', "picture");
  return [
    ...(pictured ? ["import base64", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(`${address}/v1`)}, api_key="none")`,
    ...(pictured
      ? ['picture = "data:image/png;base64," + base64.b64encode(open("picture.png", "rb").read()).decode()']
      : []),
    "reply = client.chat.completions.create(",
    `    model=${JSON.stringify(model)},`,
    `    messages=${said.replaceAll("\n", "\n    ")},`,
    ...own.map(([name, value]) => `    ${name}=${shown(value)},`),
    ...(extra.length ? [`    extra_body={${extra.map(([name, value]) => `"${name}": ${shown(value)}`).join(", ")}},`] : []),
    ")",
    "message = reply.choices[0].message",
    'print("thinking:", message.reasoning_content)',
    'print("answer:", message.content)',
    "",
  ].join("\n");
}
