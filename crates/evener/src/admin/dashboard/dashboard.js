// Shows the instance that serves this page. Everything comes from the API under /v1; texts of the instance are never
// parsed as HTML.
"use strict";

const INTERVAL_MS = 1000;
const SAMPLES = 120;
const EVENTS = 200;
const FAILURES = ["requests_failed", "responses_5xx", "no_server", "drops", "denied", "limited"];

const byId = (id) => document.getElementById(id);
const histories = new Map();
let token = sessionStorage.getItem("evener-token");
let lastEvent = 0;
let instance = "";
let timer = 0;
let uptime = 0;
/** Changes when the token is forgotten, so that late responses are not shown. */
let session = 0;

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** Calls the API. Throws an error with the status and the detail of the problem document. */
async function call(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.authorization = `Bearer ${token}`;
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  const text = await response.text();
  let body = null;
  try { body = text ? JSON.parse(text) : null; } catch { body = text; }
  if (!response.ok) {
    const detail = body && (body.detail || body.title) || text || response.statusText;
    throw Object.assign(new Error(detail), { status: response.status });
  }
  return body;
}

function showProblem(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

function duration(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

function amount(value) {
  if (value === undefined || Number.isNaN(value)) return "–";
  if (value >= 10000) return `${(value / 1000).toFixed(0)}k`;
  return value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toFixed(1);
}

function latency(seconds) {
  if (seconds === undefined) return "–";
  return seconds >= 1 ? `${seconds.toFixed(1)} s` : `${(seconds * 1000).toPrecision(2).replace(/\.0$/, "")} ms`;
}

function sum(value) {
  if (typeof value === "number") return value;
  return value ? Object.values(value).reduce((total, part) => total + sum(part), 0) : 0;
}

/** What a service or server serves, by the first of these counters that it uses. */
function served(counters) {
  return counters.requests || counters.flows || counters.connections || counters.datagrams_in || 0;
}

/** Records a sample of growing numbers, and returns their growth in a second since the sample before. */
function growth(key, time, served, failed) {
  const history = histories.get(key) || { rates: [] };
  const seconds = (time - history.time) / 1000;
  const rate = seconds > 0 ? Math.max(0, (served - history.served) / seconds) : undefined;
  const failures = seconds > 0 ? Math.max(0, (failed - history.failed) / seconds) : undefined;
  if (rate !== undefined) history.rates = [...history.rates, rate].slice(-SAMPLES);
  histories.set(key, { rates: history.rates, time, served, failed });
  return { rate, failures, rates: history.rates };
}

function chart(rates, title) {
  const NAMESPACE = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(NAMESPACE, "svg");
  const most = Math.max(...rates, 1);
  svg.setAttribute("viewBox", `0 0 ${SAMPLES - 1} 24`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "chart");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${title}: at most ${amount(most)}, now ${amount(rates[rates.length - 1] || 0)} a second`);
  const line = document.createElementNS(NAMESPACE, "polyline");
  const first = SAMPLES - rates.length;
  line.setAttribute("points", rates.map((rate, at) => `${first + at},${(23 - 22 * rate / most).toFixed(1)}`).join(" "));
  svg.append(line);
  return svg;
}

function cell(title, content) {
  return element("td", { "data-title": title }, content);
}

function serviceRow(service, time) {
  const counters = service.counters;
  const failed = FAILURES.reduce((total, name) => total + sum(counters[name]), 0);
  const { rate, failures, rates } = growth(`service ${service.name}`, time, served(counters), failed);
  const active = service.connections_active + service.flows_active;
  const about = [service.protocol, service.tls ? "tls" : "", service.plane === "proxy" ? "" : service.plane];
  const name = element("span", {}, element("strong", {}, service.name), " ",
    element("span", { class: "note" }, about.filter(Boolean).join(", ")));
  return element("tr", {},
    cell("Service", name),
    cell("Listens at", service.listen.join(", ") || "–"),
    cell("Active", amount(active)),
    cell("Rate", `${amount(rate)}/s`),
    cell("Failures", `${amount(failures)}/s`),
    cell("Last two minutes", chart(rates, `Rate of ${service.name}`)));
}

/** The state of a server in a word: what an operator set comes before the verdict of the checks. */
function stateOf(server) {
  return server.state === "ready" ? server.verdict : server.state;
}

async function setState(pool, server, state) {
  const name = `${pool}/${server}`;
  byId("message").textContent = `${name}: ${state}…`;
  try {
    await call("v1/servers/state", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ server: name, state }),
    });
    byId("message").textContent = `${name} is set to ${state}`;
  } catch (error) {
    byId("message").textContent = `${name}: ${error.message}`;
  }
  refresh();
}

function button(pool, server, state, label) {
  const made = element("button", { type: "button", "data-key": `${pool}/${server.name} ${state}`,
    "aria-label": `${label} ${server.name} of ${pool}` }, label);
  made.disabled = server.state === state;
  made.addEventListener("click", () => setState(pool, server.name, state));
  return made;
}

function serverRow(pool, server, time) {
  const counters = server.counters;
  const failed = sum(counters.connect_failures) + sum(counters.responses_5xx) + sum(counters.response_timeouts);
  const { rate, rates } = growth(`server ${pool}/${server.name}`, time, served(counters), failed);
  const state = stateOf(server);
  const since = server.state === "ready" ? server.since_s : server.state_since_s;
  const times = server.recent && (server.recent.response_seconds || server.recent.connect_seconds);
  const note = [server.address === server.name ? "" : server.address, server.source || ""].filter(Boolean).join(", ");
  const why = server.reason && state === "down" ? `: ${server.reason}` : "";
  return element("tr", { "data-server": `${pool}/${server.name}` },
    cell("Server", element("span", {}, element("strong", {}, server.name), " ",
      element("span", { class: "note" }, note))),
    cell("State", element("span", {}, element("span", { class: `state ${state}` }, state),
      element("span", { class: "note" }, `${why} (${duration(since)})`))),
    cell("Weight", String(server.weight)),
    cell("Active", amount(server.active + (server.associations || 0))),
    cell("Rate", `${amount(rate)}/s`),
    cell("Latency", times ? `${latency(times.p50)}, p99 ${latency(times.p99)}` : "–"),
    cell("Last two minutes", chart(rates, `Rate of ${server.name}`)),
    cell("Actions", element("span", { class: "actions" },
      button(pool, server, "drain", "Drain"), button(pool, server, "ready", "Ready"),
      button(pool, server, "maintenance", "Maintenance"))));
}

function poolTable(pool, time) {
  const title = `pool-${pool.name}`;
  const columns = ["Server", "State", "Weight", "Active", "Rate", "Latency", "Last two minutes", "Actions"];
  const check = pool.check ? `, check ${pool.check.kind} every ${pool.check.every_s} s` : "";
  const usable = pool.servers.filter((server) => ["up", "unchecked"].includes(stateOf(server))).length;
  return element("div", {},
    element("h2", { id: title }, `Pool ${pool.name} `, element("span", { class: "note" },
      `${usable} of ${pool.servers.length} usable, ${pool.policy}${check}`)),
    element("div", { class: "scroll", role: "region", tabindex: "0", "aria-labelledby": title },
      element("table", {},
        element("thead", {}, element("tr", {}, ...columns.map((name) => element("th", { scope: "col" }, name)))),
        element("tbody", {}, ...pool.servers.map((server) => serverRow(pool.name, server, time))))));
}

function show(status) {
  const time = performance.now();
  const text = `${status.version}, pid ${status.pid}, up ${duration(status.uptime_s)}, ${status.workers} workers`;
  byId("instance").textContent = status.draining ? `${text}, draining` : text;
  // The next line builds the tables anew: the button that has the focus keeps it.
  const focused = document.activeElement && document.activeElement.getAttribute("data-key");
  byId("services").tBodies[0].replaceChildren(...status.services.map((service) => serviceRow(service, time)));
  byId("pools").replaceChildren(...status.pools.map((pool) => poolTable(pool, time)));
  if (focused) {
    const same = [...document.querySelectorAll("[data-key]")].find((one) => one.getAttribute("data-key") === focused);
    if (same) same.focus();
  }
}

function showEvents(events) {
  const list = byId("events");
  for (const event of events) {
    lastEvent = Math.max(lastEvent, event.number);
    const fields = Object.entries(event.fields).map(([name, value]) => `${name}=${value}`).join(" ");
    list.prepend(element("li", { class: event.level },
      element("time", { datetime: event.time }, new Date(event.time).toLocaleTimeString()), `${event.event} ${fields}`));
  }
  while (list.children.length > EVENTS) list.lastElementChild.remove();
}

async function refresh() {
  clearTimeout(timer);
  const mine = session;
  try {
    const status = await call("v1/status");
    if (mine !== session) return;
    const which = `${status.pid}`;
    if (which !== instance || status.uptime_s < uptime) {
      // Another process has other numbers of events, and its counters begin anew.
      instance = which;
      lastEvent = 0;
      histories.clear();
      byId("events").replaceChildren();
    }
    uptime = status.uptime_s;
    show(status);
    const { events } = await call(`v1/events?after=${lastEvent}`);
    if (mine !== session) return;
    showEvents(events);
    showProblem("");
    byId("login").hidden = true;
    byId("logout").hidden = !token;
  } catch (error) {
    if (mine !== session) return;
    const isRefused = error.status === 401 || error.status === 403;
    byId("login").hidden = !isRefused;
    showProblem(isRefused ? error.message : `The instance does not answer: ${error.message}`);
    if (isRefused) return;
  }
  timer = setTimeout(refresh, INTERVAL_MS);
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value.trim();
  byId("token").value = "";
  sessionStorage.setItem("evener-token", token);
  refresh();
});

byId("logout").addEventListener("click", () => {
  token = null;
  session += 1;
  instance = "";
  byId("services").tBodies[0].replaceChildren();
  byId("pools").replaceChildren();
  byId("events").replaceChildren();
  sessionStorage.removeItem("evener-token");
  start();
});

byId("plan").addEventListener("submit", async (event) => {
  event.preventDefault();
  const planned = byId("planned");
  planned.textContent = "…";
  try {
    const plan = await call("v1/plan", {
      method: "POST",
      headers: { "content-type": "text/plain" },
      body: byId("configuration").value,
    });
    planned.textContent = typeof plan === "string" ? plan : JSON.stringify(plan, null, 2);
  } catch (error) {
    planned.textContent = error.message;
  }
});

/** Asks for a token first: a request without one would be refused. */
function start() {
  clearTimeout(timer);
  byId("login").hidden = token !== null;
  byId("logout").hidden = true;
  byId("instance").textContent = token === null ? "Give the token to connect." : "Connecting…";
  if (token === null) byId("token").focus();
  else refresh();
}

start();
