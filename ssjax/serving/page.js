"use strict";
const at = (id) => document.getElementById(id);
const settings = ["max_tokens", "temperature", "top_k", "top_p", "seed"];
let controller = null; // of the request that runs
let last = null; // request, to be tried again
let messages = []; // of the chat

// What may work when it is tried again.
class Passing extends Error {}

function made(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function isChat() { return at("is-chat").checked; }

function say(text, isError = false) {
  if (at("status").textContent !== text) at("status").textContent = text;
  at("status").classList.toggle("error", isError);
}

// An answer and its numbers.
class Column {
  constructor(id) {
    this.section = at(id);
    this.output = this.section.querySelector(".output");
    this.clear();
  }

  clear() {
    this.output.replaceChildren();
    this.shade = "b";
    this.runs = new Map(); // by number: tokens, kept, text and the element that shows it
    this.drafts = new Map();
    this.number = {tokens: 0, calls: 0, first: null, speed: null};
    this.stale = false;
    this.showNumbers();
  }

  busy(on) {
    this.output.setAttribute("aria-busy", String(on));
    this.section.classList.toggle("busy", on);
  }

  take(choice, began) {
    if (this.stale) this.clear(); // an earlier answer stays until there is something else to show
    for (const piece of choice.runs) this.takeRun(piece);
    for (const draft of choice.drafts || []) this.drafts.set(draft.run, draft);
    this.number.tokens = choice.tokens;
    this.number.calls = choice.calls;
    if (choice.tokens > 0) this.number.first ??= performance.now() - began;
    this.showNumbers();
  }

  takeRun({run, tokens, kept, text}) {
    let found = this.runs.get(run);
    if (!found) {
      found = {text: "", element: made("span")};
      found.element.dataset.run = run;
      if (kept > 0) {
        this.shade = this.shade === "a" ? "b" : "a";
        found.element.className = `run ${this.shade}`;
      }
      const atEnd = this.output.scrollTop + this.output.clientHeight >= this.output.scrollHeight - 4;
      this.output.append(found.element);
      if (atEnd) this.output.scrollTop = this.output.scrollHeight;
      this.runs.set(run, found);
    }
    found.tokens = tokens;
    found.kept = kept;
    found.text += text;
    found.element.textContent = found.text;
    if (kept > 0) found.element.title = `${tokens} tokens in one pass, ${kept} of them drafted`;
  }

  showNumbers() {
    const {tokens, calls, first, speed} = this.number;
    const shown = {
      rate: calls > 0 ? ((tokens - 1) / calls).toFixed(2) : "–",
      tokens: tokens || "–",
      calls: calls || "–",
      first: first === null ? "–" : `${Math.round(first)} ms`,
      speed: speed === null ? "–" : speed.toFixed(1),
    };
    for (const [name, text] of Object.entries(shown)) {
      this.section.querySelector(`[data-of=${name}]`).textContent = text;
    }
  }

  get text() { return this.output.textContent; }

  // Passes by drafts kept, from what has come; a pass without text of its own is not among them.
  get histogram() {
    const counts = [];
    for (const [run, {kept}] of this.runs) if (run > 0) counts[kept] = (counts[kept] || 0) + 1;
    return Array.from(counts, (count) => count || 0);
  }
}

const drafted = new Column("drafted"), plain = new Column("plain");

// The draft of one pass.
const details = {
  chosen: null, // number of a pass; null: the last one

  clear() {
    this.chosen = null;
    at("details").hidden = true;
  },

  get last() { return Math.max(0, ...drafted.runs.keys(), ...drafted.drafts.keys()); },

  update() {
    const last = this.last;
    if (last < 1) return;
    at("details").hidden = false;
    at("pass").max = last;
    this.show(this.chosen ?? last);
  },

  choose(number) {
    this.chosen = number < this.last ? number : null;
    this.show(number);
  },

  show(number) {
    const run = drafted.runs.get(number), draft = drafted.drafts.get(number);
    const line = this.line(number, run, draft);
    at("pass").value = number;
    at("pass").setAttribute("aria-valuetext", line);
    at("caption").textContent = line;
    at("tree").hidden = !draft;
    at("tree").replaceChildren(...(draft ? [treeOf(draft, ownText(run, draft))] : []));
    drafted.output.querySelector(".chosen")?.classList.remove("chosen");
    run?.element.classList.add("chosen");
  },

  line(number, run, draft) {
    if (!draft) return `Pass ${number}: ${run ? run.kept : 0} drafted tokens kept; its tree was not read, others ran beside it`;
    const count = draft.texts.length - 1, kept = draft.kept.filter(Boolean).length - 1;
    if (!count) return `Pass ${number}: nothing was drafted`;
    return `Pass ${number}: ${kept} of ${count} drafted tokens kept`;
  },
};

// What the model added to the drafts that were kept.
function ownText(run, draft) {
  const kept = draft.texts.filter((_, node) => node > 0 && draft.kept[node]).join("");
  return run && run.text.startsWith(kept) ? run.text.slice(kept.length) : "";
}

function visible(text) {
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";
}

function treeOf({texts, parents, kept}, own) {
  const items = texts.map((text, node) => {
    const item = made("li");
    const label = made("span", node ? `node${kept[node] ? " kept" : ""}` : "node root", visible(text));
    if (node) label.append(made("span", "unseen", kept[node] ? " (kept)" : " (not kept)"));
    else label.title = "The token before the draft";
    item.append(label);
    return item;
  });
  const under = (item) => {
    if (item.lastElementChild.tagName !== "UL") item.append(made("ul"));
    return item.lastElementChild;
  };
  for (let node = 1; node < items.length; node++) {
    const siblings = under(items[parents[node]]);
    if (kept[node]) siblings.prepend(items[node]);
    else siblings.append(items[node]);
  }
  if (own) {
    const item = made("li"), label = made("span", "node own", visible(own));
    label.title = "The model's own token after what was kept";
    label.append(made("span", "unseen", " (the model's own)"));
    item.append(label);
    under(items[kept.lastIndexOf(true)]).prepend(item);
  }
  const list = made("ul");
  list.append(items[0]);
  return list;
}

function showDepths(histogram) {
  const passes = histogram.reduce((sum, count) => sum + count, 0);
  if (!passes) return;
  const rows = [];
  for (let depth = 1; depth < histogram.length; depth++) {
    const share = histogram.slice(depth).reduce((sum, count) => sum + count, 0) / passes;
    const row = made("tr"), cell = made("td"), bar = made("div", "bar"), fill = made("i");
    fill.style.width = `${60 * share}%`;
    bar.append(fill, made("span", "", `${Math.round(100 * share)} %`));
    cell.append(bar);
    row.append(made("td", "", depth), cell);
    rows.push(row);
  }
  at("depths").replaceChildren(...rows);
}

function showTurns() {
  // The last answer stands in its own place.
  const shown = messages.at(-1)?.role === "assistant" ? messages.slice(0, -1) : messages;
  at("turns").replaceChildren(...shown.map(({role, content}) => {
    const turn = made("li", role);
    turn.append(made("b", "", role === "user" ? "You" : "Model"), content);
    return turn;
  }));
  at("turns").hidden = !isChat() || messages.length === 0;
  at("clear").hidden = at("turns").hidden;
  at("text-name").textContent = isChat() ? "Message" : "Prompt";
}

function requestOf(text) {
  const asked = {stream: true, stream_options: {include_usage: true, include_runs: true, include_drafts: true}};
  if (at("model").value) asked.model = at("model").value;
  for (const name of settings) {
    if (at(name).value !== "") asked[name] = Number(at(name).value);
  }
  const compare = at("compare").checked;
  // Both answers are drawn alike.
  if (compare) asked.seed ??= Math.floor(Math.random() * 2 ** 31);
  if (isChat()) asked.messages = [...messages, {role: "user", content: text}];
  else asked.prompt = text;
  return {text, chat: isChat(), asked, compare, finished: new Set()};
}

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (event.startsWith("data: ")) yield event.slice(6);
    }
  }
}

