// In `idealmix view`: asks the server what the run's state is, and loads the page again when it has changed.
"use strict";
(() => {
  const known = document.querySelector("meta[name=idealmix-state]").content;
  const ask = async () => {
    try {
      const answer = await fetch("/state", {cache: "no-store"});
      if (answer.ok && (await answer.text()) !== known) location.reload();
    } catch { return; }  // the server has ended: the page stays as it is
    setTimeout(ask, 1500);
  };
  setTimeout(ask, 1500);
})();
