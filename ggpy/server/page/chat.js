// The conversation that is open, and the answers that are being generated, in it or in others. Events: "list" (the list
// of conversations), "open" (another conversation), "path" (which messages are shown), "message" (detail: one that
// changed), "settings", "problem" (detail: a sentence).

import { ApiError, chat as askServer, listModels } from "./api.js";
import { newId } from "./dom.js";
import { preferences } from "./preferences.js";
import { AnswerReader, requestBody } from "./request.js";
import { settingsOf } from "./transfer.js";
import { Tree } from "./tree.js";
import { t } from "./words.js";

const TITLE = 60; // characters
const STORE_EVERY = 1000; // milliseconds, while an answer comes

export class Chat extends EventTarget {
  constructor(store) {
    super();
    this.store = store;
    this.models = []; // {id, state, context, sampling}
    this.running = new Map(); // message id → {message, conversation, controller}
    this.list = [];
    this.#show(this.#blank(), new Tree());
    if ("BroadcastChannel" in globalThis) {
      this.channel = new BroadcastChannel("ggpy");
      this.channel.onmessage = ({ data }) => this.#changedElsewhere(data);
    }
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  #show(conversation, tree) {
    this.conversation = conversation;
    this.tree = tree;
    this.#emit("open");
  }

  #blank() {
    const settings = settingsOf(preferences.get("defaults"));
    settings.model = preferences.get("model");
    const now = Date.now();
    return { id: newId(), title: "", created: now, updated: now, leaf: null, settings };
  }

  /** The messages shown, from the first to the last. */
  get path() {
    return this.tree.path(this.conversation.leaf);
  }

  /** The answer that is being generated in what is shown, or undefined. */
  get answering() {
    return this.path.map((message) => this.running.get(message.id)).find(Boolean);
  }

  /** The model that answers next: the conversation's, if the server has it, otherwise the server's first. */
  get model() {
    const wanted = this.conversation.settings.model;
    return this.models.some((model) => model.id === wanted) ? wanted : (this.models[0]?.id ?? wanted);
  }

  /** Whether an answer is being generated in a conversation, shown or not. */
  isBusy(id) {
    return [...this.running.values()].some((run) => run.message.conversation === id);
  }

  #contextOf(model) {
    return this.models.find((found) => found.id === model)?.context ?? null;
  }

  /** What the model that answers next samples with where the settings leave it to the model; empty until it is loaded. */
  get defaults() {
    return this.models.find((found) => found.id === this.model)?.sampling ?? {};
  }

  async loadModels() {
    this.models = await listModels();
    this.#emit("settings");
  }

  async loadList() {
    const known = new Map([...this.list, this.conversation].map((conversation) => [conversation.id, conversation]));
    this.list = (await this.store.conversations()).map((found) => {
      const own = known.get(found.id);
      return !own || this.isBusy(found.id) ? (own ?? found) : Object.assign(own, found);
    });
    this.list.sort((a, b) => b.updated - a.updated);
    this.#emit("list");
  }

  startNew() {
    this.#show(this.#blank(), new Tree());
  }

  async open(id) {
    const conversation = this.list.find((found) => found.id === id);
    if (!conversation) return this.startNew();
    const messages = await this.store.messages(id);
    const running = [...this.running.values()].filter((run) => run.message.conversation === id);
    // What is being generated is newer here than what is stored.
    const tree = new Tree(messages.map((message) => this.running.get(message.id)?.message ?? message));
    for (const { message } of running) if (!tree.get(message.id)) tree.add(message);
    if (!tree.get(conversation.leaf)) conversation.leaf = tree.newest();
    conversation.settings = settingsOf(conversation.settings);
    return this.#show(conversation, tree);
  }

  /** passing: other windows need not look at it yet. */
  async #store(conversation, messages, passing = false) {
    // A message of a conversation that is deleted while it is answered comes too late.
    if (conversation.deleted) return;
    try {
      await this.store.save([conversation], messages);
      if (!passing) this.channel?.postMessage(conversation.id);
    } catch (error) {
      this.#emit("problem", t("storeFailed", { error: error?.message ?? error }));
    }
  }

  async #changedElsewhere(id) {
    await this.loadList();
    if (id === this.conversation.id && !this.isBusy(id)) await this.open(id);
  }

  #add(fields) {
    const newest = this.tree.get(this.tree.newest());
    const message = { id: newId(), conversation: this.conversation.id, order: (newest?.order ?? 0) + 1, content: "",
      created: Date.now(), ...fields };
    this.tree.add(message);
    this.conversation.leaf = message.id;
    this.conversation.updated = Date.now();
    if (!this.list.includes(this.conversation)) this.list.unshift(this.conversation);
    this.list.sort((a, b) => b.updated - a.updated);
    return message;
  }

  /** Ask something after what is shown, or, `parent` being given, after that message. */
  async send(content, attachments = [], parent = this.conversation.leaf) {
    const message = this.#add({ parent, role: "user", content, ...(attachments.length ? { attachments } : {}) });
    if (!this.conversation.title) {
      const title = (content.trim() || attachments[0]?.name || "").replace(/\s+/g, " ");
      this.conversation.title = title.length > TITLE ? `${title.slice(0, TITLE).trimEnd()}…` : title;
    }
    await this.#answer(message.id, [message]);
  }

  /** Ask again with another text: a sibling of a user's message. Of an answer: a sibling that says so, unasked. */
  async edit(id, content, attachments = []) {
    const message = this.tree.get(id);
    if (message.role === "user") return this.send(content, attachments, message.parent);
    const { reasoning, toolCalls, model, toolCallId, role } = message;
    const edited = this.#add({ parent: message.parent, role, content,
      ...Object.fromEntries(Object.entries({ reasoning, toolCalls, model, toolCallId }).filter(([, value]) => value !== undefined)) });
    this.#emit("path");
    return this.#store(this.conversation, [edited]);
  }

  /** Another answer to what this one answers. */
  regenerate(id) {
    return this.#answer(this.tree.get(id).parent, []);
  }

  /** An answer that failed is asked for again; what it has of a text stays, as another version. */
  retry(id) {
    const message = this.tree.get(id);
    if (message.content || message.reasoning || message.toolCalls) return this.regenerate(id);
    delete message.error;
    return this.#answer(message.parent, [], message);
  }

  /** Go on after the results of a message's tool calls. results: texts, one a call. */
  async answerCalls(id, results) {
    const made = [];
    for (const [i, call] of this.tree.get(id).toolCalls.entries()) {
      made.push(this.#add({ parent: made.at(-1)?.id ?? id, role: "tool", toolCallId: call.id, content: results[i] }));
    }
    await this.#answer(made.at(-1).id, made);
  }

  /** Show another version of a message, with what followed it last. */
  async showVersion(id) {
    this.conversation.leaf = this.tree.leafUnder(id);
    this.#emit("path");
    await this.#store(this.conversation, []);
  }

  stop() {
    this.answering?.controller.abort();
  }

  async #answer(parent, unsaved, message = this.#add({ parent, role: "assistant" })) {
    const { conversation, tree, model } = this;
    const path = tree.path(parent);
    Object.assign(message, { model, state: "running" });
    const controller = new AbortController();
    this.running.set(message.id, { message, controller });
    this.#emit("path");
    this.#emit("list");
    await this.#store(conversation, [...unsaved, message]);
    let stored = performance.now();
    try {
      const reader = new AnswerReader(message);
      for await (const chunk of askServer(requestBody(conversation.settings, model, path), controller.signal)) {
        reader.read(chunk);
        this.#emit("message", message);
        if (performance.now() - stored > STORE_EVERY) {
          stored = performance.now();
          this.#store(conversation, [message], true);
        }
      }
      if (!this.#contextOf(model)) await this.loadModels().catch(() => {}); // this answer has loaded it
      const context = this.#contextOf(model);
      if (context && message.stats) message.stats.context = context;
      message.state = "done";
    } catch (error) {
      if (!this.leaving) Object.assign(message, failed(error));
      if (error.status === 401) this.#emit("key", { words: error.message, then: () => this.retry(message.id) });
    }
    this.running.delete(message.id);
    conversation.updated = Date.now();
    this.#emit("message", message);
    this.#emit("ended", message);
    this.#emit("list");
    await this.#store(conversation, [message]);
  }

  /** The page is going away, and its requests with it: what has come of answers is stored, as cut off. */
  leave() {
    this.leaving = true;
    for (const { message } of this.running.values()) {
      const conversation = this.list.find((found) => found.id === message.conversation);
      if (conversation) this.#store(conversation, [message], true);
    }
  }

  changeSettings(changes) {
    Object.assign(this.conversation.settings, changes);
    this.#emit("settings");
    if (this.tree.newest()) this.#store(this.conversation, []);
  }

  chooseModel(id) {
    preferences.set("model", id);
    this.changeSettings({ model: id });
  }

  async rename(id, title) {
    const conversation = this.list.find((found) => found.id === id);
    conversation.title = title.trim().slice(0, 200) || conversation.title;
    this.#emit("list");
    await this.#store(conversation, []);
  }

  async remove(id) {
    const gone = this.list.find((found) => found.id === id);
    if (gone) gone.deleted = true;
    for (const run of this.running.values()) if (run.message.conversation === id) run.controller.abort();
    this.list = this.list.filter((conversation) => conversation.id !== id);
    await this.store.remove(id);
    this.channel?.postMessage(id);
    this.#emit("list");
    if (this.conversation.id === id) this.startNew();
  }

  /** Take in what a file held. */
  async take(chats) {
    await this.store.save(chats.map((chat) => chat.conversation), chats.flatMap((chat) => chat.messages));
    await this.loadList();
  }

  /** Conversations with their messages, for a file: one, or all. */
  collect(id = null) {
    const wanted = this.list.filter((conversation) => id === null || conversation.id === id);
    return Promise.all(wanted.map(async (conversation) => ({ conversation, messages: await this.store.messages(conversation.id) })));
  }
}

/** How a message ends that was not answered to its end. */
function failed(error) {
  if (error.name === "AbortError") return { state: "stopped" };
  if (error instanceof ApiError) return { state: "failed", error: error.message, status: error.status };
  if (error instanceof SyntaxError) return { state: "failed", error: t("badTools", { error: error.message }), status: 400 };
  return { state: "failed", error: String(error?.message ?? error), status: -1 };
}
