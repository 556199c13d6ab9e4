() => {
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.repeat) return;
    if (e.target.matches("input:not([type=radio]):not([type=checkbox]), textarea")) return;
    const key = {a: "accept", r: "reject", n: "next", b: "back", u: "undo", Delete: "remove"}[e.key];
    const button = key && document.getElementById(key);
    if (button) {e.preventDefault(); button.click();}
  });
  document.addEventListener("click", (e) => {  // on a picture that is being loaded, Gradio does not know where a click is
    const image = e.target;
    if (!image.matches("#picture img") || image.complete) return;
    e.stopImmediatePropagation();
    image.addEventListener("load", () => image.dispatchEvent(new MouseEvent("click", e)), {once: true});
  }, true);
  document.addEventListener("paste", (e) => {
    const input = document.querySelector("#upload input[type=file]");
    const file = [...e.clipboardData.files].find((f) => f.type.startsWith("image/"));
    if (!input || !file) return;
    const pasted = new DataTransfer();
    pasted.items.add(file);
    input.files = pasted.files;
    input.dispatchEvent(new Event("change", {bubbles: true}));
  });
}
