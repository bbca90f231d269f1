// Requests to the server that sent this page, and the events of its streamed answers.

export class ApiError extends Error {}

/** The answer to a request. Throws ApiError with the server's own words. */
export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (!response.ok) throw new ApiError(await reason(response));
  return response;
}

async function reason(response) {
  const wait = response.headers.get("Retry-After");
  const again = wait ? ` Try again in ${wait} s.` : "";
  try {
    return (await response.json()).error.message + again;
  } catch {
    return `The server answered with status ${response.status}.${again}`;
  }
}

/** The JSON values of a stream of server-sent events. Throws ApiError for an error among them. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new ApiError("The answer broke off.");
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
      if (data === "[DONE]") return;
      if (data === undefined) continue;
      const found = JSON.parse(data);
      if (found.error) throw new ApiError(found.error.message);
      yield found;
    }
  }
}

/** The numbers that were typed into a form, by their names; empty fields are left out. */
export function numbers(form) {
  const typed = [...form.querySelectorAll("input[type=number]")].filter((input) => input.value !== "");
  return Object.fromEntries(typed.map((input) => [input.name, Number(input.value)]));
}

/** A file as a data URI. */
export function dataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new ApiError("The picture cannot be read."));
    reader.readAsDataURL(file);
  });
}

/** Let a form do one thing at a time: its error, its progress and its Stop button. `work` gets an AbortSignal. */
export function runForm(form, work) {
  const [submit, stop] = [form.querySelector("[type=submit]"), form.querySelector(".stop")];
  const [error, progress] = [form.querySelector(".error"), form.querySelector("progress")];
  let abort = null;
  stop.addEventListener("click", () => abort?.abort());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (abort) return;
    abort = new AbortController();
    error.hidden = true;
    submit.hidden = true;
    stop.hidden = false;
    if (progress) [progress.hidden, progress.value] = [false, 0];
    try {
      await work(abort.signal);
    } catch (problem) {
      const stopped = problem.name === "AbortError";
      error.textContent = stopped ? "Stopped." : problem instanceof ApiError ? problem.message : String(problem);
      error.hidden = false;
    } finally {
      abort = null;
      submit.hidden = false;
      stop.hidden = true;
      if (progress) progress.hidden = true;
    }
  });
}
