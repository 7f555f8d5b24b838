// All requests of the page to the server. The token, if there is one, is in the page's address after the #.

let token = "";

export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem("bustseg-token", given);
    history.replaceState(null, "", location.pathname);
  }
  token = given || sessionStorage.getItem("bustseg-token") || "";
}

export class Refused extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

/** The server's response; waits and tries again while the server is too busy. */
export async function ask(path, options = {}) {
  for (let attempt = 0; ; attempt++) {
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch {
      throw new Refused(0, "the server does not answer");
    }
    if (answer.ok) return answer;
    if (answer.status === 429 && attempt < 30) {
      await pause(Math.min(Number(answer.headers.get("Retry-After")) || 1, 5) * (0.5 + Math.random()));
      continue;
    }
    const body = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, body.error || `the server answers ${answer.status}`);
  }
}

export const json = async (path, options) => (await ask(path, options)).json();

export const send = (path, content) => ask(path, {
  method: "POST", body: JSON.stringify(content), headers: { "Content-Type": "application/json" },
});

export async function upload(file) {
  const form = new FormData();
  form.append("file", file, file.name);
  return json("/uploads", { method: "POST", body: form });
}

export async function logits(path) {
  const answer = await ask(path);
  const size = [Number(answer.headers.get("X-Height")), Number(answer.headers.get("X-Width"))];
  return { size, values: new Float32Array(await answer.arrayBuffer()) };
}

export const picture = async (path) => createImageBitmap(await (await ask(path)).blob());
