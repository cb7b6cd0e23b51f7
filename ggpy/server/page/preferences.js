// What this browser remembers of the page itself (not of conversations): a few values in localStorage.

const KEY = "ggpy";

/** theme: "auto", "light" or "dark"; language: "en" or "zh"; defaults: the settings of new conversations. */
const INITIAL = { theme: "auto", language: "", apiKey: "", model: "", sidebar: true, defaults: {} };

const chosen = { ...INITIAL, ...read() };
if (!["auto", "light", "dark"].includes(chosen.theme)) chosen.theme = INITIAL.theme;
if (!["en", "zh"].includes(chosen.language)) chosen.language = navigator.languages?.[0]?.toLowerCase().startsWith("zh") ? "zh" : "en";

function read() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) ?? "{}");
    // A value of another type than ours is nobody's, and would break the page at every start.
    return Object.fromEntries(Object.entries(found).filter(([name, value]) => typeof value === typeof INITIAL[name]));
  } catch {
    return {};
  }
}

export const preferences = {
  get: (name) => chosen[name],
  set(name, value) {
    chosen[name] = value;
    try {
      localStorage.setItem(KEY, JSON.stringify(chosen));
    } catch {
      // Private windows of some browsers store nothing: the choice then holds until the page is closed.
    }
  },
};

export function applyTheme() {
  const theme = preferences.get("theme");
  if (theme === "auto") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.dataset.theme = theme;
}
