// A conversation as a tree of messages: each has a parent, an edited or regenerated one is a sibling, and what is shown
// is the path from the root to the conversation's leaf. Data alone: no page, no storage.

/** A message's fields: id, conversation, parent (an id or null), order (a number: siblings by age), role, content, … */
export class Tree {
  constructor(messages = []) {
    this.byId = new Map();
    this.children = new Map();
    for (const message of [...messages].sort((a, b) => a.order - b.order)) this.add(message);
  }

  add(message) {
    if (!this.byId.has(message.id)) this.#siblingsUnder(message.parent).push(message.id);
    this.byId.set(message.id, message);
  }

  get(id) {
    return this.byId.get(id);
  }

  #siblingsUnder(parent) {
    if (!this.children.has(parent)) this.children.set(parent, []);
    return this.children.get(parent);
  }

  /** The ids of a message and its alternatives, by age. */
  siblings(id) {
    return this.#siblingsUnder(this.get(id).parent);
  }

  /** The messages from the first to that one. */
  path(id) {
    const found = [];
    const seen = new Set();
    for (let at = this.get(id); at && !seen.has(at.id); at = this.get(at.parent)) {
      seen.add(at.id);
      found.push(at);
    }
    return found.reverse();
  }

  /** The newest end of what follows a message. */
  leafUnder(id) {
    let at = id;
    for (let below = this.children.get(at); below?.length; below = this.children.get(at)) at = below[below.length - 1];
    return at;
  }

  /** The newest message's id, or null: where a conversation that names no leaf is shown. */
  newest() {
    let found = null;
    for (const message of this.byId.values()) if (!found || message.order >= found.order) found = message;
    return found?.id ?? null;
  }
}
