// What is wider or higher than its box scrolls; whoever has no pointer must be able to as well. Sizes are asked for when
// a box comes near the screen: before, to know them would be to lay out the whole page. (The theme's script would.)
const SCROLLABLE =
  ".math, pre, .cell_output > .output, .jp-RenderedHTMLCommon, .claim table, .pst-scrollable-table-container";
const measured = new IntersectionObserver(
  (entries) => {
    const near = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
    const boxes = near.map((box) => [
      box,
      box.scrollWidth > box.clientWidth || (box.matches("pre") && box.scrollHeight > box.clientHeight),
    ]);
    for (const [box, scrolls] of boxes) {
      if (scrolls) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  },
  { rootMargin: "300%" },
);
function makeScrollableReachable() {
  measured.disconnect();
  for (const box of document.querySelectorAll(SCROLLABLE)) measured.observe(box);
}
window.addEventListener("resize", makeScrollableReachable);
window.addEventListener("load", makeScrollableReachable);
document.fonts.addEventListener("loadingdone", makeScrollableReachable);
