// Behaviour shared by all pages: theme, copy buttons, keys, small actions. Nothing here makes HTML out of data.
"use strict";

const byId = (id) => document.getElementById(id);

function announce(text) {
  const place = byId("say");
  if (place) place.textContent = text;
}

function toggleTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("heliproxy-theme", root.dataset.theme); } catch { /* storage may be off */ }
  document.dispatchEvent(new Event("theme"));
}

async function copy(button) {
  const source = byId(button.dataset.copy);
  const text = button.dataset.text ?? source.textContent;
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    announce("Copied");
  } catch {
    if (source) getSelection().selectAllChildren(source);
    button.textContent = "Press Ctrl-C";
  }
  setTimeout(() => { button.textContent = before; }, 1500);
}

async function act(button) {
  if (button.dataset.confirm && !confirm(button.dataset.confirm)) return;
  button.disabled = true;
  try {
    const answer = await fetch(button.dataset.action, {
      method: button.dataset.method ?? "POST",
      headers: { "content-type": "application/json" },
      body: button.dataset.body ?? "{}",
    });
    const result = await answer.json().catch(() => ({}));
    if (!answer.ok || result.error) throw new Error(result.error?.message ?? result.error ?? `HTTP ${answer.status}`);
    if (button.dataset.reload !== undefined) location.reload();
    for (const other of button.parentElement.querySelectorAll("[data-action]")) {
      if (other.hasAttribute("aria-pressed")) other.setAttribute("aria-pressed", String(other === button));
    }
    announce(button.dataset.done ?? "Done");
  } catch (error) {
    announce(`That did not work: ${error.message}`);
    button.title = error.message;
    button.classList.add("bad");
  } finally {
    button.disabled = false;
  }
}

async function sendForm(form) {
  const values = Object.fromEntries(new FormData(form));
  let body = values;
  if (form.dataset.shape === "score") body = { scores: { [values.key]: Number(values.value) } };
  const button = form.querySelector("button");
  button.dataset.action = form.action;
  button.dataset.method = form.dataset.method;
  button.dataset.body = JSON.stringify(body);
  button.dataset.reload = "";
  await act(button);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.id === "theme") toggleTheme();
  else if (button?.id === "help-button") byId("help").showModal();
  else if (button?.dataset.copy || button?.dataset.text !== undefined) copy(button);
  else if (button?.dataset.action && !button.form) act(button);
  for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
});

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.method) { event.preventDefault(); sendForm(form); return; }
  // Empty fields do not belong into the URL.
  if (form.method === "get") for (const field of form.elements) if (field.name && !field.value) field.disabled = true;
});
addEventListener("pageshow", () => { for (const field of document.querySelectorAll("form :disabled")) field.disabled = false; });
document.addEventListener("change", (event) => { if (event.target.dataset.submit !== undefined) event.target.form.requestSubmit(); });

// ------------------------------------------------------------------------------------------------ keys
function move(step) {
  const rows = [...document.querySelectorAll("[data-row]")];
  if (!rows.length) return;
  const at = rows.findIndex((row) => row.classList.contains("at"));
  const next = rows[Math.min(rows.length - 1, Math.max(0, at < 0 ? (step > 0 ? 0 : rows.length - 1) : at + step))];
  if (at >= 0) rows[at].classList.remove("at");
  next.classList.add("at");
  next.querySelector("a")?.focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  // In the question's field Enter is a new line, so it takes Ctrl or Cmd to ask.
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && event.target.matches?.("textarea")) event.target.form?.requestSubmit();
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches?.("input, textarea, select");
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "j") move(1);
  else if (event.key === "k") move(-1);
  else if (event.key === "Enter" && !event.target.closest("a, button, summary")) document.querySelector("[data-row].at a")?.click();
  else if (event.key === "/") { byId("search")?.focus(); event.preventDefault(); }
  else if (event.key === "?") byId("help").showModal();
  else if (event.key === "n") document.querySelector("a[rel=next]")?.click();
  else if (event.key === "p") document.querySelector("a[rel=prev]")?.click();
  else if (event.key === "t") toggleTheme();
  else if (/^[1-9]$/.test(event.key)) document.querySelectorAll(".nav a")[Number(event.key) - 1]?.click();
});

document.addEventListener("click", (event) => {
  const row = event.target.closest("[data-row]");
  if (row && !event.target.closest("a, button, summary, input") && !String(getSelection())) row.querySelector("a")?.click();
});
