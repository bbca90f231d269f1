// The AI SDK with one of its providers: @ai-sdk/openai, whose default are responses, or @ai-sdk/openai-compatible.

import * as ai from "ai";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { checkPng, checkText, key, model, picture, run, url, words } from "./steps.mjs";

const official = process.argv[2] === "openai";
const settings = { name: "here", baseURL: url, apiKey: key };
const provider = official ? createOpenAI(settings) : createOpenAICompatible({ ...settings, includeUsage: true });
const chat = provider(model);
const drawer = official ? provider.image(model) : provider.imageModel(model);
const generateImage = ai.generateImage ?? ai.experimental_generateImage;
const more = { model: chat, maxOutputTokens: 16, maxRetries: 0 };
const hello = [{ role: "user", content: words }];

async function twice(of) {
  const first = await ai.generateText({ ...more, model: of, messages: hello });
  const said = first.responseMessages ?? first.response.messages;
  const again = [...hello, ...said, { role: "user", content: "And now?" }];
  checkText((await ai.generateText({ ...more, model: of, messages: again })).text);
}

await run({
  text: async () => checkText((await ai.generateText({ ...more, system: "Be brief.", prompt: words })).text),
  history: () => twice(chat),
  stream: async () => {
    let text = "";
    for await (const piece of ai.streamText({ ...more, prompt: words }).textStream) text += piece;
    checkText(text);
  },
  "picture in": async () => {
    const content = [{ type: "text", text: words }, { type: "image", image: picture, mediaType: "image/png" }];
    checkText((await ai.generateText({ ...more, messages: [{ role: "user", content }] })).text);
  },
  draw: async () => checkPng((await generateImage({ model: drawer, prompt: "a cat", size: "1024x1024" })).image.base64),
  edit: async () => {
    const prompt = { text: "redder", images: [new Uint8Array(picture)] };
    checkPng((await generateImage({ model: drawer, prompt, maxRetries: 0 })).image.base64);
  },
  ...(official && { responses: () => twice(provider.responses(model)) }),
  ...(official && { chats: () => twice(provider.chat(model)) }),
});
