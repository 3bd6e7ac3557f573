// Before anything is drawn: light or dark as chosen here; without a choice as the system has it.
(() => {
  try {
    const chosen = localStorage.getItem("eventdriven-theme");
    if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  } catch {
    // A browser without storage follows the system.
  }
})();
