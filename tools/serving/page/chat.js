// The conversation: it is kept in this browser, and sent as a whole each time.

import { ApiError, askJson, events } from "./api.js";
import { dataUri, readable, takeFiles, zoomable } from "./files.js";
import { button, examples, flash, numbers, runForm } from "./forms.js";
import { forget, keep, kept } from "./store.js";

const $ = (id) => document.getElementById(id);
const EXAMPLES = {
  chat: ["What can you do?", "Write a short story about a fox.", "Name three fruits."],
  text: ["Once upon a time", "The sun is"],
  caption: [], // it has learned no texts but captions
};

export async function startChat(model, name) {
  const [form, text, file, log] = [$("chat-form"), $("chat-text"), $("chat-file"), $("chat-log")];
  const [preview, remove, empty, system] = [$("chat-preview"), $("chat-remove"), $("chat-empty"), $("chat-system")];
  const [talks, describes] = ["chat", "caption"].map((skill) => model.uni_x.skills.includes(skill));
  let [messages, picture, generation] = [[], null, 0]; // generation: how often "New chat" was pressed

  $("chat-hint").textContent = talks
    ? "Ask about a picture, or just write."
    : !describes ? "This model learned texts alone: a message is the beginning of a text that it goes on with."
    : "This model learned captions, not conversations. Add a picture, and it says what the picture shows; a message "
      + "without one is the beginning of a text that it goes on with.";
  text.placeholder = talks ? "What is in this picture?" : !describes ? "Begin a text" : "Add a picture, or begin a text";
  examples($("chat-examples"), EXAMPLES[talks ? "chat" : describes ? "caption" : "text"], (words) => {
    text.value = words;
    text.focus();
  });

  function setPicture(uri) {
    picture = uri;
    preview.hidden = remove.hidden = !uri;
    if (uri) preview.src = uri;
    else preview.removeAttribute("src");
  }

  function toEnd() {
    log.scrollTo(0, log.scrollHeight);
  }

  function add(role, content, uri) {
    empty.hidden = true;
    const box = document.createElement("div");
    box.className = `message ${role}`;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", role === "user" ? "You" : "Model");
    if (uri) {
      const image = document.createElement("img");
      [image.src, image.alt, image.onload] = [uri, "Your picture", toEnd];
      box.append(zoomable(image));
    }
    const words = document.createElement("p");
    words.textContent = content;
    if (content || !uri) box.append(words);
    if (role === "assistant") {
      const copy = button("Copy", async () => {
        await navigator.clipboard.writeText(words.textContent);
        flash(copy, "Copied");
      }, "Copy this answer");
      box.append(copy);
    }
    log.append(box);
    toEnd();
    return words;
  }

  function clear() {
    for (const box of log.querySelectorAll(".message, .left-out")) box.remove();
    empty.hidden = false;
  }

  /** Show a conversation of messages as the API has them. */
  function render() {
    for (const message of messages) {
      const parts = typeof message.content === "string" ? [{ type: "text", text: message.content }] : message.content;
      const said = parts.filter((part) => part.type === "text").map((part) => part.text).join("");
      const uri = parts.find((part) => part.type === "image_url")?.image_url.url;
      add(message.role, said || (message.role === "assistant" ? "(The model ended at once.)" : ""), uri);
    }
  }

  const running = runForm(form, async (signal, note) => {
    const [said, uri, mine] = [text.value.trim(), picture, generation];
    if (!said && !uri) throw new ApiError("Write something, or add a picture.");
    const content = [];
    if (uri) content.push({ type: "image_url", image_url: { url: uri } });
    if (said) content.push({ type: "text", text: said });
    const asked = { role: "user", content };
    const instructions = system.value.trim() ? [{ role: "system", content: system.value.trim() }] : [];
    let [before, left] = [messages, 0];
    const send = () => {
      const body = { model: name, messages: [...instructions, ...before, asked], stream: true, ...numbers(form) };
      return askJson("/v1/chat/completions", body, signal);
    };
    let response;
    for (;;) {
      try {
        response = await send();
        break;
      } catch (error) {
        if (error.code !== "context_length_exceeded" || !before.length) throw error;
        before = before.slice(2); // the oldest question and its answer
        left += 2;
      }
    }
    if (left) note(`The first ${left} messages no longer fit into what the model can read: they were left out.`);
    add("user", said, uri);
    text.value = "";
    setPicture(null);
    const answer = add("assistant", "");
    answer.parentElement.classList.add("waiting");
    let words = "";
    try {
      for await (const event of events(response)) {
        words += event.choices[0]?.delta.content ?? "";
        answer.textContent = words;
        toEnd();
      }
    } finally {
      answer.parentElement.classList.remove("waiting");
      if (!words) answer.textContent = "(The model ended at once.)";
      if (mine === generation) {
        messages = [...before, asked, { role: "assistant", content: words }];
        await keep("chats", { messages, system: system.value }, name);
      }
    }
  });

  takeFiles(file, $("chat"), async (chosen) => {
    try {
      setPicture(await dataUri(await readable(chosen, model.uni_x.max_pixels)));
      running.tell("");
      text.focus();
    } catch (error) {
      running.tell(error.message);
    }
  });
  remove.addEventListener("click", () => {
    setPicture(null);
    text.focus();
  });
  $("chat-new").addEventListener("click", async () => {
    generation += 1;
    running.stop();
    messages = [];
    clear();
    running.tell("");
    text.focus();
    await forget("chats", name);
  });

  const before = await kept("chats", name);
  if (before) {
    messages = before.messages;
    system.value = before.system ?? "";
    render();
  }
}
