// What the pages do beyond following links: drop a picture, the menu of a concept, keys, and a sign of life while waiting.
"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const status = find("status"), progress = find("progress"), menu = find("menu");
  const query = find("query"), change = find("change");

  const wait = (says = "") => { progress.hidden = false; status.textContent = says; find("main").setAttribute("aria-busy", "true"); };
  const rest = (says = "") => { progress.hidden = true; status.textContent = says; find("main").removeAttribute("aria-busy"); };
  const go = (href) => { wait(); location.assign(href); };

  addEventListener("pageshow", () => rest());  // also where the page comes back from the browser's memory
  addEventListener("submit", (event) => {
    if (event.target.method !== "dialog") wait(event.target.dataset.slow || "");
  });
  addEventListener("click", (event) => {
    const link = event.target.closest("a[href]");
    const plain = !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey && event.button === 0;
    if (!link || !plain || event.defaultPrevented) return;
    if (link.dataset.concept && !link.closest("dialog")) {
      event.preventDefault();
      open(link.dataset.concept, link.getAttribute("href"));
    } else if (link.origin === location.origin && !link.hash) wait();
  });

  // The address of the search that is shown, with one parameter more; of a new search on the other pages.
  function search(name, value) {
    const address = new URL("/", location.href);
    if (query) address.search = location.search;
    address.searchParams.append(name, value);
    return address.pathname + address.search;
  }

  function open(name, page) {
    find("menu-name").textContent = name;
    find("menu-require").href = search("require", name);
    find("menu-forbid").href = search("forbid", name);
    find("menu-more").href = search("concept", name + "=0.5");
    find("menu-less").href = search("concept", name + "=-0.5");
    find("menu-page").href = page;
    menu.showModal();
  }
  menu.addEventListener("click", (event) => { if (event.target === menu) menu.close(); });

  // A change of an option or a switch is asked for at once.
  for (const form of [query, change]) {
    form?.addEventListener("change", (event) => {
      if (event.target.type !== "file" && event.target.id !== "q") form.requestSubmit();
    });
  }
  const rare = query?.elements.rare;
  rare?.addEventListener("input", () => {
    const many = Math.round(10 ** rare.value).toLocaleString("en");
    find("rare-says").textContent = +rare.value
      ? `at most 1 in ${many} unrelated texts scores as high` : "as the index judges";
  });

  // Pictures: chosen, dropped, pasted.
  async function send(file) {
    if (!file) return;
    wait("Reading the picture …");
    try {
      const answer = await fetch("/api/pictures", { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
      const said = await answer.json();
      if (!answer.ok) throw new Error(said.error);
      go(search("picture", said.value));
    } catch (error) {
      rest(error.message || "The picture could not be sent.");
    }
  }
  if (query) {
    document.querySelector(".file").hidden = false;
    find("choose").addEventListener("click", () => find("file").click());
    find("file").addEventListener("change", (event) => send(event.target.files[0]));
  }
  addEventListener("dragover", (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    send(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files][0];
    if (file) { event.preventDefault(); send(file); }
  });

  // Keys: / to the query; arrows among the pictures, or to the earlier and later one; m for more like it.
  function move(key) {
    const all = [...document.querySelectorAll(".grid .picture")];
    const at = all.indexOf(document.activeElement.closest("li")?.querySelector(".picture"));
    if (at < 0) { all[0]?.focus(); return all.length > 0; }
    const top = all[at].getBoundingClientRect().top;
    const columns = Math.max(1, all.filter((a) => a.closest(".grid") === all[at].closest(".grid") && a.getBoundingClientRect().top === top).length);
    const next = at + { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[key];
    all[next]?.focus();
    return Boolean(all[next]);
  }
  addEventListener("keydown", (event) => {
    const typing = event.target.matches("input:not([type=checkbox]), select, textarea");
    if (typing || menu.open || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") {
      event.preventDefault();
      if (find("q")) find("q").focus(); else if (find("find")) find("find").focus(); else go("/");
    } else if (event.key.startsWith("Arrow")) {
      const turn = find({ ArrowLeft: "earlier", ArrowRight: "later" }[event.key]);
      if (turn) go(turn.href);
      else if (!event.target.matches(".scroll") && move(event.key)) event.preventDefault();
    } else if (event.key === "m") {
      document.activeElement.closest("li")?.querySelector("[data-like]")?.click();
    }
  });
})();
