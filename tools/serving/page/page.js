// The page: which model this is, and its three tabs.

import { ask } from "./api.js";
import { startChat } from "./chat.js";
import { startDrawing, startEditing } from "./pictures.js";

const tabs = [...document.querySelectorAll("[role=tab]")];

function open(tab) {
  for (const other of tabs) {
    other.setAttribute("aria-selected", other === tab);
    other.tabIndex = other === tab ? 0 : -1;
    document.getElementById(other.getAttribute("aria-controls")).hidden = other !== tab;
  }
}

for (const [place, tab] of tabs.entries()) {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(place + step + tabs.length) % tabs.length];
    open(next);
    next.focus();
  });
}

async function start() {
  const [model] = (await (await ask("/v1/models")).json()).data;
  const own = model.uni_x;
  document.getElementById("model").textContent = `${model.id}, pictures of ${own.size.replace("x", " × ")} pixels`;
  for (const form of document.forms) {
    for (const input of form.querySelectorAll("input[type=number]")) {
      if (input.name === "n") input.max = own.max_images;
      if (input.name === "max_tokens") [input.max, input.value] = [own.max_tokens, Math.min(64, own.max_tokens)];
      if (form.id !== "chat-form" && input.name in own) input.value = own[input.name];
    }
  }
  startChat(model);
  const edit = startEditing(model, () => open(document.getElementById("tab-edit")));
  startDrawing(model, edit);
}

start().catch((error) => {
  document.getElementById("model").textContent = error.message;
});
