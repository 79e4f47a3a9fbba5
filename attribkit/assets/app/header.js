element.addEventListener("click", (event) => {
  if (event.target.closest("[data-theme-toggle]")) document.body.classList.toggle("dark");
});
