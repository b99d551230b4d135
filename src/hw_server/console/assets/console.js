// Sign-in by authorization code with PKCE, one socket, calls, topics and a log. Tokens are in memory only: a reload forgets them.
// What comes from a server is put in as text; the page's policy (trusted types) refuses anything else.

const LOG_ENTRIES = 200;
const LOG_CHARACTERS = 20_000; // of one entry
const DELAYS = [1, 2, 4, 8, 15, 30]; // seconds before the next attempt to connect
const PENDING = "hw.sign-in"; // what the response of the provider is held against; per tab, only while signing in
const CLOSED = { 1000: "normal", 1005: "no code", 1006: "refused or out of reach" }; // codes that come without a reason
const UNAUTHENTICATED = 4401;
const TOKEN_EXPIRED = 4402;
const SESSION_REVOKED = 4403;
const UNAVAILABLE = -32053;
const RATE_LIMITED = -32029;
// Of the server's own codes, these say not to connect again unchanged.
const endsForGood = (code) => code >= 4400 && code < 4500;

const find = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Sign-in

let own; // this server's settings for the page: client_id, origin
let provider; // the identity provider's endpoints
let tokens = null; // the provider's response, and `expires` in milliseconds; null while signed out
let renewing = null;

async function ask(address, options = {}) {
  const response = await fetch(address, { credentials: "omit", ...options });
  const body = await response.json().catch(() => ({}));
  if (!response.ok) {
    const { error, error_description, detail, title } = body;
    throw new Error(error_description ?? detail ?? error ?? title ?? `status ${response.status}`);
  }
  return body;
}

async function configure() {
  own ??= await ask("/console/configuration");
  provider ??= await ask("/docs/openid-configuration");
}

function link(endpoint, query) {
  const address = new URL(endpoint);
  for (const [name, value] of Object.entries(query)) address.searchParams.set(name, value);
  return address;
}

