// The conversation: it is kept here, and sent as a whole each time.

import { ask, dataUri, events, numbers, runForm } from "./api.js";

const $ = (id) => document.getElementById(id);

export function startChat(model) {
  const [form, text, file, log] = [$("chat-form"), $("chat-text"), $("chat-file"), $("chat-log")];
  const [preview, remove] = [$("chat-preview"), $("chat-remove")];
  const oneTurn = model.uni_x.chat_format === "plain"; // this model knows no conversations: each message stands alone
  const hint = log.firstElementChild;
  let messages = [];

  function showPicture() {
    const chosen = file.files[0];
    URL.revokeObjectURL(preview.src);
    if (chosen) preview.src = URL.createObjectURL(chosen);
    preview.hidden = remove.hidden = !chosen;
  }

  function add(role, content, picture) {
    hint.remove();
    const box = document.createElement("div");
    box.className = `message ${role}`;
    box.setAttribute("aria-label", role === "user" ? "You" : "Model");
    if (picture) {
      const image = document.createElement("img");
      image.src = picture;
      image.alt = "Your picture";
      image.onload = () => log.scrollTo(0, log.scrollHeight);
      box.append(image);
    }
    const words = document.createElement("p");
    words.textContent = content;
    if (content || !picture) box.append(words);
    log.append(box);
    log.scrollTo(0, log.scrollHeight);
    return words;
  }

  file.addEventListener("change", showPicture);
  remove.addEventListener("click", () => {
    file.value = "";
    showPicture();
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  $("chat-new").addEventListener("click", () => {
    form.querySelector(".stop").click();
    messages = [];
    log.replaceChildren(hint);
    form.querySelector(".error").hidden = true;
  });

  runForm(form, async (signal) => {
    const said = text.value.trim();
    const picture = file.files[0] ? await dataUri(file.files[0]) : null;
    if (!said && !picture) return;
    const content = [];
    if (picture) content.push({ type: "image_url", image_url: { url: picture } });
    if (said) content.push({ type: "text", text: said });
    const before = oneTurn ? [] : messages;
    const asked = { role: "user", content };
    const body = { model: model.id, messages: [...before, asked], stream: true, ...numbers(form) };
    const headers = { "Content-Type": "application/json" };
    const response = await ask("/v1/chat/completions", { method: "POST", headers, body: JSON.stringify(body), signal });
    add("user", said, picture);
    text.value = file.value = "";
    showPicture();
    const answer = add("assistant", "");
    answer.parentElement.classList.add("waiting");
    try {
      for await (const event of events(response)) {
        answer.textContent += event.choices[0]?.delta.content ?? "";
        log.scrollTo(0, log.scrollHeight);
      }
    } finally {
      answer.parentElement.classList.remove("waiting");
      const newOne = messages !== before; // "New chat" was pressed meanwhile
      if (!oneTurn && !newOne) messages = [...before, asked, { role: "assistant", content: answer.textContent }];
    }
    if (!answer.textContent) answer.textContent = "(no text)";
  });
}
