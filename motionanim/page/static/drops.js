// Files that are dropped on the page.

// A file that is dropped beside the photo must not replace the page, from the first moment on.
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => event.preventDefault());

// Shows `target` while files are dragged over the page, and gives those that are dropped to `take`.
export function takeDrops(target, take) {
  let over = 0; // elements of the page that a dragged file is over
  const hover = (event, way) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    over = Math.max(over + way, 0);
    target.hidden = over === 0;
  };
  addEventListener("dragenter", (event) => hover(event, 1));
  addEventListener("dragleave", (event) => hover(event, -1));
  addEventListener("drop", (event) => {
    over = 0;
    target.hidden = true;
    take([...event.dataTransfer.files]);
  });
}
