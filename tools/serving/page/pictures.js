// Pictures that are drawn and edited: shown while they grow, and kept in a gallery.

import { ApiError, ask, askJson, events } from "./api.js";
import { copyPicture, dataUri, download, fileOf, readable, show, takeFiles, zoomable } from "./files.js";
import { button, chosenSize, examples, flash, numbers, offerSizes, runForm, setNumbers } from "./forms.js";
import { allKept, forget, keep } from "./store.js";

const $ = (id) => document.getElementById(id);
const PARTIAL = 7; // half-drawn pictures that are asked for

function figure(caption) {
  const [box, image, words] = ["figure", "img", "figcaption"].map((name) => document.createElement(name));
  image.alt = caption;
  words.textContent = "waiting…";
  box.append(zoomable(image), words);
  return { box, image, words };
}

const nameOf = (item) => `uni-x-${item.seed}-${item.index}.png`;

function saveAndCopy(item) {
  const copy = button("Copy", async () => {
    await copyPicture(item.uri);
    flash(copy, "Copied");
  }, `Copy the picture of “${item.prompt}”`);
  return [button("Save", () => download(item.uri, nameOf(item)), `Save the picture of “${item.prompt}”`), copy];
}

/** Send a request for pictures and show them in `results` as they grow -> what was made. */
async function follow(response, { form, results, said, count, captionOf, finished }) {
  const progress = form.querySelector("progress");
  const figures = Array.from({ length: count }, (_, number) => figure(captionOf(number)));
  const began = performance.now();
  results.replaceChildren(...figures.map(({ box }) => box));
  let seed = null;
  try {
    for await (const event of events(response)) {
      const { image, words } = figures[event.index];
      const uri = `data:image/png;base64,${event.b64_json}`;
      show(image, uri);
      seed = event.seed;
      if (event.type.endsWith(".completed")) {
        progress.value = 1;
        words.textContent = "";
        words.append(...finished({ uri, seed, index: event.index }));
      } else {
        const share = (event.partial_image_index + 1) / (PARTIAL + 1);
        progress.value = share;
        words.textContent = `${Math.round(100 * share)} %`;
      }
    }
  } catch (error) {
    for (const { words } of figures) {
      if (words.textContent.match(/waiting|%/)) words.textContent = "not finished";
    }
    throw error;
  }
  said.textContent = `Done in ${((performance.now() - began) / 1000).toFixed(1)} s, seed ${seed}.`;
}