async function problemOf(response) {
  const told = await response.json().catch(() => null);
  const message = told?.error?.message ?? `The server answers with ${response.status}`;
  const passing = response.status === 429 || response.status >= 500;
  return passing ? new Passing(message) : new Error(message);
}

async function answer(column, {chat, asked}) {
  const began = performance.now();
  let response;
  column.busy(true);
  try {
    try {
      response = await fetch(chat ? "v1/chat/completions" : "v1/completions", {
        method: "POST",
        headers: {"Content-Type": "application/json"},
        body: JSON.stringify(asked),
        signal: controller.signal,
      });
    } catch (error) {
      throw error.name === "AbortError" ? error : new Passing("The server cannot be reached");
    }
    if (!response.ok) throw await problemOf(response);
    let ended = false;
    try {
      for await (const data of eventsOf(response)) {
        if (data === "[DONE]") { ended = true; break; }
        takeEvent(column, JSON.parse(data), began);
      }
    } catch (error) {
      if (error.name === "AbortError" || error instanceof Passing) throw error;
      if (!(error instanceof TypeError)) throw error; // of the network
    }
    if (!ended) {
      const when = column.stale ? "before the answer began" : `after ${column.number.tokens} tokens`;
      throw new Passing(`The connection was lost ${when}; what had come is kept below`);
    }
  } finally {
    column.busy(false);
  }
}

