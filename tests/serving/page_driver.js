// Runs the script of the page on a document of a few lines: node page_driver.js URL KIND TEXT SCRIPT
"use strict";
const fs = require("fs");
const vm = require("vm");
const [url, kind, text, script] = process.argv.slice(2);

class Element {
  constructor() {
    this.own = ""; this.children = []; this.dataset = {}; this.attributes = {}; this.value = "";
    this.listeners = {}; this.className = ""; this.title = ""; this.hidden = this.disabled = false;
    this.classes = new Set();
    this.classList = {toggle: (name, on) => on ? this.classes.add(name) : this.classes.delete(name)};
  }
  get textContent() { return this.own + this.children.map((child) => child.textContent).join(""); }
  set textContent(value) { this.own = String(value); this.children = []; }
  get lastElementChild() { return this.children.at(-1) || null; }
  append(...more) { this.children.push(...more); }
  replaceChildren(...more) { this.own = ""; this.children = more; }
  setAttribute(name, value) { this.attributes[name] = value; }
  addEventListener(name, listener) { this.listeners[name] = listener; }
  focus() {}
}

const elements = {};
const at = (id) => elements[id] ||= new Element();
const document = {
  getElementById: at,
  querySelector: () => ({value: kind}),
  getElementsByName: () => [],
  createElement: () => new Element(),
};
const context = {
  document, performance, AbortController, TextDecoderStream, console, Error, TypeError,
  fetch: (path, options) => fetch(url + path, options),
};
vm.runInNewContext(fs.readFileSync(script, "utf8"), context);

async function main() {
  at("text").value = text;
  at("max_tokens").value = "40";
  at("temperature").value = "0";
  at("form").listeners.submit({preventDefault() {}});
  while (at("send").disabled) await new Promise((done) => setTimeout(done, 5));
  await new Promise((done) => setTimeout(done, 50)); // the title comes by itself
  console.log(JSON.stringify({
    text: at("output").textContent,
    runs: at("output").children.map(({textContent, className, title}) => ({textContent, className, title})),
    numbers: Object.fromEntries(["rate", "tokens", "calls", "first", "speed"].map((id) => [id, at(id).textContent])),
    passes: at("passes").children.map((cell) => Number(cell.textContent)),
    turns: at("turns").children.map((turn) => turn.textContent),
    status: at("status").textContent,
    failed: at("status").classes.has("error"),
    title: at("title").textContent,
  }));
}

main();
