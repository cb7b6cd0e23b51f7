// Conversations kept in this browser (IndexedDB). A message is a record of its own, so that one that grows is cheap to
// store, and two windows do not overwrite each other's.

const NAME = "ggpy";
const VERSION = 1;

function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function open() {
  const request = indexedDB.open(NAME, VERSION);
  request.onupgradeneeded = () => {
    const database = request.result;
    database.createObjectStore("conversations", { keyPath: "id" });
    database.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
  };
  return result(request);
}

/** The store; without IndexedDB (some private windows) one that is lost with the page, `kept` being false. */
export async function openStore() {
  try {
    return new Store(await open());
  } catch {
    return new MemoryStore();
  }
}

class Store {
  kept = true;

  constructor(database) {
    this.database = database;
    database.onversionchange = () => database.close(); // another window has a newer page
  }

  /** Run a transaction over some of the stores; resolves when what it wrote is stored. */
  async #run(names, mode, action) {
    const transaction = this.database.transaction(names, mode);
    const ended = new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = transaction.onerror = () => reject(transaction.error);
    });
    const stores = names.map((name) => transaction.objectStore(name));
    const [value] = await Promise.all([action(...stores), ended]);
    return value;
  }

  conversations() {
    return this.#run(["conversations"], "readonly", (store) => result(store.getAll()));
  }

  messages(conversation) {
    return this.#run(["messages"], "readonly", (store) => result(store.index("conversation").getAll(conversation)));
  }

  /** Store conversations and messages, all or none; before it returns, all of it is on its way, even if the page ends. */
  save(conversations, messages) {
    return this.#run(["conversations", "messages"], "readwrite", (conversationStore, messageStore) => {
      conversations.forEach((conversation) => conversationStore.put(conversation));
      messages.forEach((message) => messageStore.put(message));
      messageStore.transaction.commit();
    });
  }

  remove(conversation) {
    return this.#run(["conversations", "messages"], "readwrite", async (conversationStore, messageStore) => {
      conversationStore.delete(conversation);
      const keys = await result(messageStore.index("conversation").getAllKeys(conversation));
      keys.forEach((key) => messageStore.delete(key));
    });
  }

  /** The ids of conversations that have a message with those words. */
  search(words) {
    return this.#run(["messages"], "readonly", (store) => new Promise((resolve, reject) => {
      const found = new Set();
      const request = store.openCursor();
      request.onerror = () => reject(request.error);
      request.onsuccess = () => {
        const cursor = request.result;
        if (!cursor) return resolve(found);
        if (!found.has(cursor.value.conversation) && has(cursor.value, words)) found.add(cursor.value.conversation);
        return cursor.continue();
      };
    }));
  }
}

class MemoryStore {
  kept = false;
  #conversations = new Map();
  #messages = new Map();

  async conversations() {
    return [...this.#conversations.values()];
  }

  async messages(conversation) {
    return [...this.#messages.values()].filter((message) => message.conversation === conversation);
  }

  async save(conversations, messages) {
    conversations.forEach((conversation) => this.#conversations.set(conversation.id, structuredClone(conversation)));
    messages.forEach((message) => this.#messages.set(message.id, structuredClone(message)));
  }

  async remove(conversation) {
    this.#conversations.delete(conversation);
    for (const message of await this.messages(conversation)) this.#messages.delete(message.id);
  }

  async search(words) {
    return new Set([...this.#messages.values()].filter((message) => has(message, words)).map((found) => found.conversation));
  }
}

function has(message, words) {
  return message.content.toLowerCase().includes(words)
    || (message.attachments ?? []).some((file) => file.name.toLowerCase().includes(words));
}
