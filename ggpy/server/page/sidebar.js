// The list of conversations: open, search, rename, delete, export, import.

import { confirmed } from "./dialogs.js";
import { announce, debounce, h, icon, iconButton, saveFile } from "./dom.js";
import { exported, imported } from "./transfer.js";
import { t } from "./words.js";

export class Sidebar {
  /** problem: shows a sentence; chosen: called when one was opened. */
  constructor(chat, { problem, chosen }) {
    this.chat = chat;
    this.problem = problem;
    this.chosen = chosen;
    this.found = null; // ids of conversations that a search found in messages; null: no search
    this.search = h("input", { type: "search", placeholder: t("searchChats"), aria: { label: t("searchChats") },
      oninput: debounce(150, () => this.#search()) });
    this.list = h("nav", { class: "chats", aria: { label: t("chats") } });
    this.picker = h("input", { type: "file", accept: ".json,application/json", hidden: true, tabindex: "-1", onchange: () => this.#import() });
    this.element = h("aside", { class: "sidebar", id: "sidebar" },
      h("button", { type: "button", class: "new", onclick: () => this.startNew() }, icon("plus"), t("newChat")),
      h("div", { class: "search" }, icon("search"), this.search),
      this.list,
      h("div", { class: "sidebar-bar" },
        h("button", { type: "button", class: "plain", onclick: () => this.#export(null) }, icon("export"), t("exportAll")),
        h("button", { type: "button", class: "plain", onclick: () => this.picker.click() }, icon("import"), t("import")),
        this.picker));
    this.listeners = { list: () => this.#show(), open: () => this.#show() };
    for (const [name, listener] of Object.entries(this.listeners)) chat.addEventListener(name, listener);
    this.#show();
  }

  dispose() {
    for (const [name, listener] of Object.entries(this.listeners)) this.chat.removeEventListener(name, listener);
  }

  startNew() {
    this.chat.startNew();
    this.chosen();
  }

  async #search() {
    const words = this.search.value.trim().toLowerCase();
    this.found = words ? await this.chat.store.search(words) : null;
    this.#show();
  }

  #show() {
    const words = this.search.value.trim().toLowerCase();
    const matches = ({ id, title }) => !this.found || this.found.has(id) || title.toLowerCase().includes(words);
    const shown = this.chat.list.filter(matches);
    const parts = [];
    let group = null;
    for (const conversation of shown) {
      const name = age(conversation.updated);
      if (name !== group) parts.push(h("h2", {}, t((group = name))));
      parts.push(this.#entry(conversation));
    }
    if (!shown.length) parts.push(h("p", { class: "empty" }, t(this.found ? "nothingFound" : "noChats")));
    // The list may be made again (an answer ended) while someone goes through it by keyboard.
    const at = this.list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    if (document.activeElement?.matches?.(".rename")) return;
    this.list.replaceChildren(...parts);
    if (at) this.list.querySelector(`[data-key="${CSS.escape(at)}"]`)?.focus();
  }

  #entry(conversation) {
    const { id } = conversation;
    const current = id === this.chat.conversation.id;
    const title = conversation.title || t("newChat");
    // Its buttons are made when it is pointed at or focused: of a thousand chats, nearly none is.
    const fill = () => {
      if (!entry.querySelector(".entry-actions, .rename")) entry.append(this.#actions(entry, conversation));
    };
    const entry = h("div", { class: `entry${current ? " current" : ""}`, onpointerenter: fill, onfocusin: fill },
      h("button", { type: "button", class: "title", title, data: { key: id }, aria: current ? { current: "page" } : {},
        onclick: async () => { await this.chat.open(id); this.chosen(); },
        onkeydown: (event) => {
          if (event.key === "F2") this.#rename(entry, conversation);
          if (event.key === "Delete") this.#remove(conversation);
        } }, this.chat.isBusy(id) ? h("span", { class: "busy", role: "img", aria: { label: t("busy") } }) : null, title));
    if (current) fill();
    return entry;
  }

  #actions(entry, conversation) {
    return h("div", { class: "entry-actions" },
      iconButton("edit", t("rename"), () => this.#rename(entry, conversation)),
      iconButton("export", t("exportOne"), () => this.#export(conversation)),
      iconButton("trash", t("remove"), () => this.#remove(conversation)));
  }

  #rename(entry, { id, title }) {
    let ended = false;
    const end = (name) => {
      if (ended) return;
      ended = true;
      field.remove();
      if (name === null) this.#show();
      else this.chat.rename(id, name);
      this.list.querySelector(`[data-key="${id}"]`)?.focus();
    };
    const field = h("input", { class: "rename", value: title, aria: { label: t("rename") }, onblur: () => end(field.value),
      onkeydown: (event) => {
        if (event.isComposing || event.keyCode === 229) return;
        if (event.key === "Enter") end(field.value);
        if (event.key === "Escape") {
          event.stopPropagation();
          end(null);
        }
      } });
    entry.replaceChildren(field);
    field.focus();
    field.select();
  }

  async #remove({ id, title }) {
    if (await confirmed(t("removeAsk", { title: title || t("newChat") }), t("remove"))) await this.chat.remove(id);
  }

  async #export(conversation) {
    const chats = await this.chat.collect(conversation?.id ?? null);
    const day = new Date().toISOString().slice(0, 10);
    const name = conversation ? conversation.title.replace(/[\p{P}\p{S}\p{Z}\p{C}]+/gu, " ").trim().slice(0, 40) : "";
    saveFile(`${name || "ggpy-chats"} ${day}.json`, exported(chats), "application/json");
  }

  async #import() {
    const [file] = this.picker.files;
    this.picker.value = "";
    const chats = imported(await file.text());
    if (!chats) return this.problem(t("badImport", { name: file.name }));
    await this.chat.take(chats);
    return announce(t("imported", { n: chats.length }));
  }
}

function age(time) {
  const day = new Date().setHours(0, 0, 0, 0);
  if (time >= day) return "today";
  if (time >= day - 86_400_000) return "yesterday";
  return time >= day - 7 * 86_400_000 ? "week" : "earlier";
}
