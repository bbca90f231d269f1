// Requests to the server that sent this page, and the events of its streamed answers.

export class ApiError extends Error {
  constructor(message, code = null, status = 0) {
    super(message);
    [this.code, this.status] = [code, status];
  }
}

/** The answer to a request. Throws ApiError with the server's own words. */
export async function ask(path, options = {}) {
  const key = sessionStorage.getItem("key");
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached.");
  }
  if (!response.ok) throw await problem(response);
  return response;
}

export function askJson(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  return ask(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

async function problem(response) {
  const wait = response.headers.get("Retry-After");
  const again = wait ? ` Try again in ${wait} s.` : "";
  try {
    const { message, code } = (await response.json()).error;
    return new ApiError(message + again, code, response.status);
  } catch {
    return new ApiError(`The server answered with status ${response.status}.${again}`, null, response.status);
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
      if (data === undefined) continue; // a comment, which keeps the connection open
      const found = JSON.parse(data);
      if (found.error) throw new ApiError(found.error.message, found.error.code);
      yield found;
    }
  }
}
