// The link that restores the view is the page's address. What the query holds besides the view (__theme) stays.
const apply = () => {
  const place = element.querySelector("[data-query]");
  if (!place) return;
  const theme = new URLSearchParams(window.location.search).get("__theme");
  const query = place.dataset.query + (theme ? `&__theme=${encodeURIComponent(theme)}` : "");
  window.history.replaceState(null, "", `${window.location.pathname}?${query}`);
};
watch("value", apply);
apply();
