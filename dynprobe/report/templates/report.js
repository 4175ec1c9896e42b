"use strict";
(function () {
  var dialog = document.getElementById("zoom");
  var large = document.getElementById("zoom-image");
  if (dialog && dialog.showModal) {
    document.querySelectorAll("figure img").forEach(function (image) {
      image.classList.add("can-zoom");
      image.tabIndex = 0;
      image.setAttribute("role", "button");
      function open() {
        large.src = image.src;
        large.alt = image.alt;
        dialog.showModal();
      }
      image.addEventListener("click", open);
      image.addEventListener("keydown", function (event) {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(); }
      });
    });
    dialog.addEventListener("click", function () { dialog.close(); });
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    table.querySelectorAll("thead th").forEach(function (head, column) {
      var button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      while (head.firstChild) { button.appendChild(head.firstChild); }
      head.appendChild(button);
      button.addEventListener("click", function () { sort(table, head, column); });
    });
  });
  function sort(table, head, column) {
    var up = head.getAttribute("aria-sort") !== "ascending";
    var body = table.tBodies[0];
    var rows = Array.prototype.slice.call(body.rows);
    rows.sort(function (a, b) {
      var x = a.cells[column].textContent.trim(), y = b.cells[column].textContent.trim();
      var p = parseFloat(x), q = parseFloat(y);
      var order = isNaN(p) || isNaN(q) ? (isNaN(p) ? 1 : 0) - (isNaN(q) ? 1 : 0) || x.localeCompare(y) : p - q;
      return up ? order : -order;
    });
    table.querySelectorAll("th").forEach(function (other) { other.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    rows.forEach(function (row) { body.appendChild(row); });
  }
  document.documentElement.classList.add("with-script");
})();
