// The page: which model this is, what it can do, and the tabs for that.

import { ask } from "./api.js";
import { startChat } from "./chat.js";
import { startPictures } from "./pictures.js";

const $ = (id) => document.getElementById(id);
const all = [...document.querySelectorAll("[role=tab]")];
const ABLE = { draw: "draw pictures", edit: "edit pictures", caption: "describe pictures", chat: "hold a conversation" };

function open(tab) {
  for (const other of all) {
    other.setAttribute("aria-selected", other === tab);
    other.tabIndex = other === tab ? 0 : -1;
    $(other.getAttribute("aria-controls")).hidden = other !== tab;
  }
}

for (const tab of all) {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", (event) => {
    const tabs = all.filter((other) => !other.hidden);
    const place = tabs.indexOf(tab);
    const next = {
      ArrowRight: tabs[(place + 1) % tabs.length],
      ArrowLeft: tabs[(place - 1 + tabs.length) % tabs.length],
      Home: tabs[0],
      End: tabs[tabs.length - 1],
    }[event.key];
    if (!next) return;
    event.preventDefault();
    open(next);
    next.focus();
  });
}

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest(".close")) dialog.close();
  });
}

function listed(words, last) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} ${last} ${words[words.length - 1]}`;
}

/** What the model can do and what not, in words, and only the tabs for that. */
function describe(model) {
  const own = model.uni_x;
  $("model").textContent = `${model.id}, pictures of ${own.size.replace("x", " × ")} pixels${
    own.sizes.length > 1 ? ` and ${own.sizes.length - 1} other shapes` : ""}`;
  const [can, cannot] = [true, false].map((able) =>
    Object.keys(ABLE).filter((skill) => own.skills.includes(skill) === able).map((skill) => ABLE[skill]));
  $("skills").textContent = `This model learned ${can.length ? `to ${listed(can, "and")}` : "to go on with texts"}${cannot.length ? `; not to ${listed(cannot, "or")}` : ""}.`;
  $("tab-draw").hidden = !own.skills.includes("draw");
  $("tab-edit").hidden = !own.skills.includes("edit");
  const asked = ["chat", "caption"].find((skill) => own.skills.includes(skill));
  $("tab-chat").hidden = !asked && can.length > 0;
  $("tab-chat").textContent = { chat: "Chat", caption: "Describe" }[asked] ?? "Write";
  for (const form of document.forms) {
    for (const input of form.querySelectorAll("input[type=number]")) {
      if (input.name === "n") [input.max, input.value] = [own.max_images, Math.min(input.value, own.max_images)];
      if (input.name === "max_tokens") [input.max, input.value] = [own.max_tokens, Math.min(64, own.max_tokens)];
      if (form.id !== "chat-form" && input.name in own) input.value = own[input.name];
    }
  }
  if ($("tab-chat").hidden) open(all.find((tab) => !tab.hidden));
}

/** Ask for the key of the server until it is right. */
async function models() {
  for (;;) {
    try {
      return (await (await ask("/v1/models")).json()).data;
    } catch (error) {
      if (error.status !== 401) throw error;
      const dialog = $("key");
      $("key-wrong").hidden = !sessionStorage.getItem("key");
      dialog.showModal();
      await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
      sessionStorage.setItem("key", $("key-text").value.trim());
    }
  }
}

async function start() {
  const [model] = await models();
  describe(model);
  await Promise.all([startChat(model, model.id), startPictures(model, model.id, open)]);
  document.body.classList.add("ready");
}

start().catch((error) => {
  $("model").textContent = error.message;
});