function base64url(bytes) {
  return btoa(String.fromCharCode(...bytes)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

async function signIn() {
  if (!crypto.subtle) throw new Error("Sign-in needs https, or a page of this machine (localhost).");
  await configure();
  const [state, verifier] = [0, 1].map(() => base64url(crypto.getRandomValues(new Uint8Array(32))));
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(verifier));
  sessionStorage.setItem(PENDING, JSON.stringify({ state, verifier }));
  location.assign(
    link(provider.authorization_endpoint, {
      response_type: "code",
      client_id: own.client_id,
      redirect_uri: `${location.origin}/`,
      scope: "openid",
      state,
      code_challenge: base64url(new Uint8Array(digest)),
      code_challenge_method: "S256",
    }),
  );
}

// Back from the provider: takes its response out of the address bar, and tokens for it.
async function finishSignIn() {
  const query = new URLSearchParams(location.search);
  const pending = JSON.parse(sessionStorage.getItem(PENDING));
  sessionStorage.removeItem(PENDING);
  if (!query.has("code") && !query.has("error")) return;
  history.replaceState(null, "", "/");
  if (pending === null || query.get("state") !== pending.state) {
    throw new Error("This answer belongs to no sign-in that this page began; it was refused. Sign in again.");
  }
  if (query.has("error")) {
    throw new Error(`The identity provider answered ${query.get("error")}. ${query.get("error_description") ?? ""}`);
  }
  await configure();
  if ((query.get("iss") ?? provider.issuer) !== provider.issuer) throw new Error("Another provider answered.");
  await takeTokens({
    grant_type: "authorization_code",
    code: query.get("code"),
    code_verifier: pending.verifier,
    redirect_uri: `${location.origin}/`,
  });
}

async function takeTokens(form) {
  const held = tokens;
  const body = new URLSearchParams({ client_id: own.client_id, ...form });
  const response = await ask(provider.token_endpoint, { method: "POST", body });
  if (tokens !== held) return; // signed out meanwhile
  tokens = { ...held, ...response, expires: Date.now() + (response.expires_in ?? 60) * 1000 };
}

// One at a time: the provider may take each refresh token only once.
function renew() {
  const form = { grant_type: "refresh_token", refresh_token: tokens.refresh_token };
  renewing ??= takeTokens(form).finally(() => (renewing = null));
  return renewing;
}

function signOut() {
  const { id_token } = tokens;
  leave("You are signed out.");
  if (provider.end_session_endpoint === undefined) return;
  const query = { client_id: own.client_id, post_logout_redirect_uri: `${location.origin}/` };
  location.assign(link(provider.end_session_endpoint, id_token ? { ...query, id_token_hint: id_token } : query));
}

// Forgets the tokens and all that was shown with them.
function leave(message) {
  tokens = null;
  clearTimeout(timer);
  socket?.close(1000);
  waiting.clear();
  subscriptions.clear();
  find("entries").replaceChildren();
  find("methods").replaceChildren();
  find("subscriptions").replaceChildren();
  find("declared-topics").replaceChildren();
  find("filter").value = find("topic").value = "";
  answer("", "The answer of the next call stands here.");
  listed = chosen = undefined;
  drafts.clear();
  show(message);
}

function show(message = "") {
  const signedIn = tokens !== null;
  find("welcome").hidden = signedIn;
  for (const name of ["workbench", "account", "bar", "skip"]) find(name).hidden = !signedIn;
  find("message").hidden = message === "";
  find("message").textContent = message;
}

// The socket

let socket = null;
let timer;
let attempts = 0; // to connect, since the last sign-in of a socket
let refusal; // the error code that the last sign-in of a socket got
let lastId = 0;
let roles = [];
let drainDelay = 0; // seconds to wait before the next attempt, as the server said when it began to drain
const waiting = new Map(); // id -> { method, params, started, quiet, resolve, reject }

function state(name, text) {
  find("state").dataset.state = name;
  find("state").textContent = text;
  find("reconnect").hidden = socket !== null || name === "connected";
}

async function connect() {
  clearTimeout(timer);
  state("waiting", "Connecting");
  find("reconnect").hidden = true;
  try {
    if (tokens.refresh_token && Date.now() > tokens.expires - 5000) await renew();
  } catch (error) {
    if (tokens === null) return;
    // A TypeError is the network's; anything else is the provider's refusal.
    if (error instanceof TypeError) reconnect("the identity provider is out of reach");
    else leave(`The sign-in could not be renewed: ${error.message}. Sign in again.`);
    return;
  }
  if (tokens === null) return;
  const opened = new WebSocket(`${location.origin.replace("http", "ws")}/web`);
  socket = opened;
  opened.addEventListener("open", authenticate);
  opened.addEventListener("message", (event) => receive(JSON.parse(event.data)));
  opened.addEventListener("close", (event) => {
    if (socket === opened) closed(event);
  });
}

async function authenticate() {
  refusal = undefined;
  let session;
  try {
    session = await call("session.authenticate", { token: tokens.access_token }, true);
  } catch (error) {
    refusal = error.code; // the server closes the socket next
    return;
  }
  attempts = 0;
  roles = session.roles;
  find("user").textContent = session.username;
  find("roles").textContent = roles.join(", ") || "no roles";
  state("connected", "Connected");
  for (const topic of [...subscriptions.keys()]) recover(topic);
  listTopics();
  const document = await call("rpc.discover", {}, true).catch(() => undefined); // the error is in the log
  if (document !== undefined) listMethods(document.methods);
}

function closed({ code, reason }) {
  const why = `${code} ${reason || CLOSED[code] || ""}`.trim();
  socket = null;
  for (const { reject } of waiting.values()) reject(new Error("the socket closed"));
  waiting.clear();
  if (tokens === null) return;
  for (const subscription of subscriptions.values()) subscription.state = "away";
  drawSubscriptions();
  enter("error", "socket closed", { note: why });
  if (code === SESSION_REVOKED) {
    leave(`The session was ended (${why}). Sign in again.`);
    return;
  }
  if ((code === UNAUTHENTICATED || code === TOKEN_EXPIRED) && refusal !== UNAVAILABLE) {
    if (!tokens.refresh_token || attempts > 0) {
      leave(`The server let this sign-in go (${why}). Sign in again.`);
      return;
    }
    tokens.expires = 0; // so that a new one is fetched before the next attempt
  } else if (endsForGood(code)) {
    state("ended", `Not connected (${why})`);
    return;
  }
  const elsewhere = code === 1006 && location.origin !== own.origin;
  reconnect(elsewhere ? `${why}; sockets are opened from pages of ${own.origin}` : why);
}

function reconnect(why) {
  // Half of the delay is random, so that the pages of many people do not come back at the same moment.
  const delay = drainDelay + DELAYS[Math.min(attempts, DELAYS.length - 1)] * (0.5 + Math.random() / 2);
  drainDelay = 0;
  attempts += 1;
  state("waiting", `Reconnecting in ${Math.ceil(delay)} s (${why})`);
  timer = setTimeout(connect, delay * 1000);
}

// Rejects with the error object of the answer; every answer is in the log. `quiet` ones stand nowhere else.
function call(method, params, quiet = false) {
  lastId += 1;
  const id = lastId;
  const shown = "token" in params ? { ...params, token: "(not shown)" } : params;
  enter("out", method, { id, preview: JSON.stringify(shown), body: shown, folded: true });
  return new Promise((resolve, reject) => {
    waiting.set(id, { method, params, started: performance.now(), quiet, resolve, reject });
    socket.send(JSON.stringify({ jsonrpc: "2.0", id, method, params }));
  });
}

function receive(message) {
  if (message.method !== undefined) {
    notified(message.method, message.params);
    return;
  }
  const { method, params, started, quiet, resolve, reject } = waiting.get(message.id) ?? {};
  waiting.delete(message.id);
  const note = started === undefined ? "" : `${Math.round(performance.now() - started)} ms`;
  if (message.error !== undefined) {
    const { code, data } = message.error;
    const told = `${code} ${data?.code ?? ""} ${note}`;
    const preview = data?.detail ?? message.error.message;
    enter("error", method ?? "error", { id: message.id, note: told, preview, body: message.error, folded: true });
    if (!quiet) answer(`${method ?? ""} ${told}`, pretty(message.error), "error");
    reject?.(message.error);
  } else {
    enter("in", method ?? "answer", { id: message.id, note, body: message.result, folded: true });
    if (!quiet) answer(`${method ?? ""} ${note}`, pretty(message.result), "good");
    // Before what the server sends next is read: events follow the answer.
    if (method === "topic.subscribe") subscribed(params, message.result);
    if (method === "topic.unsubscribe") unsubscribed(params.topic);
    resolve?.(message.result);
  }
}

function notified(method, params) {
  if (method === "topic.event") {
    take(params.topic, params.epoch, [params]);
  } else if (method === "topic.events") {
    take(params.topic, params.epoch, params.events);
  } else if (method === "topic.reset") {
    reset(params);
  } else {
    enter("notice", method, { body: params });
    if (method === "topic.unsubscribed") unsubscribed(params.topic);
    if (method === "session.expiring") prolong();
    if (method === "server.draining") drainDelay = params?.delay ?? 0;
  }
}

// Topics. A subscription's position is that of the last event shown; after a reconnect it says what is missing.

const subscriptions = new Map(); // topic -> { epoch, offset, events, state }
const WORDS = { live: "live", recovering: "recovering", recovered: "recovered", lost: "events lost", away: "away" };

function subscribed({ recover }, { topic, epoch, offset, recovered, events }) {
  const subscription = subscriptions.get(topic) ?? { events: 0 };
  subscriptions.set(topic, subscription);
  if (recover && recovered) {
    Object.assign(subscription, { ...recover, state: "recovered" });
    const count = events.filter((event) => epoch !== recover.epoch || event.offset > recover.offset).length;
    take(topic, epoch, events);
    enter("notice", "recovered", { preview: topic, note: count === 1 ? "1 missed event" : `${count} missed events` });
  } else if (recover) {
    reset({ topic, epoch, offset });
  } else {
    Object.assign(subscription, { epoch, offset, state: "live" });
  }
  drawSubscriptions();
}

function unsubscribed(topic) {
  subscriptions.delete(topic);
  drawSubscriptions();
}

// What is not newer than the position was shown before.
function take(topic, epoch, events) {
  const subscription = subscriptions.get(topic);
  if (subscription === undefined) return; // on its way when the subscription ended
  for (const { offset, data } of events) {
    if (epoch === subscription.epoch && offset <= subscription.offset) continue;
    Object.assign(subscription, { epoch, offset, events: subscription.events + 1 });
    if (subscription.state !== "recovered") subscription.state = "live";
    enter("event", topic, { preview: JSON.stringify(data), note: `offset ${offset}`, body: data, folded: true });
  }
  drawSubscriptions();
}

function reset({ topic, epoch, offset }) {
  const subscription = subscriptions.get(topic);
  if (subscription === undefined) return;
  Object.assign(subscription, { epoch, offset, state: "lost" });
  enter("error", "topic.reset", { preview: topic, note: "history is gone; events were lost" });
  drawSubscriptions();
}

async function recover(topic) {
  const subscription = subscriptions.get(topic);
  if (subscription === undefined || socket === null) return;
  subscription.state = "recovering";
  drawSubscriptions();
  const { epoch, offset } = subscription;
  const opened = socket;
  try {
    await call("topic.subscribe", { topic, recover: { epoch, offset } }, true);
  } catch ({ code, data }) {
    if (socket !== opened || code === undefined) return; // the next socket tries again
    if (code === UNAVAILABLE || code === RATE_LIMITED) {
      setTimeout(() => socket === opened && recover(topic), ((data?.retry_after ?? 1) + Math.random()) * 1000);
    } else {
      unsubscribed(topic); // the error is in the log
    }
  }
}

function drawSubscriptions() {
  find("no-subscriptions").hidden = subscriptions.size > 0;
  const held = document.activeElement?.closest("#subscriptions li")?.dataset.topic;
  find("subscriptions").replaceChildren(...[...subscriptions].map(row));
  if (held !== undefined) find("subscriptions").querySelector(`[data-topic="${CSS.escape(held)}"] button`)?.focus();
}

function row([topic, { epoch, offset, events, state: name }]) {
  const end = make("button", { type: "button", textContent: "Unsubscribe" });
  end.setAttribute("aria-label", `Unsubscribe from ${topic}`);
  end.addEventListener("click", () => {
    if (find("state").dataset.state === "connected") call("topic.unsubscribe", { topic }, true).catch(() => {});
    else unsubscribed(topic);
  });
  const badge = make("em", { textContent: WORDS[name], className: name });
  const count = events === 1 ? "1 event" : `${events} events`;
  const place = make("span", { textContent: `${count}, offset ${offset}`, title: `epoch ${epoch}` });
  const made = make("li", {}, make("strong", { textContent: topic }), badge, place, end);
  made.dataset.topic = topic;
  return made;
}

async function listTopics() {
  const { channels = {} } = await ask("/asyncapi.json").catch(() => ({}));
  const options = Object.values(channels).map(({ address, "x-subscribe": role }) => {
    const lacking = role !== "by rule" && !roles.includes(role);
    return make("option", { value: address, label: lacking ? `${address} (${role}, not yours)` : address });
  });
  find("declared-topics").replaceChildren(...options);
}

function subscribe(event) {
  event.preventDefault();
  const topic = find("topic").value.trim();
  const open = topic.match(/{(\w+)}/);
  const told = open ? `Put a value in the place of {${open[1]}}.` : subscriptions.has(topic) ? "Subscribed already." : "";
  topicProblem(find("state").dataset.state === "connected" ? told : "The socket is not connected.");
  if (find("topic-problem").textContent !== "") return;
  call("topic.subscribe", { topic }, true).then(
    () => (find("topic").value = ""),
    ({ message, data }) => topicProblem(`${data?.detail ?? message}.`),
  );
}

function topicProblem(text) {
  find("topic-problem").textContent = text;
  find("topic").setAttribute("aria-invalid", text !== "");
}

async function prolong() {
  if (!tokens.refresh_token) {
    enter("notice", "sign-in ends soon", { note: "the provider gave nothing to renew it with" });
    return;
  }
  try {
    await renew();
    if (tokens !== null) await call("session.refresh", { token: tokens.access_token }, true);
  } catch (error) {
    if (tokens !== null) enter("error", "sign-in not renewed", { note: error.message });
  }
}

// Methods and params

let listed; // what `listMethods` drew last
let chosen;
const drafts = new Map(); // method -> what was typed

function listMethods(methods) {
  const drawn = JSON.stringify([methods, roles]);
  if (drawn === listed) return;
  listed = drawn;
  const before = chosen?.name;
  const groups = new Map(); // tag -> methods
  for (const method of methods) {
    const tag = method.tags?.[0]?.name ?? method.name.split(".")[0];
    groups.set(tag, [...(groups.get(tag) ?? []), method]);
  }
  find("methods").replaceChildren(...[...groups].map(group));
  const first = methods.find(({ name }) => name === before) ?? [...groups.values()][0][0];
  find("methods").querySelector(`input[value="${CSS.escape(first.name)}"]`).checked = true;
  choose(first);
  filter();
}

function group([tag, methods]) {
  const title = make("h3", { id: `group-${tag}`, textContent: tag });
  const made = make("div", { role: "group" }, title, ...methods.map(option));
  made.setAttribute("aria-labelledby", title.id);
  return made;
}

// Shows the methods that hold every word typed, in their name or their summary.
function filter() {
  const words = find("filter").value.toLowerCase().split(/\s+/);
  const labels = [...find("methods").querySelectorAll("label")];
  for (const label of labels) {
    const text = label.textContent.toLowerCase();
    label.hidden = !words.every((word) => text.includes(word));
  }
  for (const made of find("methods").children) made.hidden = made.querySelector("label:not([hidden])") === null;
  const left = labels.filter(({ hidden }) => !hidden).length;
  find("shown").textContent = left === labels.length ? `${left}` : `${left} of ${labels.length}`;
}

function option(method) {
  const role = method["x-role"];
  const input = make("input", { type: "radio", name: "method", value: method.name, onchange: () => choose(method) });
  const label = make("label", {}, input, make("strong", { textContent: method.name }));
  label.append(make("span", { textContent: method.summary }));
  if (role !== "public") {
    const yours = role === "signed-in" || roles.includes(role);
    label.append(make("em", { textContent: yours ? role : `${role}, not yours`, className: yours ? "" : "lacking" }));
  }
  return label;
}

function choose(method) {
  if (chosen) drafts.set(chosen.name, find("params").value);
  chosen = method;
  find("method").textContent = method.name;
  find("summary").textContent = method.summary;
  write(drafts.get(method.name) ?? draft(prefilled(method.params)));
  problem("");
  find("declared").replaceChildren(...(method.params.length ? [parameters(method.params)] : []));
}

// A value that nothing declares is left open, for the user to type: an empty one would be sent by one Ctrl+Enter too many.
const OPEN = "\u{e000}"; // stands for it in an object
const OPEN_IN_TEXT = /"(\w+)": ?(?=\s*[,}])/g;

