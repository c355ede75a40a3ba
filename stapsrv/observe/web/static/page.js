// Follows the page that it is on: puts in what changed, and counts ages on. The page is whole without it.
"use strict";

(() => {
  const status = document.getElementById("following");
  if (!status || !document.querySelector("[data-live]")) {
    return;
  }
  const AGAIN_MS = 5000;
  const address = "/events?page=" + encodeURIComponent(location.pathname);
  const run = document.body.dataset.run;
  let source = null;
  let timer = 0;
  let ahead = Date.now() - Date.parse(document.body.dataset.at); // this clock, to the server's

  const button = document.createElement("button");
  button.type = "button";
  status.after(button);

  // Only what is new is said: a screen reader reads each change.
  function say(words) {
    if (status.textContent !== words) {
      status.textContent = words;
    }
  }

  function ageText(seconds) {
    const whole = Math.max(0, Math.floor(seconds));
    if (whole < 60) return whole + " s";
    if (whole < 3600) return Math.floor(whole / 60) + " min " + (whole % 60) + " s";
    if (whole < 86400) return Math.floor(whole / 3600) + " h " + Math.floor((whole % 3600) / 60) + " min";
    return Math.floor(whole / 86400) + " d " + Math.floor((whole % 86400) / 3600) + " h";
  }

  // The page has times, which stay as they are; who looks wants to know how long ago that was.
  function countAges() {
    const now = Date.now() - ahead;
    for (const time of document.querySelectorAll("time[data-ago]")) {
      time.title = time.title || time.textContent;
      time.textContent = ageText((now - Date.parse(time.dateTime)) / 1000) + " ago";
    }
  }

  // Who is on a link in it stays on the link of the same address.
  function put(region, html) {
    const focused = region.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    region.innerHTML = html;
    if (focused !== null) {
      const link = region.querySelector('a[href="' + CSS.escape(focused) + '"]');
      if (link) {
        link.focus({ preventScroll: true });
      }
    }
  }

  function take(event) {
    const told = JSON.parse(event.data);
    if (told.run !== run) {
      // Another supervisor: its requests are others, and so may be this script.
      location.reload();
      return;
    }
    ahead = Date.now() - Date.parse(told.at);
    for (const [name, html] of Object.entries(told.regions)) {
      const region = document.querySelector('[data-live="' + CSS.escape(name) + '"]');
      if (region) {
        put(region, html);
      }
    }
    countAges();
    say("Following what happens.");
  }

  function fail() {
    say("Connection lost; trying again.");
    if (source && source.readyState === EventSource.CLOSED) {
      // The browser gives up where there was an answer, if not the right one.
      clearTimeout(timer);
      timer = setTimeout(follow, AGAIN_MS);
    }
  }

  function leave() {
    clearTimeout(timer);
    if (source) {
      source.close();
      source = null;
    }
  }

  function follow() {
    leave();
    source = new EventSource(address);
    source.onmessage = take;
    source.onerror = fail;
    button.textContent = "Pause";
  }

  button.addEventListener("click", () => {
    if (source || timer) {
      leave();
      timer = 0;
      button.textContent = "Follow";
      say("Paused.");
    } else {
      follow();
    }
  });
  addEventListener("pagehide", leave);
  addEventListener("pageshow", (event) => {
    if (event.persisted) {
      follow();
    }
  });
  countAges();
  setInterval(countAges, 1000);
  follow();
})();
