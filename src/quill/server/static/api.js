// Requests to the server that this page came from.
//
// `#key=…` in the address is the server's key. It moves to this browser tab's session storage at once, so that no link,
// bookmark or screenshot shows it.

const KEY = "quill-key";

/** An answer that is an error; `message` is the server's sentence. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Take the key out of the address, if there is one. */
export function takeKey() {
  const found = /^#key=([^&?]+)&?/.exec(location.hash);
  if (!found) return;
  sessionStorage.setItem(KEY, decodeURIComponent(found[1]));
  history.replaceState(null, "", location.pathname + "#" + location.hash.slice(found[0].length));
}

/** Return the response to a GET, or to a POST of `body` as JSON. An error of the server is an ApiError. */
export async function send(path, { body, signal } = {}) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers["Authorization"] = "Bearer " + key;
  const options = { headers, signal };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is quill serve still running?", 0);
  }
  if (!response.ok) throw new ApiError(await errorMessage(response), response.status);
  return response;
}

/** Return the JSON that answers a GET, or a POST of `body`. */
export async function getJson(path, options) {
  return (await send(path, options)).json();
}

/** Yield the JSON of each server-sent event that answers a POST of `body`, until `[DONE]`. */
export async function* events(path, { body, signal }) {
  const response = await send(path, { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    let waiting = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) throw new ApiError("The server ended the text before it was complete.", 0);
      const parts = (waiting + value).split(/\r?\n\r?\n/);
      waiting = parts.pop();
      for (const part of parts) {
        if (!part.startsWith("data:")) continue; // a comment, which keeps the connection open
        const data = part.slice(5).trim();
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ApiError(event.error.message, 500);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function errorMessage(response) {
  if (response.status === 401) return "This server needs its key: open the address that quill serve printed.";
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status} ${response.statusText}.`;
  }
}

/** Return the id of a model without some parts: the server makes it when it is asked for. */
export function switchedId(model, off) {
  return off.length ? `${model.id}~${off.join(",")}` : model.id;
}
