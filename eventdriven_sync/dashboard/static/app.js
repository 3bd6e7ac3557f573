// The pages work without scripts; these make them live. Each part prepares what is new in the page.
import { prepareCopying, prepareTheme } from "./small.js";
import { prepareTimes } from "./times.js";
import { prepareGraph } from "./graph.js";
import { prepareKeys } from "./keys.js";
import { prepareForms, prepareLinks, onSwap } from "./swap.js";
import { prepareLive } from "./live.js";

function prepare() {
  prepareTimes();
  prepareCopying();
  prepareGraph();
  prepareLive();
}

prepareTheme();
prepareForms();
prepareLinks();
prepareKeys();
prepare();
onSwap(prepare);
