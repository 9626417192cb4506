// The page: gathers a question, streams the reply, shows what it cost. Text is only ever set as text, never as markup.

import { chat, listModels } from "./api.js";
import { draw, findMarks, loadPicture } from "./picture.js";
import { asCurl, asPython } from "./snippets.js";

const EXAMPLES = ["Describe the image.", "What is the total?", "What is bottom right?", "Click the light switch."];
const at = (id) => document.getElementById(id);
const state = { picture: null, models: [], body: null, running: null, answer: "" };

const seconds = (ms) => `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;

function show(id, visible) {
  at(id).hidden = !visible;
}

function fail(error) {
  show("empty", false);
  show("turn", true);
  const box = at("error");
  box.replaceChildren(document.createTextNode(error.message));
  if (error.code) {
    const code = document.createElement("code");
    code.textContent = ` ${error.code}`;
    box.append(code);
  }
  if (error.retryAfter) countDown(box, error.retryAfter);
  show("error", true);
}

function countDown(box, left) {
  const words = document.createElement("div");
  box.append(words);
  const tick = () => {
    words.textContent = left > 0 ? `Try again in ${left} s.` : "Try again now.";
    if (left-- > 0 && box.contains(words)) setTimeout(tick, 1000);
  };
  tick();
}

// ---- models ---------------------------------------------------------------------------------------------------------

async function refreshModels() {
  try {
    state.models = await listModels(at("key").value);
  } catch (error) {
    at("badge").textContent = error.status === 401 ? "a key is needed (Settings)" : "not reachable";
    at("badge").classList.add("bad");
    return;
  }
  const chosen = at("model").value;
  at("model").replaceChildren(...state.models.map((model) => new Option(model.id, model.id)));
  if (state.models.some((model) => model.id === chosen)) at("model").value = chosen;
  if (!state.models.length) {
    at("badge").textContent = "no model is ready yet";
    setTimeout(refreshModels, 2000);
    return;
  }
  badge();
}

function badge(route) {
  const model = state.models.find((one) => one.id === at("model").value);
  if (!model) return;
  const about = model.sightloom;
  at("badge").classList.remove("bad");
  at("badge").textContent = `v${about.version} · ${route ?? about.alias ?? "pinned"} · ${about.engine}`;
  at("badge").title = `digest ${about.digest} · window ${about.max_model_len} tokens`;
  const thinks = about.features.includes("thinking");
  at("thinking").disabled = at("budget").disabled = !thinks;
}

// ---- picture --------------------------------------------------------------------------------------------------------

async function take(file) {
  if (!file) return;
  try {
    state.picture = await loadPicture(file);
  } catch (error) {
    fail(error);
    return;
  }
  at("about").textContent = state.picture.about;
  at("drop").classList.add("full");
  document.querySelector(".hint").hidden = true;
  show("stage", true);
  show("under", true);
  draw(at("canvas"), state.picture, []);
  at("question").focus();
}

function removePicture() {
  state.picture = null;
  at("drop").classList.remove("full");
  document.querySelector(".hint").hidden = false;
  show("stage", false);
  show("under", false);
  at("file").value = "";
}

// ---- asking ---------------------------------------------------------------------------------------------------------

function buildBody(question) {
  const parts = [{ type: "text", text: question }];
  if (state.picture) parts.unshift({ type: "image_url", image_url: { url: state.picture.url } });
  const messages = [{ role: "user", content: parts }];
  if (at("system").value.trim()) messages.unshift({ role: "system", content: at("system").value.trim() });
  const body = {
    model: at("model").value,
    messages,
    temperature: Number(at("temperature").value),
    max_completion_tokens: Number(at("max").value),
    stream: true,
    stream_options: { include_usage: true },
  };
  if (at("seed").value) body.seed = Number(at("seed").value);
  if (at("thinking").disabled) return body;
  if (at("thinking").checked) body.thinking_token_budget = Number(at("budget").value);
  else body.chat_template_kwargs = { enable_thinking: false };
  return body;
}

function begin(question) {
  state.answer = "";
  at("asked").textContent = question;
  for (const id of ["reasoning", "answer", "copied"]) at(id).textContent = "";
  at("facts").replaceChildren();
  for (const id of ["empty", "error", "facts", "copy", "thought"]) show(id, false);
  for (const id of ["turn", "stop"]) show(id, true);
  show("go", false);
  at("thought").open = true;
  at("turn").classList.add("busy");
  at("reply").setAttribute("aria-busy", "true");
  if (state.picture) draw(at("canvas"), state.picture, []);
}

function end() {
  state.running = null;
  show("stop", false);
  show("go", true);
  show("copy", true);
  at("turn").classList.remove("busy");
  at("reply").setAttribute("aria-busy", "false");
}

async function ask() {
  const question = at("question").value.trim() || at("question").placeholder;
  if (state.running || !at("model").value) return;
  const control = new AbortController();
  state.running = control;
  state.body = buildBody(question);
  begin(question);
  const times = { start: performance.now() };
  const seen = {};
  try {
    for await (const item of chat(state.body, at("key").value, control.signal)) {
      const now = performance.now();
      if (item.headers) {
        badge(item.headers.get("x-sightloom-route"));
        continue;
      }
      times.first ??= now;
      if (item.reasoning) {
        times.thought ??= now;
        show("thought", true);
        at("reasoning").textContent += item.reasoning;
        at("thought-title").textContent = "Thinking …";
      }
      if (item.content) {
        if (times.thought && !times.answer) at("thought-title").textContent = `Thinking, ${seconds(now - times.thought)}`;
        times.answer ??= now;
        state.answer += item.content;
        at("answer").textContent = state.answer;
      }
      if (item.finish) Object.assign(seen, item);
      if (item.usage) seen.usage = item.usage;
    }
  } catch (error) {
    if (error.name === "AbortError") seen.finish = "stopped";
    else fail(error);
  }
  times.end = performance.now();
  finish(times, seen);
  end();
}

function finish(times, seen) {
  const usage = seen.usage;
  const reasoning = usage?.completion_tokens_details.reasoning_tokens ?? 0;
  if (times.thought) {
    const long = seconds((times.answer ?? times.end) - times.thought);
    const cut = seen.thinking === "truncated" ? ", cut at the budget" : seen.thinking === "malformed" ? ", malformed" : "";
    at("thought-title").textContent = `Thinking, ${long}${reasoning ? `, ${reasoning} tokens` : ""}${cut}`;
  }
  if (!state.answer && at("error").hidden) at("answer").textContent = seen.finish === "stopped" ? "stopped" : "(no answer)";
  const facts = { finished: seen.finish, "first token": times.first && seconds(times.first - times.start) };
  facts.total = seconds(times.end - times.start);
  if (usage) {
    facts.prompt = `${usage.prompt_tokens} tokens, ${usage.prompt_tokens_details.image_tokens} of the picture`;
    facts.reply = `${usage.completion_tokens} tokens, ${reasoning} of thinking`;
    const writing = (times.end - times.first) / 1000;
    if (writing > 0) facts.speed = `${Math.round(usage.completion_tokens / writing)} tokens/s`;
  }
  for (const [name, value] of Object.entries(facts)) {
    if (!value) continue;
    const pair = document.createElement("div");
    const term = document.createElement("dt");
    const words = document.createElement("dd");
    term.textContent = name;
    words.textContent = value;
    pair.append(term, words);
    at("facts").append(pair);
  }
  show("facts", true);
  if (state.picture) draw(at("canvas"), state.picture, findMarks(state.answer));
}

async function copy(kind) {
  const texts = {
    curl: () => asCurl(state.body, location.origin),
    python: () => asPython(state.body, location.origin),
    answer: () => state.answer,
  };
  try {
    await navigator.clipboard.writeText(texts[kind]());
    at("copied").textContent = "copied";
  } catch {
    at("copied").textContent = "the browser did not allow copying";
  }
  setTimeout(() => (at("copied").textContent = ""), 2000);
}

// ---- wiring ---------------------------------------------------------------------------------------------------------

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
at("stop").addEventListener("click", () => state.running?.abort());
at("remove").addEventListener("click", removePicture);
at("drop").addEventListener("click", () => at("file").click());
at("drop").addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    at("file").click();
  }
});
at("file").addEventListener("change", () => take(at("file").files[0]));
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
}
for (const kind of ["dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.remove("over");
  });
}
document.addEventListener("drop", (event) => take(event.dataTransfer.files[0]));
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
  if (file) {
    event.preventDefault();
    take(file);
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
  if (event.key === "Escape") state.running?.abort();
});
window.addEventListener("resize", () => state.picture && draw(at("canvas"), state.picture, findMarks(state.answer)));
at("model").addEventListener("change", () => badge());
at("key").addEventListener("change", refreshModels);
at("copy").addEventListener("click", (event) => event.target.dataset.copy && copy(event.target.dataset.copy));
at("examples").append(
  ...EXAMPLES.map((words) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = words;
    button.addEventListener("click", () => {
      at("question").value = words;
      at("question").focus();
    });
    item.append(button);
    return item;
  }),
);
refreshModels();
