// Part of the search page's language_data.js: what is asked for is taken apart as what was indexed.
// Particles are taken off where the rest is known; 유사도 and 정확도 end like one, and are words of their own.
const ALWAYS = /(에서는|에서도|에서의|으로는|으로도|으로의|이라는|까지|부터|에서|에게|으로|처럼|보다|마다|하고|이라|이나|은|는|이|가|을|를|의|에|와|과|로)$/;
const IF_UNKNOWN = /(하다|되다|하는|하기|도|만|다)$/;
const isKnown = (word) => Object.hasOwn(Search._index.terms, word) || Object.hasOwn(Search._index.titleterms, word);
function withoutParticle(word) {
  for (const [ending, wanted] of [[ALWAYS, true], [IF_UNKNOWN, !isKnown(word)]]) {
    const rest = word.replace(ending, "");
    if (wanted && rest.length > 1 && rest !== word && isKnown(rest)) return rest;
  }
  return word;
}
function inTwo(word) {
  for (let i = word.length - 2; i > 1 && !isKnown(word); i--) {
    const rest = withoutParticle(word.slice(i));
    if (isKnown(word.slice(0, i)) && isKnown(rest)) return [word.slice(0, i), rest];
  }
  return [word];
}
var splitQuery = (query) =>
  (query.match(/[가-힣]+|[\p{Letter}\p{Number}_]+?(?=[가-힣]|[^\p{Letter}\p{Number}_]|$)/gu) ?? []).flatMap((word) =>
    /[가-힣]/.test(word) ? inTwo(withoutParticle(word)) : [word],
  );
