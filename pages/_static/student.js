// Chapter 04's search box: a static student of MiniLM, and BM25, on the reader's own machine. tools/student.py writes
// what it loads, once it is asked for.
const SPECIAL = /(\[(?:PAD|UNK|CLS|SEP|MASK)\])/;
const CHINESE =
  /[\u4e00-\u9fff\u3400-\u4dbf\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\uf900-\ufaff\u{2f800}-\u{2fa1f}]/gu;

// BERT's word pieces, as the tokenizers library cuts them.
function wordPieces(text, vocabulary) {
  const found = [];
  for (const [i, part] of text.split(SPECIAL).entries()) {
    if (i % 2) found.push(part);
    else for (const word of basicWords(part)) found.push(...cut(word, vocabulary));
  }
  return found;
}
function basicWords(text) {
  return [...text.replace(/[\t\n\r]/g, " ").replace(/[\p{Cc}\p{Cf}\p{Co}\ufffd]/gu, "").replace(/\p{White_Space}/gu, " ")
    .replace(CHINESE, " $& ").normalize("NFD").replace(/\p{Mn}/gu, "")]
    .map((letter) => letter.toLowerCase()).join("") // letter by letter: no final sigma
    .replace(/[!-/:-@[-`{-~]|\p{P}/gu, " $& ").split(" ").filter(Boolean);
}
function cut(word, vocabulary) {
  const letters = [...word], pieces = [];
  if (letters.length > 100) return ["[UNK]"];
  for (let start = 0; start < letters.length; ) {
    let end = letters.length, piece;
    do piece = (start ? "##" : "") + letters.slice(start, end--).join("");
    while (!vocabulary.has(piece) && end > start);
    if (!vocabulary.has(piece)) return ["[UNK]"];
    pieces.push(piece);
    start = end + 1;
  }
  return pieces;
}
// As mathlib.book.data.words.
const plainWords = (text) => text.replace(/(?<=[a-z])(?=[A-Z])/g, " ").toLowerCase().match(/[a-z0-9]+/g) ?? [];

async function loadStudent(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(response.status);
  const unpacked = response.body.pipeThrough(new DecompressionStream("gzip"));
  const bytes = await new Response(unpacked).arrayBuffer();
  let at = 4 + new DataView(bytes).getUint32(0, true);
  const student = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, at - 4)));
  const kinds = { float32: Float32Array, uint16: Uint16Array, uint8: Uint8Array, int8: Int8Array };
  for (const [name, [kind, size]] of Object.entries(student.arrays)) {
    student[name] = new kinds[kind](bytes, at, size);
    at += student[name].byteLength;
  }
  student.vocabulary = new Set(student.pieces);
  student.rows = new Map(Array.from(student.known, (id, row) => [student.pieces[id], row]));
  let start = 0;
  student.places = new Map(student.words.map((word, i) => [word, [start, (start += student.having[i])]]));
  return student;
}

function countOf(words) {
  const counts = new Map();
  for (const word of words) counts.set(word, (counts.get(word) ?? 0) + 1);
  return counts;
}
// The cosine of the question with every document, or nothing if no piece of it is known.
function studentScores(student, text) {
  const { dimensions: D, rows, pieceVectors, pieceSteps, documentVectors, documentSteps } = student;
  const counts = [...countOf(wordPieces(text, student.vocabulary))].filter(([piece]) => rows.has(piece));
  const query = new Float64Array(D);
  for (const [piece, count] of counts.slice(0, student.longest)) {
    const row = rows.get(piece), weight = (1 + Math.log(count)) * pieceSteps[row];
    for (let i = 0; i < D; i++) query[i] += weight * pieceVectors[row * D + i];
  }
  const length = Math.hypot(...query);
  if (!length) return null;
  return Float64Array.from(documentSteps, (step, d) => {
    let sum = 0;
    for (let i = 0; i < D; i++) sum += query[i] * documentVectors[d * D + i];
    return (step * sum) / length;
  });
}
// Lucene's variant, as in the chapter.
function bm25Scores(student, text, k1 = 1.5, b = 0.75) {
  const { lengths, places, gaps, counts } = student, N = lengths.length;
  const mean = lengths.reduce((sum, length) => sum + length, 0) / N;
  const scores = new Float64Array(N), known = plainWords(text).filter((word) => places.has(word));
  for (const word of known) {
    const [start, end] = places.get(word), rarity = Math.log(1 + (N - (end - start) + 0.5) / (end - start + 0.5));
    for (let i = start, d = 0; i < end; i++) {
      d += gaps[i];
      scores[d] += (rarity * counts[i]) / (counts[i] + k1 * (1 - b + (b * lengths[d]) / mean));
    }
  }
  return known.length ? scores : null;
}
const best = (scores, k) => [...scores.keys()].sort((x, y) => scores[y] - scores[x] || x - y).slice(0, k);

const KOREAN = {
  "Ask the documentation of five packages": "다섯 패키지의 문서에 물어보기",
  "Search": "검색",
  "Documentation": "문서",
  "The first question loads {} MB from this site.": "처음 물을 때 이 사이트에서 {} MB를 내려받습니다.",
  "Loading {} MB …": "{} MB를 내려받는 중 …",
  "No word is known.": "아는 단어가 없습니다.",
  "Answers to “{}”": "“{}”에 대한 답",
  "Ready.": "준비되었습니다.",
  "Static student, by cosine": "정적 학생 모델, 코사인",
  "The data could not be loaded ({}).": "데이터를 내려받지 못했습니다({}).",
};
const say = (text, what) => (document.documentElement.lang === "ko" ? (KOREAN[text] ?? text) : text).replace("{}", () => what);

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
function openBox(box) {
  const megabytes = box.dataset.megabytes, address = new URL("student.bin", box.dataset.script);
  const input = element("input", { type: "search", id: "question", autocomplete: "off", enterKeyHint: "search" });
  const label = element("label", { htmlFor: "question" }, say("Ask the documentation of five packages"));
  const form = element("form", {}, label, input, element("button", {}, say("Search")));
  const status = element("p", {}, say("The first question loads {} MB from this site.", megabytes));
  const answers = element("div", { className: "answers" });
  form.setAttribute("role", "search");
  form.setAttribute("aria-label", say("Documentation"));
  status.setAttribute("role", "status");
  box.replaceChildren(form, status, answers);
  let loading, timer;

  function list(student, title, scores, digits) {
    const entry = (d) => element(
      "li", {}, element("code", {}, student.names[d]), ` ${scores[d].toFixed(digits)}`, element("br"), student.summaries[d],
    );
    const inside = scores ? element("ol", {}, ...best(scores, 5).map(entry)) : element("p", {}, say("No word is known."));
    return element("div", {}, element("h3", {}, title), inside);
  }
  async function answer() {
    const text = input.value.trim();
    if (!loading) status.textContent = say("Loading {} MB …", megabytes);
    try {
      const student = await (loading ??= loadStudent(address));
      if (input.value.trim() !== text) return; // a later question is on its way
      answers.replaceChildren();
      status.textContent = text ? say("Answers to “{}”", text) : say("Ready.");
      if (!text) return;
      answers.append(
        list(student, say("Static student, by cosine"), studentScores(student, text), 2),
        list(student, "BM25", bm25Scores(student, text), 1),
      );
    } catch (error) {
      loading = undefined; // the next question tries again
      status.textContent = say("The data could not be loaded ({}).", error.message);
    }
  }
  input.oninput = () => {
    clearTimeout(timer);
    timer = setTimeout(answer, loading ? 150 : 0);
  };
  form.onsubmit = (event) => {
    event.preventDefault();
    answer();
  };
}
{
  const box = document.getElementById("student");
  box.dataset.script = document.currentScript.src;
  openBox(box);
}