/** The three of them: drawing, editing and the gallery. `open` shows a tab. */
export async function startPictures(model, name, open) {
  const gallery = await startGallery(again);
  const canEdit = model.uni_x.skills.includes("edit");
  const editing = startEditing();
  const drawing = startDrawing();

  function actions(item) {
    return [...saveAndCopy(item), ...(canEdit ? [button("Edit this", () => editing.edit(item.uri, nameOf(item)))] : [])];
  }

  /** The form of an item of the gallery, filled with its settings; it is sent at once. */
  function again(item, seed) {
    const form = $(`${item.task}-form`);
    form.elements.prompt.value = item.prompt;
    setNumbers(form, { ...item.settings, seed });
    if (item.task === "edit") editing.choose(fileOf(item.source, "source.png"), "the source of before");
    open($(`tab-${item.task}`));
    form.requestSubmit();
  }

  function common(form, task, prompt, settings, source) {
    const [results, said] = [$(`${task}-results`), $(`${task}-said`)];
    results.replaceChildren();
    said.textContent = "";
    const kind = task === "draw" ? "Picture" : "Result";
    return {
      form,
      results,
      said,
      count: settings.n ?? 1,
      captionOf: (number) => `${kind} ${number + 1} of “${prompt}”`,
      finished: (made) => {
        const item = { ...made, task, prompt, settings, source, time: Date.now() };
        gallery.add(item);
        return actions(item);
      },
    };
  }

  function startDrawing() {
    const form = $("draw-form");
    offerSizes(form, model.uni_x.sizes);
    const known = model.uni_x.examples.length ? model.uni_x.examples : ["red heart", "pizza", "sun behind a cloud"];
    form.elements.prompt.placeholder = known[0];
    examples($("draw-examples"), known, (words) => {
      form.elements.prompt.value = words;
      form.elements.prompt.focus();
    });
    runForm(form, async (signal) => {
      const [prompt, settings] = [form.elements.prompt.value.trim(), { ...numbers(form), ...chosenSize(form) }];
      if (!prompt) throw new ApiError("Describe the picture first.");
      const body = { model: name, prompt, stream: true, partial_images: PARTIAL, ...settings };
      const how = common(form, "draw", prompt, settings);
      await follow(await askJson("/v1/images/generations", body, signal), how);
    });
  }

  function startEditing() {
    const [form, source] = [$("edit-form"), $("edit-source")];
    offerSizes(form, model.uni_x.sizes);
    let chosen = null;
    const running = runForm(form, async (signal) => {
      if (!chosen) throw new ApiError("Choose a picture first.");
      const [prompt, settings] = [form.elements.prompt.value.trim(), { ...numbers(form), ...chosenSize(form) }];
      if (!prompt) throw new ApiError("Say first what is to change.");
      const body = new FormData();
      body.append("image", chosen);
      const fields = { model: name, prompt, stream: true, partial_images: PARTIAL, ...settings };
      for (const [key, value] of Object.entries(fields)) body.append(key, value);
      const how = common(form, "edit", prompt, settings, await dataUri(chosen));
      await follow(await ask("/v1/images/edits", { method: "POST", body, signal }), how);
    });

    function choose(file, name) {
      const image = source.querySelector("img");
      URL.revokeObjectURL(image.src);
      chosen = file;
      source.hidden = false;
      $("edit-name").textContent = name;
      $("edit-results").replaceChildren();
      $("edit-said").textContent = "";
      running.tell("");
      show(image, URL.createObjectURL(file));
    }

    const image = source.querySelector("img");
    source.prepend(zoomable(image));
    examples($("edit-examples"), ["make it blue", "turn it upside down"], (words) => {
      form.elements.prompt.value = words;
      form.elements.prompt.focus();
    });
    takeFiles($("edit-file"), $("edit"), async (file) => {
      try {
        choose(await readable(file, model.uni_x.max_pixels), file.name);
      } catch (error) {
        running.tell(error.message);
      }
    });
    return {
      choose,
      edit(uri, name) {
        choose(fileOf(uri, name), name);
        open($("tab-edit"));
        form.elements.prompt.focus();
      },
    };
  }

  gallery.actions = actions;
  gallery.render();
  return drawing;
}

/** The pictures of before, newest first. */
async function startGallery(again) {
  const [box, empty] = [$("gallery-results"), $("gallery-empty")];
  let items = (await allKept("pictures")).reverse();
  const gallery = {
    actions: saveAndCopy,
    async add(item) {
      const id = await keep("pictures", item);
      items = [{ ...item, id }, ...items];
      gallery.render();
    },
    render() {
      empty.hidden = items.length > 0;
      box.replaceChildren(...items.map(shown));
    },
  };

  function shown(item) {
    const { box, image, words } = figure(`“${item.prompt}”, seed ${item.seed}, number ${item.index + 1}`);
    show(image, item.uri);
    const prompt = document.createElement("p");
    prompt.textContent = item.prompt;
    const settings = document.createElement("p");
    settings.className = "hint";
    const told = Object.entries(item.settings).filter(([key]) => !["n", "seed"].includes(key));
    settings.textContent = [`seed ${item.seed}`, ...told.map(([key, value]) => `${key.replaceAll("_", " ")} ${value}`)].join(", ");
    const remove = button("Delete", async () => {
      items = items.filter((other) => other !== item);
      gallery.render();
      if (item.id) await forget("pictures", item.id);
    }, `Delete the picture of “${item.prompt}”`);
    words.replaceChildren(
      prompt,
      settings,
      button("Same again", () => again(item, item.seed), `Same again: “${item.prompt}”, seed ${item.seed}`),
      button("Next seed", () => again(item, item.seed + 1), `“${item.prompt}” with the next seed`),
      ...gallery.actions(item),
      remove,
    );
    return box;
  }
  return gallery;
}
