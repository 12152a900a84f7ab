"use strict";
// A page without a build step: it talks to this endpoint only, and the key stays in this browser's storage.

const KEY = "deployctl.key";
const POLL_MS = 2000;
const part = (id) => document.getElementById(id);
const state = { model: null, turns: [], running: null, last: null };

part("key").value = localStorage.getItem(KEY) || "";

function headers() {
  return { Authorization: `Bearer ${part("key").value.trim()}`, "Content-Type": "application/json" };
}

function tell(text) {
  part("notice").textContent = text;
  part("notice").hidden = !text;
}

// The error of any answer that is not 200, as the envelope says it.
async function failure(answer) {
  const body = await answer.json().catch(() => null);
  return body?.error?.message || `the endpoint answered with status ${answer.status}`;
}

async function connect() {
  state.model = null;
  if (!part("key").value.trim()) {
    part("model").textContent = "give the API key to connect";
    return;
  }
  try {
    const answer = await fetch("/v1/models", { headers: headers() });
    if (!answer.ok) throw new Error(await failure(answer));
    const card = (await answer.json()).data[0];
    state.model = card.id;
    part("model").textContent = `${card.id} · ${card.max_model_len.toLocaleString()} tokens`;
    part("max_tokens").max = card.max_model_len;
    tell("");
  } catch (error) {
    part("model").textContent = "not connected";
    tell(error.message);
  }
}

function show(role, text) {
  const item = document.createElement("li");
  item.className = role;
  const body = document.createElement("span");
  body.textContent = text;
  item.append(body);
  part("turns").append(item);
  item.scrollIntoView({ block: "end" });
  return item;
}

function request(messages) {
  const body = { model: state.model, messages, stream: true, stream_options: { include_usage: true } };
  body.temperature = Number(part("temperature").value);
  body.top_p = Number(part("top_p").value);
  if (part("max_tokens").value) body.max_completion_tokens = Number(part("max_tokens").value);
  if (part("seed").value) body.seed = Number(part("seed").value);
  return body;
}

// The data of each server-sent event, as it comes.
async function* events(answer) {
  const decoder = new TextDecoder();
  let held = "";
  for (const reader = answer.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += decoder.decode(value, { stream: true });
    const lines = held.split("\n");
    held = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
    }
  }
}

function think(item, text) {
  let details = item.querySelector("details");
  if (!details) {
    details = document.createElement("details");
    details.open = true;
    const title = document.createElement("summary");
    title.textContent = "thoughts";
    details.append(title, document.createElement("span"));
    item.prepend(details);
  }
  details.lastChild.textContent += text;
}

async function ask(question) {
  if (!state.model) await connect();
  if (!state.model) return;
  tell("");
  state.turns.push({ role: "user", content: question });
  show("user", question);
  const item = show("assistant", "");
  const system = part("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...state.turns];
  const begin = performance.now();
  let first = null, usage = null, text = "";
  state.running = new AbortController();
  part("send").disabled = true;
  part("stop").hidden = false;
  try {
    const answer = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(request(messages)), signal: state.running.signal,
    });
    if (!answer.ok) throw new Error(await failure(answer));
    for await (const event of events(answer)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage || usage;
      const delta = event.choices[0]?.delta || {};
      if (delta.reasoning) think(item, delta.reasoning);
      if (delta.content) item.querySelector(":scope > span").textContent = text += delta.content;
      if (first === null && (delta.content || delta.reasoning)) first = performance.now();
      item.scrollIntoView({ block: "end" });
    }
  } catch (error) {
    if (error.name !== "AbortError") tell(error.message);
  } finally {
    const took = (performance.now() - (first ?? begin)) / 1000;
    if (first !== null) {
      const note = document.createElement("small");
      const count = usage ? `${usage.prompt_tokens} + ${usage.completion_tokens} tokens, ` : "stopped, ";
      const speed = usage && took > 0 ? `${(usage.completion_tokens / took).toFixed(1)} tokens/s, ` : "";
      note.textContent = `${count}${speed}first token after ${((first - begin) / 1000).toFixed(2)} s`;
      item.append(note);
    }
    if (text) state.turns.push({ role: "assistant", content: text });
    else state.turns.pop();
    if (!text && !item.querySelector("details")) item.remove();
    state.running = null;
    part("send").disabled = false;
    part("stop").hidden = true;
  }
}

// Prometheus' text: the value of the first sample of a name.
function sample(text, name) {
  const line = text.split("\n").find((one) => one.startsWith(`${name}{`) || one.startsWith(`${name} `));
  return line === undefined ? null : Number(line.slice(line.lastIndexOf(" ") + 1));
}

function gauge(name, value, form) {
  part(`gauge-${name}`).textContent = value === null || Number.isNaN(value) ? "–" : form(value);
}

async function poll() {
  if (!state.model || document.hidden) return;
  const answer = await fetch("/metrics", { headers: headers() }).catch(() => null);
  if (!answer?.ok) return;
  const text = await answer.text();
  const now = {
    at: performance.now(),
    tokens: sample(text, "deployctl_generation_tokens_total"),
    sum: sample(text, "deployctl_time_to_first_token_seconds_sum"),
    count: sample(text, "deployctl_time_to_first_token_seconds_count"),
  };
  const before = state.last;
  if (before) {
    gauge("speed", (now.tokens - before.tokens) / ((now.at - before.at) / 1000), (value) => value.toFixed(1));
    const requests = now.count - before.count;
    if (requests > 0) gauge("ttft", (now.sum - before.sum) / requests, (value) => `${value.toFixed(2)} s`);
  }
  state.last = now;
  gauge("kv", sample(text, "deployctl_kv_cache_usage_perc"), (value) => `${Math.round(value * 100)} %`);
  gauge("running", sample(text, "deployctl_num_requests_running"), String);
  gauge("queue", sample(text, "deployctl_num_requests_waiting"), String);
}

part("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = part("question").value.trim();
  if (!question || state.running) return;
  part("question").value = "";
  ask(question);
});
part("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    part("ask").requestSubmit();
  }
});
part("stop").addEventListener("click", () => state.running?.abort());
part("clear").addEventListener("click", () => {
  state.running?.abort();
  state.turns = [];
  part("turns").replaceChildren();
  tell("");
});
part("key").addEventListener("change", () => {
  localStorage.setItem(KEY, part("key").value.trim());
  connect();
});
part("forget").addEventListener("click", () => {
  localStorage.removeItem(KEY);
  part("key").value = "";
  connect();
});
part("settings").addEventListener("submit", (event) => event.preventDefault());
for (const range of document.querySelectorAll("input[type=range]")) {
  range.addEventListener("input", () => {
    document.querySelector(`output[for=${range.id}]`).textContent = range.value;
  });
}
setInterval(poll, POLL_MS);
connect();
