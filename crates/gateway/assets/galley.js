// The dashboard's only script. Every page works without it: it makes what can move move, and saves clicks.
"use strict";
(() => {
  const texts = document.body.dataset;
  const text = (name) => texts["text" + name[0].toUpperCase() + name.slice(1)] || "";
  const one = (selector, from = document) => from.querySelector(selector);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  // --- live parts: the server sends those that changed, as HTML it has escaped
  const UNDO_MS = 5000;
  // What something is: a node becomes another only if both are the same thing, so that a click never means something else
  const identity = (node) => {
    if (node.nodeType !== Node.ELEMENT_NODE) return String(node.nodeType);
    const what = node.id || node.getAttribute("href") || node.getAttribute("action") || (node.localName === "details" && node.firstElementChild.textContent) || "";
    return `${node.nodeName} ${what}`;
  };
  // Changes what differs and keeps the rest: focus, selection and what is about to be clicked stay where they are
  const morph = (old, next) => {
    const before = [...old.childNodes];
    const after = [...next.childNodes];
    after.forEach((wanted, index) => {
      const known = before[index];
      if (!known) old.append(wanted);
      else if (identity(known) !== identity(wanted)) known.replaceWith(wanted);
      else if (known.nodeType !== Node.ELEMENT_NODE) {
        if (known.data !== wanted.data) known.data = wanted.data;
      } else {
        for (const { name, value } of wanted.attributes) if (known.getAttribute(name) !== value) known.setAttribute(name, value);
        for (const { name } of [...known.attributes]) if (!wanted.hasAttribute(name) && name !== "open") known.removeAttribute(name);
        morph(known, wanted);
      }
    });
    before.slice(after.length).forEach((node) => node.remove());
  };
  const lost = one(".lost");
  const follow = (box) => {
    const source = new EventSource(box.dataset.follow);
    const show = (message) => {
      if (lost) {
        lost.textContent = message;
        lost.hidden = !message;
      }
    };
    source.addEventListener("open", () => show(""));
    source.addEventListener("error", () => {
      show(text("lost"));
      // Some answers end a stream for good: the browser does not try again by itself
      if (source.readyState === EventSource.CLOSED && !box.dataset.ended) setTimeout(() => follow(box), 5000);
    });
    source.addEventListener("parts", (event) => {
      const parts = JSON.parse(event.data);
      for (const [name, html] of Object.entries(parts)) {
        const part = one(`[data-live="${CSS.escape(name)}"]`);
        // Somebody who is in the middle of a form or a menu keeps it
        const isBusy = part && (one("details[open]", part) || one("input:focus, textarea:focus", part));
        if (!part || isBusy) continue;
        const box = document.createElement("template");
        box.innerHTML = html;
        morph(part, box.content);
      }
      box.dataset.moved = String(Number(box.dataset.moved || 0) + 1);
    });
    source.addEventListener("append", (event) => {
      const list = one("[data-live-list]");
      if (!list) return;
      one("[data-empty]")?.remove();
      list.insertAdjacentHTML("afterbegin", JSON.parse(event.data).html);
      while (list.children.length > 200) list.lastElementChild.remove();
    });
    for (const name of ["finished", "access_ended"]) {
      source.addEventListener(name, () => {
        box.dataset.ended = "yes";
        source.close();
      });
    }
    addEventListener("pagehide", () => source.close());
  };
  all("[data-follow]").forEach(follow);

  // --- on a phone the sections are in a row that scrolls: the current one is in view
  const current = one(".sections a[aria-current]");
  if (current) one(".sections").scrollLeft = current.offsetLeft - 60;

  // --- menus: one at a time, closed by Escape and by a click elsewhere
  const closeMenus = (except) => all("details.confirm[open]").forEach((menu) => menu !== except && !menu.contains(except) && menu.removeAttribute("open"));
  document.addEventListener("toggle", (event) => {
    if (event.target.matches && event.target.matches("details.confirm[open]")) closeMenus(event.target);
  }, true);
  document.addEventListener("click", (event) => {
    if (!event.target.closest("details.confirm")) closeMenus(null);
  });

  // --- what cannot be undone waits a moment first
  const waiting = new Set();
  const send = (form) => fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)), keepalive: true, redirect: "follow" });
  const toast = (message) => {
    const box = document.createElement("div");
    box.className = "toast";
    box.setAttribute("role", "status");
    const words = document.createElement("span");
    words.dir = "auto";
    words.textContent = message;
    box.append(words);
    document.body.append(box);
    return box;
  };
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (!form.dataset.undo || form.dataset.sure) return;
    event.preventDefault();
    closeMenus(null);
    const box = toast(form.dataset.undo);
    const undo = document.createElement("button");
    undo.type = "button";
    undo.textContent = text("undo");
    box.append(undo);
    undo.focus();
    const entry = { form };
    waiting.add(entry);
    entry.timer = setTimeout(() => {
      waiting.delete(entry);
      form.dataset.sure = "yes";
      form.requestSubmit(event.submitter && form.contains(event.submitter) ? event.submitter : null);
    }, UNDO_MS);
    undo.addEventListener("click", () => {
      clearTimeout(entry.timer);
      waiting.delete(entry);
      box.firstChild.textContent = text("undone");
      undo.remove();
      setTimeout(() => box.remove(), 2500);
    });
  });
  // Who leaves the page meant it
  addEventListener("pagehide", () => {
    for (const { form, timer } of waiting) {
      clearTimeout(timer);
      send(form);
    }
    waiting.clear();
  });

  // --- copy, select all, ask before it is sent
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const source = document.getElementById(button.dataset.copy);
    const before = button.textContent;
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = text("copied");
    } catch {
      getSelection().selectAllChildren(source);
    }
    setTimeout(() => (button.textContent = before), 2000);
  });
  document.addEventListener("change", (event) => {
    const box = event.target;
    if (!box.matches("[data-all]")) return;
    all('input[type="checkbox"][name="id"]').forEach((other) => (other.checked = box.checked));
  });

  // --- completion of a search: what begins like the word at the end
  all("[data-complete]").forEach((input) => {
    const known = input.dataset.complete.split("\n");
    const list = document.createElement("ul");
    list.className = "suggestions";
    list.id = "suggestions";
    list.hidden = true;
    list.setAttribute("role", "listbox");
    list.setAttribute("aria-label", one(`label[for="${input.id}"]`).textContent);
    input.after(list);
    for (const [name, value] of Object.entries({ role: "combobox", "aria-controls": list.id, "aria-expanded": "false", "aria-autocomplete": "list" })) input.setAttribute(name, value);
    let chosen = -1;
    const word = () => input.value.slice(0, input.selectionStart).split(" ").pop();
    const close = () => {
      list.hidden = true;
      chosen = -1;
      input.setAttribute("aria-expanded", "false");
      input.removeAttribute("aria-activedescendant");
    };
    const take = (text) => {
      const end = input.selectionStart;
      const before = input.value.slice(0, end - word().length) + text;
      input.value = before + (text.endsWith(":") ? "" : " ") + input.value.slice(end).trimStart();
      input.focus();
      close();
      if (text.endsWith(":")) open();
    };
    const open = () => {
      const start = word().toLowerCase();
      const fitting = start ? known.filter((text) => text.toLowerCase().startsWith(start) && text !== start).slice(0, 10) : [];
      list.replaceChildren(...fitting.map((text, index) => {
        const item = document.createElement("li");
        item.id = `suggestion-${index}`;
        item.setAttribute("role", "option");
        item.setAttribute("aria-selected", "false");
        item.textContent = text;
        item.addEventListener("mousedown", (event) => {
          event.preventDefault();
          take(text);
        });
        return item;
      }));
      chosen = -1;
      list.hidden = fitting.length === 0;
      input.setAttribute("aria-expanded", String(!list.hidden));
    };
    input.addEventListener("input", open);
    input.addEventListener("blur", close);
    input.addEventListener("keydown", (event) => {
      if (list.hidden) return;
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        event.preventDefault();
        const items = [...list.children];
        chosen = event.key === "ArrowDown" ? (chosen + 1) % items.length : (chosen <= 0 ? items.length : chosen) - 1;
        items.forEach((item, index) => item.setAttribute("aria-selected", String(index === chosen)));
        input.setAttribute("aria-activedescendant", items[chosen].id);
      } else if ((event.key === "Enter" && chosen >= 0) || (event.key === "Tab" && chosen >= 0)) {
        event.preventDefault();
        take(list.children[chosen].textContent);
      } else if (event.key === "Escape") {
        close();
      }
    });
  });

  // --- keys: / to search, g and a letter to go, ? to see the letters
  let isGoing = false;
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      closeMenus(null);
      document.body.classList.remove("show-keys");
      return;
    }
    const isTyping = event.target.closest("input, textarea, select, [contenteditable]");
    if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
    if (isGoing) {
      isGoing = false;
      document.body.classList.remove("show-keys");
      const link = one(`.sections a[data-key="${CSS.escape(event.key)}"]`);
      if (link) {
        event.preventDefault();
        link.click();
      }
      return;
    }
    if (event.key === "/") {
      const search = one("[data-search]");
      if (search) {
        event.preventDefault();
        search.focus();
        search.select();
      } else {
        location.href = "/ui/jobs#search";
      }
    } else if (event.key === "g") {
      isGoing = true;
      document.body.classList.add("show-keys");
      setTimeout(() => {
        isGoing = false;
        document.body.classList.remove("show-keys");
      }, 1500);
    } else if (event.key === "?") {
      document.body.classList.toggle("show-keys");
    }
  });
})();
