// The server knows the query alone: the rest of the link is where the page came from.
const complete = () => {
  const box = element.querySelector("[data-query]");
  if (!box) return;
  const address = `${window.location.origin}${window.location.pathname}?${box.dataset.query}`;
  element.querySelector("#ak-address").value = address;
};
watch("value", complete);
complete();
