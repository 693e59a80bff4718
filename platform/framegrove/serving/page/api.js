// The API as this page uses it. Paths are relative, so that the page works behind any prefix.

const KEY = "framegrove.key";

/** What the server refused or could not do, in its own sentence. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value.trim()),
};

function headers(more = {}) {
  return key.get() ? { ...more, Authorization: `Bearer ${key.get()}` } : more;
}

/** An answer that is not an error. Throws Refused, with status 0 where the server cannot be reached. */
async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server cannot be reached. This page tries again by itself.");
  }
  if (answer.ok) return answer;
  let message = `The server answered with status ${answer.status}.`;
  try {
    message = (await answer.json()).error.message;
  } catch { /* no sentence of the server's own: a proxy's answer */ }
  throw new Refused(answer.status, sentence(message));
}

/** What the server says without a capital and a full stop, as it stands on a page. */
export const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

const json = async (path, options) => (await ask(path, options)).json();
const post = (path, body, more = {}) =>
  json(path, { method: "POST", headers: { "Content-Type": "application/json", ...more }, body: JSON.stringify(body) });

export const models = () => json("v1/models");
export const page = (after) => json(`v1/videos?limit=20${after ? `&after=${after}` : ""}`);
export const video = (id) => json(`v1/videos/${id}`);
export const create = (body) => post("v1/videos", body, { "Idempotency-Key": crypto.randomUUID() });
export const remix = (id, prompt) => post(`v1/videos/${id}/remix`, { prompt });
export const extend = (id, prompt, seconds) => post("v1/videos/extensions", { video: { id }, prompt, seconds });
/** Goes on from a clip: the fields of the form, the file among them. */
export const extendClip = (form) =>
  json("v1/videos/extensions", { method: "POST", headers: { "Idempotency-Key": crypto.randomUUID() }, body: form });
export const cancel = (id) => post(`v1/videos/${id}/cancel`, {});
export const remove = (id) => json(`v1/videos/${id}`, { method: "DELETE" });
export const tree = (id) => json(`v1/videos/${id}/tree`);
export const treePage = async (id) => (await ask(`v1/videos/${id}/tree.html`)).text();

/** A file as an address for an element. The caller revokes it. */
const address = async (path, options) => URL.createObjectURL(await (await ask(path, options)).blob());
export const file = (id, variant) => address(`v1/videos/${id}/content?variant=${variant}`);
export const preview = (id, branch, signal) => address(`v1/videos/${id}/branches/${branch}/preview`, { signal });

/** Hands every event of a video to `on(kind, data)`, to its last; goes on after `last` and returns the last one's id.
 *  EventSource would do this by itself, but it cannot send a key. */
export async function events(id, last, on, signal) {
  const more = last ? { "Last-Event-ID": last } : {};
  const answer = await ask(`v1/videos/${id}/events`, { headers: { Accept: "text/event-stream", ...more }, signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return last;
    text += value.replaceAll("\r\n", "\n");
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const fields = { data: "" };
      for (const line of text.slice(0, end).split("\n")) {
        const colon = line.indexOf(":");
        if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
      }
      text = text.slice(end + 2);
      if (fields.id) last = fields.id;
      if (fields.event) on(fields.event, JSON.parse(fields.data), last);
    }
  }
}