function takeEvent(column, event, began) {
  if (event.error) throw new Passing(event.error.message);
  for (const choice of event.choices) {
    if (!choice.runs) continue;
    column.take(choice, began);
    if (choice.tokens > 0) say(column === drafted ? "Answering" : "Answering without drafts");
    if (column === drafted) { details.update(); showDepths(column.histogram); }
  }
  if (!event.metrics) return;
  column.number.speed = event.metrics.tokens_per_second;
  column.showNumbers();
  const known = event.metrics.speculative_decoding?.acceptance_histogram;
  if (known && column === drafted) showDepths(known);
}

function verdict() {
  const [one, two] = [drafted.number, plain.number];
  const lines = [];
  if (drafted.text !== plain.text) lines.push("The two texts differ where rounding decided.");
  else if (one.calls) lines.push(`The same text in ${one.calls} calls instead of ${two.calls}: ${(two.calls / one.calls).toFixed(2)} times fewer.`);
  lines.push(`${one.speed.toFixed(1)} tokens per second with drafts, ${two.speed.toFixed(1)} without, one after the other.`);
  lines.push("A server that never drafts may be faster than this one without drafts: its passes have room for a tree.");
  at("verdict").textContent = lines.join(" ");
  at("verdict").hidden = false;
}

async function send(request) {
  if (controller) return;
  last = request;
  controller = new AbortController();
  at("send").disabled = true;
  at("stop").disabled = false;
  at("retry").hidden = true;
  at("verdict").hidden = true;
  at("plain").hidden = !request.compare;
  at("drafted-name").textContent = request.compare ? "With drafts" : "Answer";
  say("Waiting for the first token");
  try {
    if (!request.finished.has(drafted)) {
      details.clear();
      drafted.stale = true;
      await answer(drafted, request);
      request.finished.add(drafted);
    }
    if (request.compare) {
      say("Waiting for the first token without drafts");
      plain.stale = true;
      // Watched as the other is, so that both wait as often for a look.
      await answer(plain, {...request, asked: {...request.asked, drafting: false}});
      verdict();
    }
    if (request.chat) {
      messages = [...request.asked.messages, {role: "assistant", content: drafted.text}];
      at("text").value = "";
      showTurns();
    }
    say(`Done: ${drafted.number.tokens} tokens in ${drafted.number.calls} calls`);
  } catch (error) {
    if (error.name === "AbortError") say("Stopped");
    else say(error.message, true);
    at("retry").hidden = !(error instanceof Passing);
  } finally {
    controller = null;
    at("send").disabled = false;
    at("stop").disabled = true;
  }
}

function sendNew() {
  if (at("text").value.trim() === "" || controller) return;
  for (const column of [drafted, plain]) column.clear();
  send(requestOf(at("text").value));
}

at("form").addEventListener("submit", (event) => { event.preventDefault(); sendNew(); });
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); sendNew(); }
});
at("stop").addEventListener("click", () => controller?.abort());
at("retry").addEventListener("click", () => send(last));
at("clear").addEventListener("click", () => { messages = []; showTurns(); at("text").focus(); });
for (const id of ["is-prompt", "is-chat"]) at(id).addEventListener("change", showTurns);
at("pass").addEventListener("input", () => details.choose(Number(at("pass").value)));
const pointed = (event) => {
  const number = Number(event.target.closest("[data-run]")?.dataset.run);
  return number > 0 ? number : null;
};
drafted.output.addEventListener("click", (event) => pointed(event) && details.choose(pointed(event)));
drafted.output.addEventListener("pointerover", (event) => {
  if (pointed(event)) details.show(pointed(event));
});
drafted.output.addEventListener("pointerleave", () => details.update());

fetch("v1/models").then((response) => response.json()).then(({data}) => {
  at("model").replaceChildren(...data.map(({id}) => new Option(id, id)));
  document.title = `${data[0].id} – ssjax`;
}).catch(() => say("The models of this server cannot be listed", true));
