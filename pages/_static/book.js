// What is wider than its box scrolls, and is reached by keyboard; where nothing scrolls, there is nothing to reach.
// Sizes are asked for when a box comes near the screen: before, to know them would be to lay out the whole page.
const measured = new IntersectionObserver(
  (entries) => {
    const near = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
    const scrolls = near.map((box) => box.scrollWidth > box.clientWidth);
    near.forEach((box, i) => {
      const reached = box.querySelector(":scope > math") ?? box;
      if (scrolls[i]) reached.tabIndex = 0;
      else reached.removeAttribute("tabindex");
    });
  },
  { rootMargin: "300%" },
);
function measure() {
  measured.disconnect();
  for (const box of document.querySelectorAll("pre, .math, .table-wrapper")) measured.observe(box);
}
addEventListener("resize", measure);
addEventListener("load", measure);
// A link's end is sought again while what lies around it is laid out and grows.
function settle(frames = 12) {
  document.querySelector(":target")?.scrollIntoView();
  if (frames) requestAnimationFrame(() => settle(frames - 1));
}
addEventListener("hashchange", () => settle());
addEventListener("load", () => {
  if (performance.getEntriesByType("navigation")[0].type === "navigate") settle(); // else it is where it was
});
// A claim's old address: it moved to a lab.
function leadOn() {
  const place = typeof moved === "undefined" ? undefined : moved[location.hash.slice(1)];
  if (place) location.replace(place);
}
addEventListener("hashchange", leadOn);
addEventListener("load", leadOn);
// The other language: at the same place of the page, and remembered for home.
for (const link of document.querySelectorAll("a.language")) {
  link.addEventListener("click", () => {
    link.hash = location.hash;
    localStorage.language = link.hreflang;
  });
  if ("home" in link.dataset && localStorage.language === link.hreflang) location.replace(link.href);
}
if (document.documentElement.lang === "ko") {
  // the copy buttons' own words
  messages.ko = { copy: "복사", copy_to_clipboard: "클립보드에 복사", copy_success: "복사했습니다", copy_failure: "복사하지 못했습니다" };
  locale = "ko";
}
