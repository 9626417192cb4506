// The page: gathers pictures and a question, asks one model or two side by side, marks the answers on the picture.

import { listModels } from "./api.js";
import { draw, loadPicture } from "./picture.js";
import { Reply } from "./reply.js";
import { buildBody } from "./request.js";

const EXAMPLES = {
  natural: "What colour is the thing right of the tree?",
  document: "What is the total?",
  science: "Which object is heavier?",
  ui: "Click the light switch.",
  art: "Which medium is this picture?",
};
const COLOURS = ["#e11d48", "#0369a1"]; // of the marks of the first and the second reply
const MOST_PICTURES = 8;
const at = (id) => document.getElementById(id);
const state = { pictures: [], shown: 0, models: [], replies: [], running: false };

function show(id, visible) {
  at(id).hidden = !visible;
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
  if (!state.models.length) {
    at("badge").textContent = "no model is ready yet";
    setTimeout(refreshModels, 2000);
    return;
  }
  const options = () => state.models.map((model) => new Option(model.id, model.id));
  refill(at("model"), options());
  refill(at("rival"), [new Option("nobody", ""), ...options()]);
  badge();
}

function refill(select, options) {
  const chosen = select.value;
  select.replaceChildren(...options);
  if (options.some((option) => option.value === chosen)) select.value = chosen;
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

// ---- pictures -------------------------------------------------------------------------------------------------------

async function take(files) {
  say("");
  for (const file of files) {
    if (state.pictures.length === MOST_PICTURES) {
      say(`At most ${MOST_PICTURES} pictures go with a question.`);
      break;
    }
    try {
      state.pictures.push(await loadPicture(file));
    } catch (error) {
      say(error.message);
      continue;
    }
    state.shown = state.pictures.length - 1;
    state.replies = [];
  }
  at("file").value = "";
  showPictures();
  if (state.pictures.length) at("question").focus();
}

function removePicture() {
  state.pictures.splice(state.shown, 1);
  state.shown = Math.max(0, state.shown - 1);
  state.replies = [];
  showPictures();
}

function showPictures() {
  const any = state.pictures.length > 0;
  at("drop").classList.toggle("full", any);
  document.querySelector(".hint").hidden = any;
  show("stage", any);
  show("under", any);
  const thumbnails = state.pictures.map((picture, place) => {
    const button = document.createElement("button");
    const image = document.createElement("img");
    image.src = picture.url;
    image.alt = "";
    button.type = "button";
    button.setAttribute("aria-label", `picture ${place + 1} of ${state.pictures.length}`);
    button.setAttribute("aria-pressed", String(place === state.shown));
    button.addEventListener("click", () => {
      state.shown = place;
      showPictures();
    });
    button.append(image);
    return button;
  });
  at("strip").replaceChildren(...thumbnails);
  show("strip", state.pictures.length > 1);
  if (!any) return;
  at("about").textContent = state.pictures[state.shown].about;
  redraw();
}

// Marks belong to the only picture; with several a number does not say which one is meant.
function redraw() {
  const picture = state.pictures[state.shown];
  if (!picture) return;
  const marks = state.replies.flatMap((reply, place) => reply.marks().map((mark) => ({ ...mark, colour: COLOURS[place] })));
  draw(at("canvas"), picture, state.pictures.length === 1 ? marks : []);
}

function say(words) {
  at("notice").textContent = words;
  show("notice", Boolean(words));
}

// ---- asking ---------------------------------------------------------------------------------------------------------

async function ask() {
  if (state.running || !at("model").value) return;
  const question = at("question").value.trim() || at("question").placeholder;
  const names = [at("model").value, at("rival").value].filter(Boolean);
  let bodies;
  try {
    bodies = names.map((name) => buildBody(at, name, question, state.pictures));
  } catch (error) {
    say(error.message);
    return;
  }
  say("");
  state.running = true;
  state.replies = bodies.map((body) => new Reply(body, at("key").value));
  at("asked").textContent = question;
  at("replies").replaceChildren(...state.replies.map((reply) => reply.node));
  at("replies").classList.toggle("two", state.replies.length === 2);
  show("empty", false);
  show("turn", true);
  show("go", false);
  show("stop", true);
  at("reply").setAttribute("aria-busy", "true");
  redraw();
  lookAtReply();
  await Promise.all(state.replies.map((reply, place) => reply.run((route) => place === 0 && badge(route))));
  state.running = false;
  show("stop", false);
  show("go", true);
  at("reply").setAttribute("aria-busy", "false");
  redraw();
  lookAtReply();
}

// On a narrow screen the reply stands below the question, where nobody would see it begin or fail.
function lookAtReply() {
  const turn = at("turn");
  if (turn.getBoundingClientRect().top > innerHeight / 2) turn.scrollIntoView({ block: "start" });
}

function stop() {
  for (const reply of state.replies) reply.control.abort();
}

// ---- wiring ---------------------------------------------------------------------------------------------------------

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
at("stop").addEventListener("click", stop);
at("remove").addEventListener("click", removePicture);
at("add").addEventListener("click", () => at("file").click());
at("drop").addEventListener("click", () => at("file").click());
at("drop").addEventListener("keydown", (event) => {
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    at("file").click();
  }
});
at("file").addEventListener("change", () => take([...at("file").files]));
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
document.addEventListener("drop", (event) => take([...event.dataTransfer.files]));
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files].filter((one) => one.type.startsWith("image/"));
  if (files.length) {
    event.preventDefault();
    take(files);
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
  if (event.key === "Escape") stop();
});
window.addEventListener("resize", redraw);
at("model").addEventListener("change", () => badge());
at("key").addEventListener("change", refreshModels);
at("examples").append(
  ...Object.entries(EXAMPLES).map(([domain, words]) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.title = domain;
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
