const task = document.getElementById("task"), result = document.getElementById("result");
const cards = [...document.querySelectorAll("article")];
function filter() {
  for (const card of cards) {
    const results = card.dataset.results ?? card.dataset.result;
    card.hidden = (task.value && card.dataset.task !== task.value) ||
      (result.value && !results.split(" ").includes(result.value));
  }
  document.getElementById("count").textContent =
    `${cards.filter(card => !card.hidden).length} of ${cards.length} shown`;
}
task.onchange = result.onchange = filter;
filter();
