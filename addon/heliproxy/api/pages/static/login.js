// Sends the token typed in, or the one behind the # of `heliproxy open`, and goes on to the page asked for.
"use strict";

(() => {
  const form = document.getElementById("login");
  if (!form) return;
  const wanted = new URLSearchParams(location.search).get("to") ?? "/";
  // Only a path of this site: "//host" would be another one.
  const next = /^\/(?![/\\])/.test(wanted) ? wanted : "/";

  async function send(token) {
    const answer = await fetch("/login", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ token }) });
    if (answer.ok) location.replace(next);
    else document.getElementById("wrong").textContent = "That is not the token.";
  }

  form.addEventListener("submit", (event) => { event.preventDefault(); event.stopPropagation(); send(new FormData(form).get("token")); });
  if (location.hash.length > 1) {
    const token = decodeURIComponent(location.hash.slice(1));
    history.replaceState(null, "", location.pathname + location.search);
    send(token);
  }
})();
