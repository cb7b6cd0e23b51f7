// Building blocks of the page's elements. Text only ever becomes text nodes: nothing here parses HTML, and the
// server's policy (Trusted Types) would stop a browser from doing so.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element. Properties: `class`, `on…` listeners, `data` and `aria` objects; others are attributes. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "aria") for (const [key, word] of Object.entries(value)) element.setAttribute(`aria-${key}`, word);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

// Strokes on a grid of 24.
const ICONS = {
  menu: "M4 7h16M4 12h16M4 17h10",
  plus: "M12 5v14M5 12h14",
  settings: "M4 8h9M19 8h1M4 16h1M11 16h9M16 5.5v5M8 13.5v5",
  send: "M12 19V5M5.5 11.5 12 5l6.5 6.5",
  stop: "M7.5 7.5h9v9h-9z",
  copy: "M9 9h10v11H9zM15 9V4H5v11h4",
  check: "M5 12.5 10 17.5 19.5 7",
  edit: "M5 19h3.5L19 8.5 15.5 5 5 15.5zM13 7.5 16.5 11",
  redo: "M19 12a7 7 0 1 1-2.2-5.1M19.5 3.5v4.2h-4.2",
  trash: "M5 7h14M10 7V4.5h4V7M7 7l.8 12.5h8.4L17 7M10.2 11v5M13.8 11v5",
  left: "M14.5 6 8.5 12l6 6",
  right: "M9.5 6l6 6-6 6",
  down: "M12 5v14M5.5 12.5 12 19l6.5-6.5",
  attach: "M18.5 11.5 12 18a4 4 0 0 1-5.7-5.7l7.3-7.3a2.7 2.7 0 0 1 3.8 3.8l-7.2 7.2a1.3 1.3 0 0 1-1.9-1.9l6.5-6.5",
  file: "M7 4h7l4 4v12H7zM14 4v4h4",
  close: "M6.5 6.5l11 11M17.5 6.5l-11 11",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 3v2M12 19v2M3 12h2M19 12h2M5.6 5.6 7 7M17 17l1.4 1.4M5.6 18.4 7 17M17 7l1.4-1.4",
  dark: "M19 14.5A7.5 7.5 0 0 1 9.5 5a7.5 7.5 0 1 0 9.5 9.5z",
  auto: "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16M12 4v16M12 8h5.8M12 12h8M12 16h6",
  search: "M10.5 5a5.5 5.5 0 1 0 0 11 5.5 5.5 0 0 0 0-11M14.6 14.6 20 20",
  tool: "M14.5 6.5a4 4 0 0 1 5-1.5l-2.5 2.5 1.5 1.5L21 6.5a4 4 0 0 1-5.5 5L8 19a2 2 0 0 1-3-3l7.5-7.5a4 4 0 0 1 2-2",
  thought: "M12 5a5.5 5.5 0 0 0-3.3 9.9c.8.6 1.3 1.3 1.3 2.1h4c0-.8.5-1.5 1.3-2.1A5.5 5.5 0 0 0 12 5M10.3 20h3.4",
  language: "M4 6.5h9M8.5 4v2.5M11.5 6.5c-.8 3.5-3.3 6.3-7 8M6 9.5c1 2 3 4 5.5 5M13 20l4-9.5L21 20M14.5 16.7h5",
  export: "M12 15V4M7.5 8.5 12 4l4.5 4.5M5 14v5.5h14V14",
  import: "M12 4v11M7.5 10.5 12 15l4.5-4.5M5 14v5.5h14V14",
  key: "M8 11a4 4 0 1 0 0 8 4 4 0 0 0 0-8M11 12.2 19 4.5M16 7.3l2.7 2.7",
  help: "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16M9.8 10a2.2 2.2 0 1 1 3.3 1.9c-.7.4-1.1.8-1.1 1.5M12 16.2v.1",
  print: "M7.5 9V4h9v5M7.5 17H4.5V9h15v8h-3M7.5 14h9v6h-9z",
};

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" })) {
    svg.setAttribute(key, value);
  }
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button that shows an icon alone; its words are its name and its tip. */
export function iconButton(name, words, onclick, properties = {}) {
  return h("button", { type: "button", ...properties, class: `icon-button ${properties.class ?? ""}`.trim(),
    title: words, aria: { label: words, ...properties.aria }, onclick }, icon(name));
}

/** Say something to those who listen to the page instead of looking at it. */
export function announce(words) {
  const region = document.getElementById("announcer");
  region.textContent = "";
  // A region is read when it changes: the same words twice are two changes.
  requestAnimationFrame(() => { region.textContent = words; });
}

export function debounce(milliseconds, action) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...given), milliseconds);
  };
}

/** Copy a text; `navigator.clipboard` is there on loopback and https alone. */
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = h("textarea", { class: "offscreen", value: text });
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  if (!copied) throw new Error("the browser does not let this page copy");
}

/** A button that copies what `text()` gives, and shows for a moment that it has. */
export function copyButton(words, done, text) {
  const button = iconButton("copy", words, async () => {
    try {
      await copyText(text());
    } catch {
      return;
    }
    button.replaceChildren(icon("check"));
    announce(done);
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}

/** Let the browser save a text as a file. */
export function saveFile(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** A random id; `crypto.randomUUID` is there on loopback and https alone. */
export function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
