"use strict";
const $ = (id) => document.getElementById(id);
const chat = [];  // messages so far
let state = null, running = null, before = null;

function headers() {
  const key = $("key").value;
  return key ? { "Authorization": "Bearer " + key } : {};
}

function node(name, text, kind) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

const bytes = (n) => n < 1e6 ? (n / 1e3).toFixed(1) + " kB" : n < 1e9 ? (n / 1e6).toFixed(1) + " MB" : (n / 1e9).toFixed(2) + " GB";
const share = (part, whole) => whole > 0 ? (100 * part / whole).toFixed(1) + " %" : "-";

// --- the plan at work

// One letter and one colour for each role.
const LETTERS = { full: "F", select: "S", scan: "C", reuse: "R", window: "W", route: "T" };
const roleOf = (kind) => Object.keys(LETTERS).find((role) => kind.startsWith(role)) || "other";
const letterOf = (role) => LETTERS[role] || "·";

function showLayers() {
  const name = $("plan").value;
  const plan = state.plans.find((p) => p.name === name) || state.plans[0];
  const watched = new Map(plan.watched.map((w) => [w.layer, w]));
  const cells = plan.layers.map((kind, layer) => {
    // What a router decided for the latest prompt takes the place of "route".
    const routed = kind === "route" && plan.routed ? (plan.routed[layer] === "S" ? "window" : "full") : kind;
    const role = roleOf(routed), seen = watched.get(layer);
    const cell = node("li", letterOf(role), role);
    let note = `Layer ${layer}: ${kind}`;
    if (routed !== kind) note += `, now ${routed}`;
    if (seen) note += `, captured ${(100 * seen.captured).toFixed(1)} % of the attention mass`;
    if (seen && seen.promoted) {
      note += ", promoted to full";
      cell.classList.add("promoted");
    }
    cell.title = note;
    cell.setAttribute("aria-label", note);
    return cell;
  });
  $("layers").replaceChildren(...cells);
  const kinds = [...new Set(plan.layers.map(roleOf))];
  $("legend").replaceChildren(...kinds.map((role) => {
    const item = node("li"), layers = plan.layers.filter((kind) => roleOf(kind) === role).length;
    item.append(node("span", letterOf(role), role), ` ${role}, ${layers}`);
    return item;
  }));
  const captured = plan.watched.map((w) => w.captured), promoted = plan.watched.filter((w) => w.promoted).length;
  $("layer-note").textContent = captured.length
    ? `Latest watched answer: a borrowed set captured at least ${(100 * Math.min(...captured)).toFixed(1)} % of the attention mass; ` +
      `${promoted} layers promoted (framed).`
    : "";
}

function showNumbers(now) {
  const s = state;
  $("read").textContent = s.kv_bytes_dense > 0
    ? `${share(s.kv_bytes_read, s.kv_bytes_dense)} of dense, ${bytes(s.kv_bytes_dense - s.kv_bytes_read)} saved` : "-";
  $("read-meter").value = s.kv_bytes_dense > 0 ? s.kv_bytes_read / s.kv_bytes_dense : 0;
  if (before) {
    const seconds = (now - before.at) / 1000;
    $("speed").textContent = ((s.streamed_tokens - before.tokens) / seconds).toFixed(1);
  }
  before = { at: now, tokens: s.streamed_tokens };
  $("cache").textContent = `${s.cache.claimed_tokens} of ${s.cache.most_tokens} tokens set aside, ${bytes(s.cache.held_bytes)} held`;
  $("cache-meter").value = s.cache.most_tokens > 0 ? s.cache.claimed_tokens / s.cache.most_tokens : 0;
  $("cached").textContent = `${s.cached_tokens} of ${s.prompt_tokens} (${share(s.cached_tokens, s.prompt_tokens)})`;
  $("queue").textContent = `${s.running}, ${s.waiting}`;
}

async function refresh() {
  try {
    const reply = await fetch("state", { headers: headers() });
    if (reply.status === 401) $("key-label").hidden = false;
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    state = await reply.json();
    const names = state.plans.map((p) => p.name);
    if ($("plan").options.length !== names.length) {
      $("plan").replaceChildren(...names.map((name) => node("option", name)));
      $("plan").value = state.plan;
    }
    $("model").textContent = `${state.model}, ${state.layers} layers, context ${state.context}`;
    showLayers();
    showNumbers(performance.now());
  } catch (error) {
    $("model").textContent = error.message;
    before = null;
  }
  setTimeout(refresh, running ? 500 : 2000);
}

// --- chat

function addTurn(role, text) {
  const turn = node("div", "", "turn " + role), body = node("span", text), small = node("small");
  turn.append(node("b", role === "user" ? "You" : "Baton"), body, small);
  $("log").append(turn);
  $("log").scrollTop = $("log").scrollHeight;
  return { body, small };
}

// The documents of a stream of events.
async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    for (let end; (end = held.indexOf("\n\n")) >= 0; held = held.slice(end + 2)) {
      const line = held.slice(0, end);
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

function showTimings(timings, small) {
  const rate = timings.predicted_per_second;
  small.textContent = `${timings.prompt_n} prompt tokens in ${(timings.prompt_ms / 1000).toFixed(2)} s, ` +
    `${timings.cache_n} from cache; ${timings.predicted_n} tokens at ${rate.toFixed(1)} per second`;
  $("latest").textContent = `${rate.toFixed(1)} tokens per second, ` +
    `${share(timings.kv_bytes_per_token, timings.kv_bytes_per_token_dense)} of a dense step's KV bytes`;
}

async function answer() {
  const shown = addTurn("assistant", "");
  let text = "";
  running = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  try {
    const reply = await fetch("v1/chat/completions", {
      method: "POST", signal: running.signal, headers: { ...headers(), "Content-Type": "application/json" },
      body: JSON.stringify({
        messages: chat, stream: true, return_progress: true, plan: $("plan").value,
        temperature: Number($("temperature").value), max_tokens: Number($("tokens").value),
      }),
    });
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    for await (const event of events(reply)) {
      if (event.error) throw new Error(event.error.message);
      if (event.prompt_progress)
        shown.small.textContent = `prompt: ${event.prompt_progress.processed} of ${event.prompt_progress.total} tokens`;
      for (const choice of event.choices) text += choice.delta.content || "";
      shown.body.textContent = text;
      $("log").scrollTop = $("log").scrollHeight;
      if (event.timings) showTimings(event.timings, shown.small);
    }
  } catch (error) {
    const stopped = error.name === "AbortError";
    shown.small.textContent = stopped ? "stopped" : error.message;
    if (!stopped) shown.small.className = "error";
  }
  chat.push({ role: "assistant", content: text });
  running = null;
  $("send").disabled = false;
  $("stop").disabled = true;
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || running) return;
  chat.push({ role: "user", content: text });
  addTurn("user", text);
  $("text").value = "";
  answer();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("ask").requestSubmit();
  }
});
$("stop").addEventListener("click", () => running && running.abort());
$("new").addEventListener("click", () => {
  if (running) running.abort();
  chat.length = 0;
  $("log").replaceChildren();
  $("text").focus();
});
$("plan").addEventListener("change", showLayers);
refresh();
