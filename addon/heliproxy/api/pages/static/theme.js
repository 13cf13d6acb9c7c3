// Loaded before the page is drawn, so that a chosen colour scheme does not flash.
"use strict";
try {
  const theme = localStorage.getItem("heliproxy-theme");
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
} catch { /* storage may be off */ }
