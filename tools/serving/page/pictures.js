// Pictures that are drawn and edited: shown while they grow.

import { ApiError, ask, events, numbers, runForm } from "./api.js";

const $ = (id) => document.getElementById(id);
const PARTIAL = 7; // half-drawn pictures that are asked for
const SMALL = 128; // pixels of a side below which a picture is shown without blurring

function figure(caption) {
  const box = document.createElement("figure");
  const image = document.createElement("img");
  const words = document.createElement("figcaption");
  image.alt = caption;
  words.textContent = "waiting…";
  box.append(image, words);
  return box;
}

function show(image, picture) {
  image.src = picture;
  image.onload = () => image.classList.toggle("small", image.naturalWidth < SMALL);
}

function button(words, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "quiet";
  made.textContent = words;
  made.addEventListener("click", action);
  return made;
}

function download(uri, name) {
  const link = document.createElement("a");
  [link.href, link.download] = [uri, name];
  link.click();
}

/** Send a request for pictures and show them in `results` as they grow. */
async function follow(request, { form, results, said, count, captionOf, onEdit }) {
  const progress = form.querySelector("progress");
  const boxes = Array.from({ length: count }, (_, number) => figure(captionOf(number)));
  results.replaceChildren();
  said.textContent = "";
  const began = performance.now();
  const response = await ask(...request);
  results.replaceChildren(...boxes);
  let seed = null;
  try {
    for await (const event of events(response)) {
      const [image, words] = boxes[event.index].children;
      const uri = `data:image/png;base64,${event.b64_json}`;
      show(image, uri);
      seed = event.seed;
      if (event.type.endsWith(".completed")) {
        progress.value = 1;
        const name = `uni-x-${seed}-${event.index}.png`;
        words.textContent = "";
        words.append(button("Save", () => download(uri, name)), button("Edit this", () => onEdit(uri, name)));
      } else {
        const share = (event.partial_image_index + 1) / (PARTIAL + 1);
        progress.value = share;
        words.textContent = `${Math.round(100 * share)} %`;
      }
    }
  } catch (error) {
    for (const box of boxes) {
      if (box.lastChild.textContent.match(/waiting|%/)) box.lastChild.textContent = "not finished";
    }
    throw error;
  }
  said.textContent = `Done in ${((performance.now() - began) / 1000).toFixed(1)} s, seed ${seed}.`;
}

export function startDrawing(model, edit) {
  const form = $("draw-form");
  runForm(form, async (signal) => {
    const prompt = form.elements.prompt.value.trim();
    const body = { model: model.id, prompt, stream: true, partial_images: PARTIAL, ...numbers(form) };
    const headers = { "Content-Type": "application/json" };
    await follow(["/v1/images/generations", { method: "POST", headers, body: JSON.stringify(body), signal }], {
      form,
      results: $("draw-results"),
      said: $("draw-said"),
      count: body.n ?? 1,
      captionOf: (number) => `Picture ${number + 1} of “${prompt}”`,
      onEdit: edit,
    });
  });
}

/** Returns the function that makes a picture the source of the next edit. */
export function startEditing(model, open) {
  const [form, file, source] = [$("edit-form"), $("edit-file"), $("edit-source")];
  let chosen = null;

  function choose(blob, name) {
    const image = source.firstElementChild;
    URL.revokeObjectURL(image.src);
    chosen = blob;
    source.hidden = false;
    $("edit-name").textContent = name;
    $("edit-results").replaceChildren();
    $("edit-said").textContent = "";
    show(image, URL.createObjectURL(blob));
  }

  function editThis(uri, name) {
    const bytes = Uint8Array.from(atob(uri.split(",")[1]), (letter) => letter.charCodeAt(0));
    choose(new File([bytes], name, { type: "image/png" }), name);
    open();
  }

  file.addEventListener("change", () => {
    if (file.files[0]) choose(file.files[0], file.files[0].name);
  });

  runForm(form, async (signal) => {
    if (!chosen) throw new ApiError("Choose a picture first.");
    const prompt = form.elements.prompt.value.trim();
    const fields = { model: model.id, prompt, stream: true, partial_images: PARTIAL, ...numbers(form) };
    const body = new FormData();
    body.append("image", chosen);
    for (const [name, value] of Object.entries(fields)) body.append(name, value);
    await follow(["/v1/images/edits", { method: "POST", body, signal }], {
      form,
      results: $("edit-results"),
      said: $("edit-said"),
      count: fields.n ?? 1,
      captionOf: (number) => `Result ${number + 1} of “${prompt}”`,
      onEdit: editThis,
    });
  });
  return editThis;
}
