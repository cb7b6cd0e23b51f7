// One message on the page: what it shows follows the message, which may still grow.

import { copyButton, h, icon, iconButton } from "./dom.js";
import { MarkdownView } from "./markdown_view.js";
import { number, t } from "./words.js";

/** Whether browsers say when a message comes near the screen (`content-visibility`). */
const SAYS_WHEN_SEEN = "oncontentvisibilityautostatechange" in document.documentElement;

/** actions: {regenerate, retry, edit, showVersion, answerCalls}, each given the message's id first. */
export class MessageView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.element = h("article", { class: `message ${message.role}`, tabindex: "-1", data: { id: message.id } });
    this.body = h("div", { class: "body" });
    this.footer = h("footer");
    this.element.append(this.body, this.footer);
    if (message.role === "assistant") this.#buildAnswer();
    else this.#buildAsked();
  }

  #buildAsked() {
    const { message } = this;
    this.element.setAttribute("aria-label", t(message.role === "user" ? "you" : "toolResult"));
    this.body.append(...(message.attachments ?? []).map(fileView));
    if (message.role === "tool") this.body.append(h("div", { class: "label" }, icon("tool"), t("toolResult")));
    if (message.content) this.body.append(h("div", { class: "text" }, message.content));
  }

  #buildAnswer() {
    this.element.setAttribute("aria-label", t("assistant"));
    this.name = h("div", { class: "name" });
    this.summary = h("span");
    this.thoughtText = h("div", { class: "markdown" });
    this.thought = h("details", { class: "thought", hidden: true, ontoggle: () => this.#thought() },
      h("summary", {}, icon("thought"), this.summary), this.thoughtText);
    this.thoughtView = new MarkdownView(this.thoughtText);
    this.content = h("div", { class: "content markdown" });
    this.contentView = new MarkdownView(this.content);
    this.seen = !SAYS_WHEN_SEEN;
    this.element.addEventListener("contentvisibilityautostatechange", ({ skipped }) => { if (!skipped) this.see(); });
    this.calls = h("div", { class: "calls" });
    this.note = h("p", { class: "note", hidden: true });
    this.body.append(this.name, this.thought, this.content, this.calls, this.note);
  }

  /** Show the message as it is now. versions: the ids of it and its siblings; running: whether more is to come. */
  update(versions, running) {
    this.element.classList.toggle("running", running);
    if (this.message.role === "assistant") this.#updateAnswer(running);
    this.#updateFooter(versions, running);
  }

  #updateAnswer(running) {
    const { message } = this;
    this.name.textContent = message.model ?? "";
    const seconds = message.thoughtSeconds ?? 0;
    const thinks = running && !message.content && !message.toolCalls;
    this.thought.hidden = !message.reasoning;
    this.summary.textContent = thinks ? t("thinking") : seconds >= 1 ? t("thoughtFor", { s: number(seconds) }) : t("thought");
    this.#thought();
    if (this.seen || running) this.see();
    else this.content.textContent = message.content; // which the browser's own search finds
    this.#updateCalls(running);
    this.#updateNote(running);
  }

  /** Show what was written as it was meant. Markdown is read when it comes near the screen: a thousand answers are a second. */
  see() {
    if (!this.contentView) return;
    if (!this.seen) this.content.replaceChildren();
    this.seen = true;
    this.contentView.update(this.message.content);
  }

  /** What is folded is not laid out; it is made when it is unfolded. */
  #thought() {
    if (this.thought.open) this.thoughtView.update(this.message.reasoning ?? "");
  }

  #updateCalls(running) {
    const calls = this.message.toolCalls ?? [];
    // What was typed into a result's field stays: calls are made again only while they come, or when they are answered.
    const state = `${running} ${this.actions.isLast(this.message.id)} ${JSON.stringify(calls)}`;
    if (state === this.callsShown) return;
    this.callsShown = state;
    const open = !running && calls.length && this.actions.isLast(this.message.id);
    const fields = calls.map(() => h("textarea", { rows: "2", placeholder: t("toolAnswer"), aria: { label: t("toolAnswer") } }));
    this.calls.replaceChildren(...calls.map((call, i) => h("div", { class: "call" },
      h("div", { class: "label" }, icon("tool"), t("toolCall", { name: call.name })),
      h("pre", { tabindex: "0" }, h("code", {}, indented(call.arguments))),
      open ? fields[i] : null)));
    if (!open) return;
    const send = () => this.actions.answerCalls(this.message.id, fields.map((field) => field.value));
    this.calls.append(h("button", { type: "button", class: "button", onclick: send }, t("toolSend")));
  }

  #updateNote(running) {
    const { message } = this;
    const failed = message.state === "failed";
    const words = running ? (message.content || message.reasoning || message.toolCalls ? "" : t("waiting")) : noteOf(message);
    this.note.hidden = !words;
    this.note.className = failed ? "note error" : running ? "note waiting" : "note";
    if (this.noteShown === words) return;
    this.noteShown = words;
    this.note.replaceChildren(words);
    if (failed) {
      this.note.append(h("button", { type: "button", class: "button", onclick: () => this.actions.retry(message.id) }, t("retry")));
    }
  }

  #updateFooter(versions, running) {
    const state = `${running} ${versions.join(" ")} ${JSON.stringify(this.message.stats ?? 0)}`;
    if (state === this.footerShown) return;
    this.footerShown = state;
    const { message, actions } = this;
    const buttons = [];
    // An answer that failed before its first word has nothing to copy or edit, and its own button to ask again.
    const nothing = !message.content && !message.reasoning && !message.toolCalls && !message.attachments;
    if (!running && !(nothing && message.state === "failed")) {
      buttons.push(copyButton(t("copy"), t("copied"), () => message.content));
      if (message.role === "assistant") buttons.push(iconButton("redo", t("regenerate"), () => actions.regenerate(message.id)));
      if (message.role !== "tool") buttons.push(iconButton("edit", t("edit"), () => this.edit()));
    }
    this.footer.replaceChildren(...(versions.length > 1 ? [this.#versions(versions)] : []),
      h("div", { class: "actions" }, buttons), message.stats ? statsView(message.stats) : "");
  }

  #versions(ids) {
    const at = ids.indexOf(this.message.id);
    const show = (step) => this.actions.showVersion(ids[at + step], step < 0 ? "previous" : "next");
    const button = (name, words, step) => iconButton(name, t(words), () => show(step),
      { disabled: !ids[at + step], data: { step: words } });
    return h("div", { class: "versions", role: "group", aria: { label: t("versions", { at: at + 1, of: ids.length }) } },
      button("left", "previous", -1), h("span", {}, `${at + 1} / ${ids.length}`), button("right", "next", 1));
  }

  /** Change the text in place; what comes of it is another version. */
  edit() {
    const { message } = this;
    const asks = message.role === "user";
    const field = h("textarea", { class: "edit", value: message.content, aria: { label: t("edit") } });
    const fit = () => {
      field.style.height = "auto";
      field.style.height = `${Math.min(field.scrollHeight + 2, innerHeight * 0.6)}px`;
    };
    const end = () => {
      form.replaceWith(this.body);
      this.footer.hidden = false;
    };
    const save = () => {
      const text = field.value;
      end();
      if (text !== message.content || asks) this.actions.edit(message.id, text, message.attachments);
    };
    field.addEventListener("input", fit);
    field.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      const sends = event.key === "Enter" && (asks ? !event.shiftKey : event.ctrlKey || event.metaKey);
      if (event.key !== "Escape" && !sends) return;
      event.preventDefault();
      event.stopPropagation();
      if (sends) save();
      else {
        end();
        this.element.focus();
      }
    });
    const form = h("div", { class: "editing" }, (message.attachments ?? []).map(fileView), field,
      h("div", { class: "buttons" },
        h("button", { type: "button", class: "button", onclick: end }, t("cancel")),
        h("button", { type: "button", class: "button primary", onclick: save }, t(asks ? "saveAndSend" : "save"))));
    this.body.replaceWith(form);
    this.footer.hidden = true;
    fit();
    field.focus();
  }
}

