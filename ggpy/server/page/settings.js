// The settings of the conversation that is open: system prompt, sampling, thinking, tools.

import { askKey, showDialog } from "./dialogs.js";
import { announce, h, icon } from "./dom.js";
import { preferences } from "./preferences.js";
import { PARAMETERS, THINKING, parseTools } from "./request.js";
import { settingsOf } from "./transfer.js";
import { t } from "./words.js";

export function showSettings(chat, { shortcuts }) {
  const body = h("div", { class: "settings" });
  const show = () => body.replaceChildren(...fields(chat, show));
  show();
  return showDialog(t("settings"), [body, h("div", { class: "settings-bar" },
    h("button", { type: "button", class: "plain", onclick: () => askKey("") }, icon("key"), t("keyTitle")),
    h("button", { type: "button", class: "plain", onclick: shortcuts }, icon("help"), t("shortcuts")),
    h("button", { type: "button", class: "plain", onclick: () => print() }, icon("print"), t("print")))], { class: "sheet" });
}

function fields(chat, again) {
  const { settings } = chat.conversation;
  const { defaults } = chat;
  const change = (name) => (event) => chat.changeSettings({ [name]: event.target.value });
  const said = h("p", { class: "note", role: "status" });
  return [
    section("system", h("textarea", { rows: "4", value: settings.system, placeholder: t("systemHint"), oninput: change("system"), id: "system" })),
    h("h3", {}, t("sampling")),
    h("p", { class: "hint" }, t("samplingHint")),
    h("div", { class: "grid" }, PARAMETERS.map((parameter) => numberField(chat, parameter, defaults))),
    section("stopTexts", h("textarea", { rows: "2", value: settings.stop, oninput: change("stop"), id: "stopTexts" })),
    section("thinkingMode", h("select", { id: "thinkingMode", onchange: change("thinking") }, THINKING.map((mode) =>
      h("option", { value: mode, selected: mode === (settings.thinking || "Default") }, t(`thinking${mode}`))))),
    section("tools", toolsField(settings.tools, change("tools"))),
    h("div", { class: "buttons" },
      h("button", { type: "button", class: "button", onclick: () => {
        chat.changeSettings({ ...settingsOf({}), model: settings.model });
        again();
      } }, t("reset")),
      h("button", { type: "button", class: "button", onclick: () => {
        preferences.set("defaults", settingsOf(settings));
        said.textContent = t("asDefaultDone");
      } }, t("asDefault"))),
    said,
  ];
}

function section(name, field) {
  return h("div", { class: "field" }, h("label", { for: name }, t(name)), field);
}

/** A number, empty for the model's default, which is shown in its place. */
function numberField(chat, { name, low, high, step }, defaults) {
  const known = defaults[name];
  const shown = Number.isFinite(known) ? String(Math.round(known * 1e4) / 1e4) : t("modelDefault");
  const field = h("input", { type: "number", id: name, min: low, max: high, step: step < 1 ? "any" : "1", placeholder: shown,
    inputmode: step < 1 ? "decimal" : "numeric", value: chat.conversation.settings.params[name] ?? "", oninput: () => {
      const { params } = chat.conversation.settings;
      const { [name]: old, ...others } = params;
      const value = field.valueAsNumber;
      const fits = field.value === "" ? !field.validity.badInput : field.checkValidity();
      problem.textContent = fits ? "" : t("outOfRange", { name: t(name), low, high });
      if (fits) chat.changeSettings({ params: Number.isFinite(value) ? { ...others, [name]: value } : others });
      else announce(problem.textContent);
    } });
  const problem = h("span", { class: "field-problem" });
  return h("div", { class: "field" }, h("label", { for: name }, t(name)), field, problem);
}

function toolsField(value, change) {
  const problem = h("span", { class: "field-problem" });
  const field = h("textarea", { id: "tools", rows: "4", class: "mono", spellcheck: "false", value,
    placeholder: '[{"type": "function", "function": {"name": "…", "parameters": {…}}}]',
    oninput: (event) => {
      change(event);
      try {
        parseTools(field.value);
        problem.textContent = "";
      } catch (error) {
        problem.textContent = t("badTools", { error: error.message });
      }
    } });
  return [field, problem];
}