function prefilled(params) {
  return Object.fromEntries(params.filter(({ required }) => required).map(({ name, schema }) => [name, declared(schema)]));
}

function declared(schema) {
  return schema.default ?? schema.const ?? OPEN;
}

function draft(values) {
  return pretty(values).replaceAll(`"${OPEN}"`, "");
}

// Shows params, with the caret where the first value is open.
function write(text) {
  const params = find("params");
  params.value = text;
  const [open] = text.matchAll(OPEN_IN_TEXT);
  const caret = open ? open.index + open[0].length : text.length;
  params.setSelectionRange(caret, caret);
}

// The schema itself, or of several the first that is not null.
function resolve(schema) {
  return schema.anyOf?.find(({ type }) => type !== "null") ?? schema;
}

function parameters(params) {
  const rows = params.map(({ name, required, schema }) => {
    const kind = resolve(schema);
    const add = make("button", { type: "button", textContent: name, title: "Put into the params" });
    add.addEventListener("click", () => {
      const typed = object(find("params").value.replaceAll(OPEN_IN_TEXT, `$&"${OPEN}"`));
      if (typed === undefined) return;
      write(draft({ ...typed, [name]: typed[name] ?? declared(schema) }));
      find("params").focus();
    });
    const type = kind.enum ? kind.enum.join(" | ") : (kind.format ?? kind.type ?? "any");
    const told = [required ? "Required" : "", schema.description ?? ""].filter(Boolean).join(". ");
    return make("tr", {}, make("th", { scope: "row" }, add), make("td", {}, type), make("td", {}, told));
  });
  return make("table", {}, make("caption", { textContent: "Parameters" }), make("tbody", {}, ...rows));
}

