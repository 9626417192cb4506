// The last request, as a command or a program that does the same.

const KEY = "$SIGHTLOOM_API_KEY";

// Pictures are files picture1.png, picture2.png …: a body with their bytes is too long for a page or a command.
function withoutPictures(body) {
  let count = 0;
  const plain = JSON.parse(JSON.stringify(body, (name, value) => (name === "url" ? `PICTURE${++count}` : value)));
  return { plain, count };
}

export function asCurl(body, address, key) {
  const { plain, count } = withoutPictures({ ...body, stream: false });
  delete plain.stream_options;
  const quoted = JSON.stringify(plain, null, 2).replaceAll("'", "'\\''");
  const headers = ["-H 'content-type: application/json'", ...(key ? [`-H "authorization: Bearer ${KEY}"`] : [])].join(" ");
  const command = `curl ${address}/v1/chat/completions ${headers} -d`;
  if (!count) return `${command} '${quoted}'\n`;
  const [first, ...others] = quoted.split(/PICTURE\d+/);
  return [
    "# picture1.png … are the pictures; the body goes through a pipe because it may be long",
    `{ printf '%s' '${first}data:image/png;base64,'`,
    ...others.map((part, place) => {
      const next = place + 1 < count ? "data:image/png;base64," : "";
      return `  base64 < picture${place + 1}.png | tr -d '\\n'; printf '%s' '${part}${next}'`;
    }),
    `} | ${command} @-`,
    "",
  ].join("\n");
}

export function asPython(body, address, key) {
  const { plain, count } = withoutPictures(body);
  const { model, messages, ...rest } = plain;
  const known = new Set(["temperature", "top_p", "seed", "max_completion_tokens", "response_format"]);
  const own = Object.entries(rest).filter(([name]) => known.has(name));
  const extra = Object.entries(rest).filter(([name]) => !known.has(name) && !name.startsWith("stream"));
  const said = python(messages, 1).replace(/"PICTURE(\d+)"/g, 'picture("picture$1.png")');
  return [
    ...(count ? ["import base64"] : []),
    ...(key ? ["import os"] : []),
    ...(count || key ? [""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${address}/v1", api_key=${key ? 'os.environ["SIGHTLOOM_API_KEY"]' : '"none"'})`,
    "",
    ...(count
      ? [
          "",
          "def picture(path):",
          '    return "data:image/png;base64," + base64.b64encode(open(path, "rb").read()).decode()',
          "",
          "",
        ]
      : []),
    "reply = client.chat.completions.create(",
    `    model=${JSON.stringify(model)},`,
    `    messages=${said},`,
    ...own.map(([name, value]) => `    ${name}=${python(value, 1)},`),
    ...(extra.length ? [`    extra_body=${python(Object.fromEntries(extra), 1)},`] : []),
    ")",
    "message = reply.choices[0].message",
    'print("thinking:", message.reasoning_content)',
    'print("answer:", message.content)',
    "",
  ].join("\n");
}

// A value of JSON as Python writes it.
function python(value, depth) {
  const inner = "    ".repeat(depth + 1);
  const close = "    ".repeat(depth);
  if (Array.isArray(value)) return value.length ? `[\n${value.map((one) => `${inner}${python(one, depth + 1)},\n`).join("")}${close}]` : "[]";
  if (value && typeof value === "object") {
    const parts = Object.entries(value).map(([name, one]) => `${inner}${JSON.stringify(name)}: ${python(one, depth + 1)},\n`);
    return parts.length ? `{\n${parts.join("")}${close}}` : "{}";
  }
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  return JSON.stringify(value);
}
