"use strict";
(() => {
  const PAGE = 25;
  const list = document.getElementById("cases");
  const more = document.getElementById("more");
  const controls = document.getElementById("controls");
  const all = [...list.children];
  const texts = new Map(all.map((one) => [one, one.textContent.toLowerCase()]));
  const value = (name) => (document.getElementById(name) || { value: "" }).value;
  const sure = (one, missing) => ("sure" in one.dataset ? Number(one.dataset.sure) : missing);
  const orders = {
    worst: null,
    sure: (a, b) => sure(b, -1) - sure(a, -1),
    unsure: (a, b) => sure(a, 2) - sure(b, 2),
    file: (a, b) => a.dataset.place - b.dataset.place,
  };
  let limit = PAGE;

  function show() {
    const verdict = value("verdict"), pair = value("pair"), words = value("search").toLowerCase();
    const found = all.filter((one) => (!verdict || one.dataset.verdict === verdict)
      && (!pair || one.dataset.pair === pair) && texts.get(one).includes(words));
    const order = orders[value("order")];
    if (order) found.sort(order);
    list.replaceChildren(...found.slice(0, limit));
    more.hidden = found.length <= limit;
    document.getElementById("found").value = `${found.length} found`;
  }

  controls.addEventListener("input", () => { limit = PAGE; show(); });
  controls.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { limit += PAGE; show(); });
  controls.hidden = false;
  show();
})();
