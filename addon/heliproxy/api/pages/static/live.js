// New rows without a reload. The server sends at most two batches a second; a hidden tab catches up when it is shown.
"use strict";

(() => {
  const light = document.getElementById("live");
  const table = document.querySelector("tbody[data-live]");
  const region = document.querySelector("[data-refresh]");
  const KEPT = 200; // rows in the page
  const FEW = 8;
  let waiting = [];
  let missed = 0;
  let scheduled = false;
  let refreshTimer = 0;

  const state = (value, title) => { if (light) { light.dataset.state = value; light.title = title; } };

  function draw() {
    scheduled = false;
    if (!table || document.hidden || !waiting.length) return;
    const batch = waiting;
    waiting = [];
    // The rows come from our own templates, with everything escaped; a template element runs no script.
    const holder = document.createElement("template");
    holder.innerHTML = batch.reverse().join("");
    const rows = [...holder.content.querySelectorAll("tr")].slice(0, KEPT);
    for (const row of rows) {
      document.getElementById(row.id)?.remove();
      // A few new rows light up; of many at once it would only cost frames.
      if (rows.length <= FEW) row.classList.add("new");
    }
    document.querySelector("tr.nothing")?.remove();
    const top = table.getBoundingClientRect().top;
    const height = table.offsetHeight;
    table.prepend(...rows);
    // Whoever has scrolled down is reading: keep what they read in its place.
    if (top < 0) scrollBy(0, table.offsetHeight - height);
    while (table.rows.length > KEPT) table.lastElementChild.remove();
  }

  const schedule = () => { if (!scheduled) { scheduled = true; requestAnimationFrame(draw); } };

  async function refresh() {
    refreshTimer = 0;
    if (document.hidden) { missed = 1; return; }
    if (document.activeElement?.closest("[data-refresh]")) { refreshTimer = setTimeout(refresh, 4000); return; }
    const answer = await fetch(location.href, { headers: { accept: "text/html" } }).catch(() => null);
    if (!answer?.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of document.querySelectorAll("[data-refresh]")) {
      const news = fresh.getElementById(part.id);
      if (news) part.replaceChildren(...news.childNodes);
    }
    document.dispatchEvent(new Event("refreshed"));
  }

  function connect() {
    const source = new EventSource(`/live${location.search}${location.search ? "&" : "?"}page=${document.body.dataset.page}`);
    source.addEventListener("open", () => state("on", "Live: new requests appear by themselves"));
    source.addEventListener("error", () => state("off", "Not connected; trying again"));
    source.addEventListener("rows", (event) => {
      const news = JSON.parse(event.data);
      if (document.body.dataset.page === "welcome") { location.reload(); return; }
      if (table && news.html) {
        waiting.push(news.html);
        if (waiting.length > 20) waiting.shift();
        schedule();
      }
      if (region && !refreshTimer) refreshTimer = setTimeout(refresh, 3000);
    });
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    schedule();
    if (missed && region) { missed = 0; refresh(); }
  });
  const pause = document.getElementById("pause");
  if (document.body.dataset.page && !pause?.checked) connect();
})();
