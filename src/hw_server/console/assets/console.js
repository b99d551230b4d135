// Sign-in by authorization code with PKCE, one socket, calls and a log. Tokens are in memory only: a reload forgets them.
// What comes from a server is put in as text; the page's policy (trusted types) refuses anything else.

const LOG_ENTRIES = 200;
const LOG_CHARACTERS = 20_000; // of one entry
const DELAYS = [1, 2, 4, 8, 15, 30]; // seconds before the next attempt to connect
const PENDING = "hw.sign-in"; // what the answer of the provider is held against; per tab, only while signing in
const CLOSED = { 1000: "normal", 1005: "no code", 1006: "refused or out of reach" }; // codes that come without a reason
const UNAUTHENTICATED = 4401;
const TOKEN_EXPIRED = 4402;
const SESSION_REVOKED = 4403;
const UNAVAILABLE = -32053;

const find = (id) => document.getElementById(id);

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Sign-in

let own; // this server's settings for the page: client_id, origin
let provider; // the identity provider's endpoints
let tokens = null; // the provider's answer, and `expires` in milliseconds; null while signed out
let renewing = null;

async function ask(address, options = {}) {
  const response = await fetch(address, { credentials: "omit", ...options });
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) {
    const { error, error_description, detail, title } = answer;
    throw new Error(error_description ?? detail ?? error ?? title ?? `status ${response.status}`);
  }
  return answer;
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

// Back from the provider: takes its answer out of the address bar, and tokens for it.
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
  const answer = await ask(provider.token_endpoint, { method: "POST", body });
  if (tokens !== held) return; // signed out meanwhile
  tokens = { ...held, ...answer, expires: Date.now() + (answer.expires_in ?? 60) * 1000 };
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
  find("log").replaceChildren();
  find("methods").replaceChildren();
  listed = chosen = undefined;
  drafts.clear();
  show(message);
}

function show(message = "") {
  const signedIn = tokens !== null;
  find("welcome").hidden = signedIn;
  find("workbench").hidden = find("account").hidden = !signedIn;
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
const waiting = new Map(); // id -> { method, started, quiet, resolve, reject }

function state(name, text) {
  find("state").dataset.state = name;
  find("state").textContent = text;
}

async function connect() {
  state("waiting", "Connecting");
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
  const document = await call("rpc.discover", {}, true).catch(() => undefined); // the error is in the log
  if (document !== undefined) listMethods(document.methods);
}

function closed({ code, reason }) {
  const why = `${code} ${reason || CLOSED[code] || ""}`.trim();
  socket = null;
  for (const { reject } of waiting.values()) reject(new Error("the socket closed"));
  waiting.clear();
  if (tokens === null) return;
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
  }
  const elsewhere = code === 1006 && location.origin !== own.origin;
  reconnect(elsewhere ? `${why}; sockets are opened from pages of ${own.origin}` : why);
}

function reconnect(why) {
  const delay = DELAYS[Math.min(attempts, DELAYS.length - 1)];
  attempts += 1;
  state("waiting", `Reconnecting in ${delay} s (${why})`);
  timer = setTimeout(connect, delay * 1000);
}

// Rejects with the error object of the answer; every answer is in the log. `quiet` entries are folded.
function call(method, params, quiet = false) {
  lastId += 1;
  const id = lastId;
  const shown = "token" in params ? { ...params, token: "(not shown)" } : params;
  enter("out", method, { id, preview: JSON.stringify(shown), body: shown, folded: true });
  return new Promise((resolve, reject) => {
    waiting.set(id, { method, started: performance.now(), quiet, resolve, reject });
    socket.send(JSON.stringify({ jsonrpc: "2.0", id, method, params }));
  });
}

function receive(message) {
  if (message.method !== undefined) {
    enter("notice", message.method, { body: message.params });
    if (message.method === "session.expiring") prolong();
    return;
  }
  const { method, started, quiet, resolve, reject } = waiting.get(message.id) ?? {};
  waiting.delete(message.id);
  const note = started === undefined ? "" : `${Math.round(performance.now() - started)} ms`;
  if (message.error !== undefined) {
    const { code, data } = message.error;
    enter("error", method ?? "error", { id: message.id, note: `${code} ${data?.code ?? ""} ${note}`, body: message.error });
    reject?.(message.error);
  } else {
    enter("in", method ?? "answer", { id: message.id, note, body: message.result, folded: quiet });
    resolve?.(message.result);
  }
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
  find("methods").replaceChildren(...methods.map(option));
  const index = Math.max(0, methods.findIndex(({ name }) => name === before));
  document.getElementsByName("method")[index].checked = true;
  choose(methods[index]);
}

function option(method) {
  const role = method["x-role"];
  const input = make("input", { type: "radio", name: "method", value: method.name, onchange: () => choose(method) });
  const label = make("label", {}, input, make("strong", { textContent: method.name }));
  label.append(make("span", { textContent: method.summary }));
  if (role) {
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
  find("params").value = drafts.get(method.name) ?? pretty(prefilled(method.params));
  problem("");
  find("declared").replaceChildren(...(method.params.length ? [parameters(method.params)] : []));
}

function prefilled(params) {
  return Object.fromEntries(params.filter(({ required }) => required).map(({ name, schema }) => [name, sample(schema)]));
}

// Empty values, which hardly any method takes: one Ctrl+Enter too many changes nothing.
function sample(schema) {
  const kind = resolve(schema);
  if (kind.enum) return kind.enum[0];
  return { integer: 0, number: 0, boolean: false, array: [], object: {}, string: "" }[kind.type] ?? null;
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
      const typed = object();
      if (typed === undefined) return;
      find("params").value = pretty({ ...typed, [name]: typed[name] ?? schema.default ?? sample(schema) });
      find("params").focus();
    });
    const type = kind.enum ? kind.enum.join(" | ") : (kind.format ?? kind.type ?? "any");
    const told = [required ? "Required" : "", schema.description ?? ""].filter(Boolean).join(". ");
    return make("tr", {}, make("th", { scope: "row" }, add), make("td", {}, type), make("td", {}, told));
  });
  return make("table", {}, make("caption", { textContent: "Parameters" }), make("tbody", {}, ...rows));
}

// The params as typed; undefined, with the problem shown, where they are no JSON object.
function object() {
  try {
    const typed = JSON.parse(find("params").value.trim() || "{}");
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
  const params = object();
  if (params === undefined || chosen === undefined) return;
  if (find("state").dataset.state !== "connected") problem("The socket is not connected.");
  else call(chosen.name, params).catch(() => {}); // the error is in the log
}

// The log

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
    const text = pretty(body);
    const more = text.length - LOG_CHARACTERS;
    const shown = more > 0 ? `${text.slice(0, LOG_CHARACTERS)}\n… ${more} more characters` : text;
    entry.append(make("details", { open: !folded }, make("summary", {}, ...line), make("pre", { textContent: shown })));
  }
  const log = find("log");
  log.prepend(entry);
  while (log.children.length > LOG_ENTRIES) log.lastChild.remove();
}

// The page

find("sign-in").addEventListener("click", () => signIn().catch((error) => show(error.message)));
find("sign-out").addEventListener("click", signOut);
find("clear").addEventListener("click", () => find("log").replaceChildren());
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
