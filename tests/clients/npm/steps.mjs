// What every client is asked to do, and how it says what came of it: one JSON object on the last line.

import { readFileSync } from "node:fs";

export const { SERVER_URL: url, SERVER_KEY: key, SERVER_MODEL: model, PICTURE: path } = process.env;
export const words = "What is new?";
export const picture = readFileSync(path);
export const dataUri = `data:image/png;base64,${picture.toString("base64")}`;

export function checkText(text) {
  if (typeof text !== "string" || !text) throw new Error(`no text: ${JSON.stringify(text)}`);
}

export function checkPng(base64) {
  if (!Buffer.from(base64, "base64").subarray(1, 4).equals(Buffer.from("PNG"))) throw new Error("no PNG");
}

export async function run(steps) {
  const found = {};
  for (const name of new Set(["text", "history", "stream", "picture in", "draw", "edit", ...Object.keys(steps)])) {
    if (!steps[name]) {
      found[name] = "absent";
      continue;
    }
    try {
      await steps[name]();
      found[name] = "yes";
    } catch (error) {
      console.error(error);
      found[name] = `no: ${error}`.slice(0, 300);
    }
  }
  console.log(JSON.stringify(found));
}
