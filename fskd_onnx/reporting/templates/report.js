"use strict";
for (const section of document.querySelectorAll(".listing")) {
  const body = section.querySelector("tbody");
  const rows = [...body.rows];
  const headers = [...section.querySelectorAll("th")];
  const search = section.querySelector("input");
  const kinds = [...section.querySelectorAll(".kinds button")];
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

  const filter = () => {
    const wanted = search.value.trim().toLowerCase();
    const pressed = kinds.find((button) => button.ariaPressed === "true");
    const kind = pressed ? pressed.dataset.kind : "";
    let shown = 0;
    for (const row of rows) {
      row.hidden = !texts.get(row).includes(wanted) || (kind !== "" && row.dataset.kind !== kind);
      shown += row.hidden ? 0 : 1;
    }
    section.querySelector("output").textContent = `${shown} of ${rows.length}`;
    section.querySelector(".empty").hidden = shown > 0;
  };

  // Numbers before text, and what is not known last, in either direction.
  const sort = (header) => {
    const column = headers.indexOf(header);
    const sign = header.ariaSort === "ascending" ? -1 : 1;
    const numeric = header.classList.contains("number");
    const key = (row) => {
      const cell = row.cells[column];
      if (!numeric) return cell.textContent.trim();
      return cell.dataset.sort === undefined ? null : Number(cell.dataset.sort);
    };
    const keys = new Map(rows.map((row) => [row, key(row)]));
    rows.sort((one, other) => {
      const [a, b] = [keys.get(one), keys.get(other)];
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true }));
    });
    body.append(...rows);
    for (const each of headers) each.ariaSort = "none";
    header.ariaSort = sign > 0 ? "ascending" : "descending";
  };

  search.addEventListener("input", filter);
  for (const button of kinds) {
    button.addEventListener("click", () => {
      for (const each of kinds) each.ariaPressed = String(each === button);
      filter();
    });
  }
  for (const header of headers) {
    header.querySelector("button").addEventListener("click", () => sort(header));
  }
  // A table that is seen at one glance needs no filter.
  section.querySelector(".controls").hidden = rows.length < 3;
  filter();
}