// The params as typed; undefined, with the problem shown, where they are no JSON object.
function object(text) {
  try {
    const typed = JSON.parse(text.trim() || "{}");
    if (typed === null || typeof typed !== "object" || Array.isArray(typed)) throw new Error("an object is expected");
    problem("");
    return typed;
  } catch (error) {
    problem(`These are no params: ${error.message}`);
    return undefined;
  }
}

function problem(text) {
  find("problem").textContent = text;
  find("params").setAttribute("aria-invalid", text !== "");
}

function submit(event) {
  event.preventDefault();
  const text = find("params").value;
  const [open] = text.matchAll(OPEN_IN_TEXT);
  if (open) {
    write(text);
    problem(`${open[1]} has no value yet.`);
    return;
  }
  const params = object(text);
  if (params === undefined || chosen === undefined) return;
  if (find("state").dataset.state !== "connected") problem("The socket is not connected.");
  else call(chosen.name, params).catch(() => {}); // the error is shown
}

// The answer and the log

function answer(told, text, kind = "") {
  find("outcome").textContent = told;
  find("outcome").className = kind || "quiet";
  find("answer").textContent = truncate(text);
  find("answer").scrollTop = 0;
}

function truncate(text) {
  const more = text.length - LOG_CHARACTERS;
  return more > 0 ? `${text.slice(0, LOG_CHARACTERS)}\n… ${more} more characters` : text;
}

