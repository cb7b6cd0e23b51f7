// Files to texts. UTF-8, UTF-16 with its mark, and GB18030, in which much Chinese text still is; anything else is no text.

import { t } from "./words.js";

const LIMIT = 2 * 1024 * 1024; // bytes; more than any context holds

/** {read: [{name, text}], problems: sentences} */
export async function readFiles(files) {
  const read = [];
  const problems = [];
  for (const file of files) {
    if (file.size > LIMIT) {
      problems.push(t("tooLarge", { name: file.name, limit: "2 MB" }));
      continue;
    }
    let text = null;
    try {
      text = decode(new Uint8Array(await file.arrayBuffer()));
    } catch {
      // a folder, or a file that is gone
    }
    if (text === null) problems.push(t("notText", { name: file.name }));
    else read.push({ name: file.name, text });
  }
  return { read, problems };
}

function decode(bytes) {
  if (bytes[0] === 0xff && bytes[1] === 0xfe) return new TextDecoder("utf-16le").decode(bytes);
  if (bytes[0] === 0xfe && bytes[1] === 0xff) return new TextDecoder("utf-16be").decode(bytes);
  if (bytes.includes(0)) return null;
  for (const encoding of ["utf-8", "gb18030"]) {
    try {
      return new TextDecoder(encoding, { fatal: true }).decode(bytes);
    } catch {
      // the next one
    }
  }
  return null;
}
