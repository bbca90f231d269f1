// What the three forms share: one thing at a time, errors that are seen, a focus that is never lost.

import { ApiError } from "./api.js";

/** The numbers that were typed into a form, by their names; empty fields are left out. */
export function numbers(form) {
  const typed = [...form.querySelectorAll("input[type=number]")].filter((input) => input.value !== "");
  return Object.fromEntries(typed.map((input) => [input.name, Number(input.value)]));
}

/** The sizes of a model that draws several shapes, in the form's list; the first entry leaves the choice to the model. */
export function offerSizes(form, sizes) {
  const list = form.elements.size;
  list.closest("label").hidden = sizes.length < 2;
  list.replaceChildren(new Option("the model chooses", ""), ...sizes.map((size) => new Option(size.replace("x", " × "), size)));
}

/** The size that is chosen in a form, as a setting; nothing where the model is to choose. */
export function chosenSize(form) {
  const { value } = form.elements.size;
  return value ? { size: value } : {};
}

/** Put numbers back into a form; fields that are not named become empty where the page has no value for them. */
export function setNumbers(form, values) {
  for (const input of form.querySelectorAll("input[type=number]")) {
    input.value = values[input.name] ?? (input.name === "seed" ? "" : input.value);
  }
  if (form.elements.size) form.elements.size.value = values.size ?? "";
}

/** The first setting that is wrong, in words, shown and focused even in closed settings; null if all are right. */
function wrongSetting(form) {
  const wrong = [...form.elements].find((input) => input.willValidate && !input.validity.valid);
  if (!wrong) return null;
  const settings = wrong.closest("details");
  if (settings) settings.open = true;
  wrong.focus();
  const name = (wrong.labels[0]?.textContent ?? wrong.name).trim();
  return `${name}: ${wrong.validationMessage}`;
}

/** Let a form do its work: its error, its progress and its Stop button. `work` gets an AbortSignal. */
export function runForm(form, work) {
  const [submit, stop] = [form.querySelector("[type=submit]"), form.querySelector(".stop")];
  const [error, note, progress] = [form.querySelector(".error"), form.querySelector(".note"), form.querySelector("progress")];
  const text = form.querySelector("textarea.main-text");
  let abort = null;

  function tell(box, words) {
    for (const other of [error, note]) [other.hidden, other.textContent] = [true, ""];
    if (words) [box.hidden, box.textContent] = [false, words];
  }

  function swap(working) {
    const mine = [submit, stop].includes(document.activeElement);
    [submit.hidden, stop.hidden] = [working, !working];
    if (mine) (working ? stop : text).focus(); // a button that is hidden would take the focus with it
    form.setAttribute("aria-busy", String(working));
  }

  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  stop.addEventListener("click", () => abort?.abort());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (abort) return;
    const wrong = wrongSetting(form);
    tell(error, wrong);
    if (wrong) return;
    abort = new AbortController();
    swap(true);
    if (progress) [progress.hidden, progress.value] = [false, 0];
    try {
      await work(abort.signal, (words) => tell(note, words));
    } catch (problem) {
      if (problem.name === "AbortError") tell(note, "Stopped.");
      else tell(error, problem instanceof ApiError ? problem.message : String(problem));
    } finally {
      abort = null;
      swap(false);
      if (progress) progress.hidden = true;
    }
  });
  return { tell: (words) => tell(error, words), note: (words) => tell(note, words), stop: () => abort?.abort() };
}

/** A button of words. */
export function button(words, action, label) {
  const made = document.createElement("button");
  [made.type, made.className, made.textContent] = ["button", "quiet", words];
  if (label) made.setAttribute("aria-label", label);
  made.addEventListener("click", action);
  return made;
}

/** Words that fill a form when they are pressed. */
export function examples(box, words, action) {
  box.replaceChildren(...words.map((text) => button(text, () => action(text))));
  for (const one of box.children) one.className = "example";
}

/** Say for a moment that something has been done. */
export function flash(pressed, words) {
  const before = pressed.textContent;
  pressed.textContent = words;
  setTimeout(() => (pressed.textContent = before), 1500);
}