function pretty(value) {
  return JSON.stringify(value, null, 2);
}

function enter(kind, name, { id, note = "", preview = "", body, folded = false }) {
  const now = new Date();
  const line = [
    make("time", { dateTime: now.toISOString(), textContent: now.toLocaleTimeString([], { hour12: false }) }),
    make("strong", { textContent: name }),
    make("small", { textContent: id === undefined || id === null ? "" : `#${id}` }),
    make("code", { textContent: preview }),
    make("span", { textContent: note }),
  ];
  const entry = make("li", { className: kind });
  if (body === undefined) {
    entry.append(make("div", {}, ...line));
  } else {
    const shown = make("pre", { textContent: truncate(pretty(body)) });
    entry.append(make("details", { open: !folded }, make("summary", {}, ...line), shown));
  }
  const log = find("entries");
  log.prepend(entry);
  while (log.children.length > LOG_ENTRIES) log.lastChild.remove();
}

// The page

find("sign-in").addEventListener("click", () => signIn().catch((error) => show(error.message)));
find("sign-out").addEventListener("click", signOut);
find("reconnect").addEventListener("click", connect);
find("clear").addEventListener("click", () => find("entries").replaceChildren());
find("subscribe").addEventListener("submit", subscribe);
find("filter").addEventListener("input", filter);
document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=radio]), textarea");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey || tokens === null) return;
  event.preventDefault();
  find("filter").focus();
});
find("call").addEventListener("submit", submit);
find("params").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit(event);
});

try {
  await finishSignIn();
  show();
  if (tokens !== null) connect();
} catch (error) {
  show(`Not signed in. ${error.message}`);
}
