// The messages of the conversation that is open, in order; the end stays in view while an answer comes, unless the
// reader has scrolled away.

import { announce, h, iconButton } from "./dom.js";
import { MessageView } from "./message_view.js";
import { t } from "./words.js";

const NEAR = 48; // pixels from the end that count as at the end
const SEEN_AT_ONCE = 8; // messages at the end, which are seen when a conversation is opened

export class Transcript {
  constructor(chat) {
    this.chat = chat;
    this.views = []; // of the path, in order
    this.dirty = new Set();
    this.follows = true;
    this.top = 0; // where the reader was last
    this.list = h("div", { class: "messages", role: "log", aria: { live: "off", label: t("thisChat") } });
    this.toEnd = iconButton("down", t("toBottom"), () => this.scrollToEnd(), { class: "to-end", hidden: true });
    this.welcome = h("div", { class: "welcome" }, h("h2", {}, t("welcome")), h("p", {}, t("welcomeHint")));
    this.scroller = h("div", { class: "scroller", tabindex: "-1", onscroll: () => this.#scrolled() }, this.welcome, this.list);
    this.element = h("div", { class: "transcript" }, this.scroller, this.toEnd);
    this.actions = {
      regenerate: (id) => chat.regenerate(id),
      retry: (id) => chat.retry(id),
      edit: (id, text, attachments) => chat.edit(id, text, attachments),
      answerCalls: (id, results) => chat.answerCalls(id, results),
      showVersion: (id, step) => this.#showVersion(id, step),
      isLast: (id) => chat.conversation.leaf === id,
    };
    this.listeners = {
      open: () => this.#opened(),
      path: () => this.#sync(),
      message: ({ detail }) => this.#changed(detail),
      ended: ({ detail }) => this.#ended(detail),
    };
    for (const [name, listener] of Object.entries(this.listeners)) chat.addEventListener(name, listener);
    // Heights are guesses until a message comes near the screen.
    this.sizes = new ResizeObserver(() => { if (this.follows) this.scrollToEnd(); });
    this.sizes.observe(this.list);
    this.sizes.observe(this.scroller);
    this.beforePrint = () => this.views.forEach((view) => view.see());
    addEventListener("beforeprint", this.beforePrint);
    this.#opened();
  }

  /** The page is built again, in another language. */
  dispose() {
    for (const [name, listener] of Object.entries(this.listeners)) this.chat.removeEventListener(name, listener);
    this.sizes.disconnect();
    removeEventListener("beforeprint", this.beforePrint);
  }

  #opened() {
    this.views = [];
    this.list.replaceChildren();
    this.#sync();
    this.scrollToEnd();
  }

  /** Show the path: what it shares with what is shown stays. */
  #sync() {
    const { path, running } = this.chat;
    let same = 0;
    while (same < this.views.length && this.views[same].message === path[same]) same += 1;
    if (path.slice(same).some((message) => running.has(message.id))) this.follows = true; // something was asked
    for (const view of this.views.splice(same)) view.element.remove();
    for (const message of path.slice(same)) this.views.push(new MessageView(message, this.actions));
    for (const view of this.views.slice(-SEEN_AT_ONCE)) view.see();
    for (const view of this.views) this.#update(view);
    this.list.append(...this.views.slice(same).map((view) => view.element));
    this.welcome.hidden = path.length > 0;
    if (this.follows) this.scrollToEnd();
  }

  #update(view) {
    const { id } = view.message;
    view.update(this.chat.tree.siblings(id), this.chat.running.has(id));
  }

  #changed(message) {
    if (!this.dirty.size) requestAnimationFrame(() => this.#paint());
    this.dirty.add(message.id);
  }

  /** Chunks may come faster than the screen shows them. */
  #paint() {
    for (const view of this.views) if (this.dirty.has(view.message.id)) this.#update(view);
    this.dirty.clear();
    if (this.follows) this.scrollToEnd();
    else this.#scrolled();
  }

  #ended(message) {
    if (!this.views.some((view) => view.message === message)) return;
    const words = { done: t("answerDone"), stopped: t("answerStopped") }[message.state] ?? message.error ?? t("noServer");
    // The answer is read to those who listen once it is whole, not piece by piece.
    announce(message.state === "done" && message.content ? `${words} ${message.content.slice(0, 4000)}` : words);
  }

  async #showVersion(id, step) {
    await this.chat.showVersion(id);
    // The button that was pressed is gone with the version that it belonged to.
    const view = this.views.find((found) => found.message.id === id);
    const buttons = [...(view?.element.querySelectorAll(".versions button") ?? [])];
    (buttons.find((button) => button.dataset.step === step && !button.disabled) ?? buttons.find((button) => !button.disabled))?.focus();
  }

  #scrolled() {
    const { scrollTop, clientHeight, scrollHeight } = this.scroller;
    if (scrollTop + clientHeight >= scrollHeight - NEAR) this.follows = true;
    else if (scrollTop < this.top) this.follows = false; // by the reader: what grows or is laid out again moves nothing up
    this.top = scrollTop;
    this.toEnd.hidden = this.follows;
  }

  scrollToEnd() {
    this.follows = true;
    this.toEnd.hidden = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
  }

  /** Edit the last message that was asked. */
  editLast() {
    this.views.findLast((view) => view.message.role === "user")?.edit();
  }
}
