// The page put together: header, sidebar, transcript, composer; keys; the model's choice.

import { ApiError } from "./api.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { askKey, showShortcuts } from "./dialogs.js";
import { announce, h, iconButton } from "./dom.js";
import { applyTheme, preferences } from "./preferences.js";
import { showSettings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { openStore } from "./store.js";
import { Transcript } from "./transcript.js";
import { locale, t } from "./words.js";

const NARROW = matchMedia("(max-width: 48rem)");

class Page {
  constructor(chat) {
    this.chat = chat;
    this.problems = h("div", { class: "problems", role: "alert" });
    chat.addEventListener("open", () => this.#opened());
    chat.addEventListener("list", () => this.#title());
    chat.addEventListener("settings", () => this.#showModels());
    chat.addEventListener("problem", ({ detail }) => this.problem(detail));
    chat.addEventListener("key", async ({ detail: { words, then } }) => {
      if (await askKey(words)) {
        this.loadModels();
        then();
      }
    });
    this.build();
    document.addEventListener("keydown", (event) => this.#key(event));
    this.#takeDrops();
    NARROW.addEventListener("change", () => this.#showSidebar(preferences.get("sidebar") && !NARROW.matches));
    addEventListener("pagehide", () => chat.leave());
    addEventListener("pageshow", () => { chat.leaving = false; }); // back, as it was left
    addEventListener("hashchange", () => this.#openHash());
    addEventListener("focus", () => { if (!chat.models.length) this.loadModels(); });
  }

  /** All of the page, in the language chosen. */
  build() {
    const draft = this.composer?.draft;
    for (const part of [this.sidebar, this.transcript, this.composer]) part?.dispose();
    document.documentElement.lang = locale();
    const { chat } = this;
    const problem = (words) => this.problem(words);
    this.sidebar = new Sidebar(chat, { problem, chosen: () => this.#chosen() });
    this.transcript = new Transcript(chat);
    this.composer = new Composer(chat, { problem, editLast: () => this.transcript.editLast() });
    this.models = h("select", { class: "models", aria: { label: t("model") }, title: t("model"), onchange: () => chat.chooseModel(this.models.value) });
    this.themeButton = h("div");
    this.menu = iconButton("menu", t("menu"), () => this.#toggleSidebar(), { aria: { controls: "sidebar" } });
    const app = h("div", { class: "app" }, this.sidebar.element, h("div", { class: "shade", onclick: () => this.#closeDrawer() }),
      h("main", {},
        h("header", { class: "top" }, this.menu, this.models, h("div", { class: "space" }),
          h("button", { type: "button", class: "plain language", lang: preferences.get("language") === "zh" ? "en" : "zh-CN",
            onclick: () => this.#switchLanguage() }, t("language")),
          this.themeButton,
          iconButton("settings", t("settings"), () => showSettings(chat, { shortcuts: showShortcuts }), { class: "open-settings" })),
        this.transcript.element, this.problems, this.composer.element));
    this.app?.remove();
    this.app = app;
    document.body.prepend(app);
    if (draft) this.composer.draft = draft;
    this.#theme();
    this.#showModels();
    this.#showSidebar(preferences.get("sidebar") && !NARROW.matches);
    this.#title();
    this.transcript.scrollToEnd();
  }

  problem(words) {
    const line = h("p", { class: "note error" }, words, iconButton("close", t("close"), () => line.remove()));
    this.problems.append(line);
    while (this.problems.children.length > 3) this.problems.firstChild.remove();
  }

  async loadModels() {
    this.problems.replaceChildren();
    try {
      await this.chat.loadModels();
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) {
        if (await askKey(error.message)) await this.loadModels();
        return;
      }
      this.problem(error.message || t("noServer"));
    }
  }

  #showModels() {
    const { models, model } = this.chat;
    const names = models.map(({ id, state }) => h("option", { value: id, selected: id === model },
      state === "unloaded" ? t("notLoaded", { name: id }) : id));
    this.models.replaceChildren(...(names.length ? names : [h("option", {}, t("noModels"))]));
    this.models.disabled = names.length < 1;
  }

  #theme() {
    applyTheme();
    const theme = preferences.get("theme");
    const [next, name] = { auto: ["light", "themeAuto"], light: ["dark", "themeLight"], dark: ["auto", "themeDark"] }[theme];
    this.themeButton.replaceChildren(iconButton(theme, t("theme", { name: t(name) }), () => {
      preferences.set("theme", next);
      this.#theme();
      this.themeButton.firstChild.focus();
    }, { class: "theme" }));
  }

  #switchLanguage() {
    preferences.set("language", preferences.get("language") === "zh" ? "en" : "zh");
    this.build();
    this.app.querySelector(".language").focus();
  }

  #opened() {
    const { conversation, tree } = this.chat;
    // A conversation has an address, so that reloading and going back show it again.
    const hash = tree.newest() ? `#${conversation.id}` : "";
    if (location.hash !== hash) history.pushState(null, "", hash || location.pathname + location.search);
    this.#showModels();
    this.#title();
  }

  #openHash() {
    const id = location.hash.slice(1);
    if (id !== this.chat.conversation.id) (id ? this.chat.open(id) : this.chat.startNew());
  }

  #title() {
    const { conversation, tree } = this.chat;
    document.title = conversation.title ? `${conversation.title} · ggpy` : "ggpy";
    if (tree.newest() && location.hash.slice(1) !== conversation.id) history.replaceState(null, "", `#${conversation.id}`);
  }

  #chosen() {
    this.#closeDrawer();
    this.composer.focus();
  }

  get #sidebarShown() {
    return !this.app.classList.contains("without-sidebar");
  }

  #showSidebar(shown) {
    this.app.classList.toggle("without-sidebar", !shown);
    this.sidebar.element.inert = !shown;
    this.menu.setAttribute("aria-expanded", String(shown));
  }

  #toggleSidebar() {
    const shown = !this.#sidebarShown;
    this.#showSidebar(shown);
    if (!NARROW.matches) preferences.set("sidebar", shown);
    else if (shown) this.sidebar.search.focus();
  }

  #closeDrawer() {
    if (!NARROW.matches || !this.#sidebarShown) return;
    this.#showSidebar(false);
    this.menu.focus();
  }

  #key(event) {
    if (event.isComposing || event.keyCode === 229 || document.querySelector("dialog[open]")) return;
    const command = event.ctrlKey || event.metaKey;
    const typing = event.target.matches?.("input, textarea, select");
    if (event.key === "Escape") {
      if (NARROW.matches && this.#sidebarShown) this.#closeDrawer();
      else this.chat.stop();
    } else if (command && event.shiftKey && event.key.toLowerCase() === "o") {
      this.sidebar.startNew();
    } else if (command && event.key.toLowerCase() === "k") {
      this.#showSidebar(true);
      this.sidebar.search.focus();
    } else if (!typing && !command && event.key === "/") {
      this.composer.focus();
    } else if (!typing && !command && event.key === "?") {
      showShortcuts();
    } else {
      return;
    }
    event.preventDefault();
  }

  #takeDrops() {
    const hint = h("div", { class: "drop", hidden: true }, t("drop"));
    document.body.append(hint);
    const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
    addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      hint.textContent = t("drop");
      hint.hidden = false;
    });
    addEventListener("dragleave", (event) => { if (!event.relatedTarget) hint.hidden = true; });
    addEventListener("drop", (event) => {
      hint.hidden = true;
      if (!hasFiles(event)) return;
      event.preventDefault();
      this.composer.attach([...event.dataTransfer.files]);
    });
  }
}

async function start() {
  applyTheme();
  const chat = new Chat(await openStore());
  await chat.loadList();
  const id = location.hash.slice(1);
  const page = new Page(chat);
  if (id) await chat.open(id);
  if (!chat.store.kept) page.problem(t("notKept"));
  page.composer.focus();
  await page.loadModels();
  document.documentElement.dataset.ready = "true";
  announce("");
}

start();
