element.addEventListener("click", (event) => {
  if (event.target.closest("[data-dismiss]")) element.querySelector(".ak-notice").remove();
});
