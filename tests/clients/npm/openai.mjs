// The official client for JavaScript, as its README shows it.

import OpenAI, { toFile } from "openai";
import { checkPng, checkText, dataUri, key, model, picture, run, url, words } from "./steps.mjs";

const client = new OpenAI({ baseURL: url, apiKey: key, maxRetries: 0 });
const asked = { model, max_tokens: 16, temperature: 1, seed: 1 };
const hello = [{ role: "user", content: words }];
const ask = (messages) => client.chat.completions.create({ messages, ...asked });

await run({
  text: async () => checkText((await ask(hello)).choices[0].message.content),
  history: async () => {
    const first = await ask(hello);
    const again = [...hello, first.choices[0].message, { role: "user", content: "And now?" }];
    checkText((await ask(again)).choices[0].message.content);
  },
  stream: async () => {
    let text = "";
    for await (const chunk of await client.chat.completions.create({ messages: hello, stream: true, ...asked })) {
      text += chunk.choices[0]?.delta?.content ?? "";
    }
    checkText(text);
  },
  "picture in": async () => {
    const content = [{ type: "text", text: words }, { type: "image_url", image_url: { url: dataUri } }];
    checkText((await ask([{ role: "user", content }])).choices[0].message.content);
  },
  draw: async () => checkPng((await client.images.generate({ model, prompt: "a cat", size: "1024x1024" })).data[0].b64_json),
  edit: async () => {
    const image = await toFile(picture, "source.png", { type: "image/png" });
    checkPng((await client.images.edit({ model, image: [image], prompt: "redder" })).data[0].b64_json);
  },
  responses: async () => {
    const first = await client.responses.create({ model, input: words, max_output_tokens: 16 });
    checkText(first.output_text);
    const again = { model, input: "And now?", previous_response_id: first.id, max_output_tokens: 16, stream: true };
    let text = "";
    for await (const event of await client.responses.create(again)) {
      if (event.type === "response.output_text.delta") text += event.delta;
    }
    checkText(text);
  },
  completions: async () => {
    const found = await client.completions.create({ model, prompt: "Once", max_tokens: 4, logprobs: 1, echo: true });
    if (found.choices[0].logprobs.token_logprobs[0] !== null) throw new Error("the first token has a log-probability");
  },
});
