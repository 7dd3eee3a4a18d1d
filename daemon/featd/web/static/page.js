// Keeps the page up to date. It replaces only the sections that have changed, and none that somebody is using.
"use strict";

const SILENT_MS = 15000;
const board = document.getElementById("board");
const lost = document.getElementById("lost");
const waiting = new Map();
// When the page began, or the last event came.
let heardAt = Date.now();
let source = null;

function replace(id, news) {
  const section = document.getElementById(id);
  waiting.delete(id);
  if (section.dataset.mark === news.mark) {
    return;
  }
  const focused = document.activeElement;
  if (section !== focused && section.contains(focused)) {
    waiting.set(id, news); // until the focus has left it
    return;
  }
  section.innerHTML = news.html;
  section.dataset.mark = news.mark;
}

function hear(event) {
  const news = JSON.parse(event.data);
  heardAt = Date.now();
  board.dataset.tone = news.tone;
  for (const [id, section] of Object.entries(news.sections)) {
    replace(id, section);
  }
  board.classList.remove("outdated");
  lost.hidden = true;
}

function look() {
  if (document.hidden || Date.now() - heardAt < SILENT_MS) {
    return;
  }
  tellLost();
}

function tellLost() {
  if (lost.hidden) {
    const at = new Date(heardAt).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
    lost.textContent = `featd does not answer: look at "featd status" on its machine. What follows is the state at ${at}. Trying again every few seconds.`;
    lost.hidden = false;
    board.classList.add("outdated");
    const headline = board.querySelector(".headline");
    headline.lastChild.textContent = "No answer";
    headline.classList.replace("good", "bad");
    headline.closest("section").dataset.mark = "";
  }
}

function open() {
  if (source === null) {
    source = new EventSource("/events");
    source.onmessage = hear;
    source.onerror = () => {
      tellLost();
      if (source.readyState === EventSource.CLOSED) {
        // Refused, for example because too many pages are open.
        close();
        setTimeout(open, 10000);
      }
    };
  }
}

function close() {
  if (source !== null) {
    source.close();
    source = null;
  }
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    close();
  } else {
    heardAt = Date.now();
    open();
  }
});
document.addEventListener("focusout", () => {
  setTimeout(() => {
    for (const [id, news] of [...waiting]) {
      replace(id, news);
    }
  }, 0);
});
setInterval(look, 1000);
open();
