// One reply as it arrives: thinking, answer, what it cost, and the request as a command. Two of them stand side by side.

import { chat } from "./api.js";
import { render } from "./markdown.js";
import { findMarks } from "./picture.js";
import { asCurl, asPython } from "./snippets.js";

const seconds = (ms) => `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;

export class Reply {
  constructor(body, key) {
    this.body = body;
    this.key = key;
    this.control = new AbortController();
    this.answer = "";
    this.node = document.getElementById("reply-template").content.firstElementChild.cloneNode(true);
    this.part("who").textContent = body.model;
    this.part("copy").addEventListener("click", (event) => this.copy(event.target.dataset.copy));
  }

  part(name) {
    return this.node.querySelector(`[data-part="${name}"]`);
  }

  // Streams the reply to its end; `routed` is told what the headers say.
  async run(routed) {
    const times = { start: performance.now() };
    const seen = {};
    this.node.classList.add("busy");
    try {
      for await (const item of chat(this.body, this.key, this.control.signal)) this.take(item, times, seen, routed);
    } catch (error) {
      if (error.name === "AbortError") seen.finish = "stopped";
      else this.fail(error);
    }
    times.end = performance.now();
    this.node.classList.remove("busy");
    this.finish(times, seen);
  }

  take(item, times, seen, routed) {
    const now = performance.now();
    if (item.headers) {
      const model = item.headers.get("x-sightloom-model");
      const route = item.headers.get("x-sightloom-route");
      this.part("who").textContent = [model ?? this.body.model, route].filter(Boolean).join(" · ");
      routed(route);
      return;
    }
    times.first ??= now;
    if (item.reasoning) {
      times.thought ??= now;
      this.part("thought").hidden = false;
      this.part("reasoning").textContent += item.reasoning;
      this.part("thought-title").textContent = "Thinking …";
    }
    if (item.content) {
      if (times.thought && !times.answer) this.part("thought-title").textContent = `Thinking, ${seconds(now - times.thought)}`;
      times.answer ??= now;
      this.answer += item.content;
      this.drawing ??= requestAnimationFrame(() => this.write());
    }
    if (item.finish) Object.assign(seen, item);
    if (item.usage) seen.usage = item.usage;
  }

  write() {
    if (this.drawing) cancelAnimationFrame(this.drawing);
    this.drawing = null;
    this.part("answer").replaceChildren(render(this.answer));
  }

  finish(times, seen) {
    const usage = seen.usage;
    const reasoning = usage?.completion_tokens_details.reasoning_tokens ?? 0;
    if (times.thought) {
      const long = seconds((times.answer ?? times.end) - times.thought);
      const cut = { truncated: ", cut at the budget", malformed: ", malformed" }[seen.thinking] ?? "";
      this.part("thought-title").textContent = `Thinking, ${long}${reasoning ? `, ${reasoning} tokens` : ""}${cut}`;
    }
    this.write();
    if (!this.answer && this.part("error").hidden) {
      this.part("answer").textContent = seen.finish === "stopped" ? "stopped" : "(no answer)";
    }
    const facts = { finished: seen.finish, "first token": times.first && seconds(times.first - times.start) };
    facts.total = seconds(times.end - times.start);
    if (usage) {
      facts.prompt = `${usage.prompt_tokens} tokens, ${usage.prompt_tokens_details.image_tokens} of pictures`;
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
      this.part("facts").append(pair);
    }
    this.node.querySelector('[data-copy="answer"]').hidden = !this.answer;
    this.part("facts").hidden = this.part("copy").hidden = false;
  }

  fail(error) {
    const box = this.part("error");
    box.replaceChildren(document.createTextNode(error.message));
    if (error.code) {
      const code = document.createElement("code");
      code.textContent = ` ${error.code}`;
      box.append(code);
    }
    if (error.retryAfter) countDown(box, error.retryAfter);
    box.hidden = false;
  }

  marks() {
    return findMarks(this.answer);
  }

  async copy(kind) {
    const texts = {
      curl: () => asCurl(this.body, location.origin, this.key),
      python: () => asPython(this.body, location.origin, this.key),
      answer: () => this.answer,
    };
    if (!texts[kind]) return;
    const told = this.part("copied");
    try {
      await navigator.clipboard.writeText(texts[kind]());
      told.textContent = "copied";
    } catch {
      told.textContent = "the browser did not allow copying";
    }
    setTimeout(() => (told.textContent = ""), 2000);
  }
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
