// An equation that is wider than its box scrolls; whoever has no pointer must be able to as well.
function makeScrollableReachable() {
  for (const box of document.querySelectorAll(".math")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
window.addEventListener("resize", makeScrollableReachable);
window.addEventListener("load", makeScrollableReachable);
document.fonts.addEventListener("loadingdone", makeScrollableReachable);
