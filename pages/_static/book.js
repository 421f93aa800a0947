// What is wider than its box scrolls, and can be reached by keyboard; where nothing scrolls, there is nothing to reach.
// Sizes are asked for when a box comes near the screen: before, to know them would be to lay out the whole page.
const measured = new IntersectionObserver(
  (entries) => {
    const near = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
    const scrolls = near.map((box) => box.scrollWidth > box.clientWidth);
    near.forEach((box, i) => (box.tabIndex = scrolls[i] ? 0 : -1));
  },
  { rootMargin: "300%" },
);
function measure() {
  measured.disconnect();
  for (const box of document.querySelectorAll("pre, .table-wrapper")) measured.observe(box);
}
addEventListener("resize", measure);
addEventListener("load", measure);
