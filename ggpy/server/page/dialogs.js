// Dialogs: a question, the API key, the keyboard. The browser's own <dialog> keeps the focus in, and Escape closes it.

import { h, iconButton } from "./dom.js";
import { preferences } from "./preferences.js";
import { t } from "./words.js";

/** Show a dialog; gives what the button that closed it said, "" for Escape. */
export function showDialog(title, content, properties = {}) {
  const dialog = h("dialog", { ...properties, aria: { label: title } }, h("form", { method: "dialog" },
    h("header", {}, h("h2", {}, title), iconButton("close", t("close"), () => dialog.close(""))), content));
  document.body.append(dialog);
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue);
    });
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(""); // the backdrop
    });
    dialog.showModal();
  });
}

export async function confirmed(words, action) {
  return await showDialog(action, [h("p", {}, words), h("div", { class: "buttons" },
    h("button", { class: "button", value: "", type: "submit", autofocus: true }, t("cancel")),
    h("button", { class: "button danger", value: "yes", type: "submit" }, action))], { class: "small" }) === "yes";
}

/** Ask for the server's key, with what the server said; gives whether one was given. */
export async function askKey(words) {
  const field = h("input", { type: "password", autofocus: true, autocomplete: "off", value: preferences.get("apiKey"), aria: { label: t("keyTitle") } });
  const said = await showDialog(t("keyTitle"), [
    words ? h("p", { class: "note error" }, words) : null,
    h("p", {}, t("keyAsk")), field,
    h("div", { class: "buttons" },
      // No button of the form's: Enter would press the first one.
      h("button", { class: "button", type: "button", onclick: ({ target }) => target.closest("dialog").close("forget") }, t("keyForget")),
      h("button", { class: "button primary", value: "ok", type: "submit" }, t("ok")))], { class: "small key" });
  if (said === "forget") preferences.set("apiKey", "");
  if (said === "ok") preferences.set("apiKey", field.value.trim());
  return said === "ok";
}

const KEYS = [
  ["Enter", "keySend"], ["Shift+Enter", "keyLine"], ["Esc", "keyStop"], ["↑", "keyEditLast"], ["Ctrl+Shift+O", "keyNew"],
  ["Ctrl+K", "keySearch"], ["F2+Delete", "keyRename"], ["/", "keyFocus"], ["?", "keyHelp"],
];

export function showShortcuts() {
  const mac = /Mac|iPhone|iPad/.test(navigator.platform);
  const keys = (text) => text.split("+").map((key) => h("kbd", {}, mac && key === "Ctrl" ? "⌘" : key));
  return showDialog(t("shortcuts"), h("dl", { class: "shortcuts" },
    KEYS.map(([key, words]) => [h("dt", {}, keys(key)), h("dd", {}, t(words))])), { class: "small" });
}