export function fileView({ name, text }) {
  return h("details", { class: "file" }, h("summary", {}, icon("file"), h("span", { class: "file-name" }, name),
    h("span", { class: "file-size" }, t("fileSize", { n: number(text.length) }))), h("pre", { tabindex: "0" }, text));
}

function indented(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json; // still coming, or the model's mistake
  }
}

/** Why an answer ended, where it did not end by itself. */
function noteOf(message) {
  if (message.state === "failed") {
    if (message.error) return message.error;
    return t(message.content || message.reasoning ? "connectionLost" : "noServer");
  }
  if (message.state === "stopped") return t("stopped");
  if (message.state === "running") return t("interrupted"); // in a page that is closed
  if (message.finish !== "length") return "";
  const { prompt, generated, context } = message.stats ?? {};
  return t(context && prompt + generated >= context ? "cutByContext" : "cutByLength");
}

function statsView({ speed, generated, prompt, cached, context }) {
  const used = (prompt ?? 0) + (generated ?? 0);
  const parts = [];
  if (speed) parts.push(t("speed", { n: number(speed, speed < 10 ? 1 : 0) }));
  if (generated) parts.push(t("tokens", { n: number(generated) }));
  if (used && context) {
    const share = (used / context).toLocaleString(undefined, { style: "percent", maximumFractionDigits: used / context < 0.1 ? 1 : 0 });
    parts.push(t("contextShare", { share }));
  } else if (used) {
    parts.push(t("contextTokens", { n: number(used) }));
  }
  const details = t("details", { prompt: number(prompt ?? 0), generated: number(generated ?? 0),
    cached: cached === undefined ? null : number(cached), context: context && number(context) });
  return h("div", { class: "stats", title: details }, parts.join(" · "));
}
