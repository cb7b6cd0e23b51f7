// Where messages are written and files attached. Enter sends, but not while an input method composes.

import { readFiles } from "./attachments.js";
import { h, icon, iconButton } from "./dom.js";
import { fileView } from "./message_view.js";
import { t } from "./words.js";

export class Composer {
  /** problem: shows a sentence; editLast: edits the last message. */
  constructor(chat, { problem, editLast }) {
    this.chat = chat;
    this.problem = problem;
    this.editLast = editLast;
    this.files = [];
    this.field = h("textarea", { id: "message", rows: "1", placeholder: t("write"), enterkeyhint: "send", autocomplete: "off",
      aria: { label: t("write") }, oninput: () => this.#changed(), onkeydown: (event) => this.#key(event), onpaste: (event) => this.#paste(event) });
    this.chips = h("div", { class: "chips", hidden: true });
    this.picker = h("input", { type: "file", multiple: true, hidden: true, tabindex: "-1", onchange: () => this.#picked() });
    this.button = h("button", { type: "button", class: "send", onclick: () => this.#press() });
    this.element = h("div", { class: "composer" }, this.chips, this.field, h("div", { class: "composer-bar" },
      iconButton("attach", t("attach"), () => this.picker.click()), this.picker, this.button));
    this.listeners = { path: () => this.#changed(), open: () => this.#changed(), ended: () => this.#changed(), settings: () => this.#changed() };
    for (const [name, listener] of Object.entries(this.listeners)) chat.addEventListener(name, listener);
    this.#changed();
  }

  dispose() {
    for (const [name, listener] of Object.entries(this.listeners)) this.chat.removeEventListener(name, listener);
  }

  /** What is written and not sent, for a page that is built again. */
  get draft() {
    return { text: this.field.value, files: this.files };
  }

  set draft({ text, files }) {
    this.field.value = text;
    this.files = files;
    this.#showFiles();
  }

  focus() {
    this.field.focus();
  }

  #changed() {
    const answering = Boolean(this.chat.answering);
    if (this.answering !== answering) {
      this.answering = answering;
      this.button.replaceChildren(icon(answering ? "stop" : "send"));
      this.button.classList.toggle("stops", answering);
      this.button.title = t(answering ? "stop" : "send");
      this.button.setAttribute("aria-label", this.button.title);
    }
    this.button.disabled = !answering && !this.field.value.trim() && !this.files.length;
    if (!this.field.isConnected) return; // it has no height yet
    this.field.style.height = "auto";
    this.field.style.height = `${Math.min(this.field.scrollHeight, innerHeight * 0.4)}px`;
  }

  #key(event) {
    // Safari ends a composition before the key that ended it: its code is then 229.
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === "Enter" && !event.shiftKey && !event.altKey) {
      event.preventDefault();
      if (!this.answering) this.#send();
    } else if (event.key === "ArrowUp" && !this.field.value && !this.answering) {
      event.preventDefault();
      this.editLast();
    }
  }

  #press() {
    if (this.answering) this.chat.stop();
    else this.#send();
    this.focus();
  }

  #send() {
    const { text, files } = this.draft;
    if (!text.trim() && !files.length) return;
    this.draft = { text: "", files: [] };
    this.chat.send(text, files);
  }

  #paste(event) {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length || event.clipboardData.types.includes("text/plain")) return;
    event.preventDefault();
    this.attach(files);
  }

  #picked() {
    this.attach([...this.picker.files]);
    this.picker.value = "";
  }

  async attach(files) {
    const { read, problems } = await readFiles(files);
    this.files = [...this.files, ...read];
    problems.forEach((words) => this.problem(words));
    this.#showFiles();
    this.focus();
  }

  #showFiles() {
    this.chips.hidden = !this.files.length;
    this.chips.replaceChildren(...this.files.map((file) => h("div", { class: "chip" }, fileView(file),
      iconButton("close", t("removeFile", { name: file.name }), () => {
        this.files = this.files.filter((other) => other !== file);
        this.#showFiles();
        this.focus();
      }))));
    this.#changed();
  }
}
