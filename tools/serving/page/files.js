// Pictures that come in: chosen, pasted or dropped; and those that go out: saved, copied, enlarged.

import { ApiError } from "./api.js";

const KNOWN = ["image/png", "image/jpeg", "image/webp", "image/gif"]; // what the server reads
const SMALL = 128; // pixels of a side below which a picture is shown without blurring

/** A picture that the server reads: the file itself, or a PNG of it. Throws ApiError for what is no picture. */
export async function readable(file, maxPixels) {
  let image;
  try {
    image = await createImageBitmap(file);
  } catch {
    throw new ApiError(`“${file.name}” is no picture that this browser can read.`);
  }
  const scale = Math.min(1, Math.sqrt(maxPixels / (image.width * image.height)));
  if (scale === 1 && KNOWN.includes(file.type)) return file;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [image.width, image.height].map((side) => Math.max(1, Math.floor(side * scale)));
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  return new File([blob], file.name.replace(/\.\w+$/, "") + ".png", { type: "image/png" });
}

/** Let a field of files also take what is pasted or dropped into `area`. `taken` gets one file. */
export function takeFiles(input, area, taken) {
  const first = (list) => [...(list ?? [])].find((file) => file.type.startsWith("image/")) ?? list?.[0];
  input.addEventListener("change", () => {
    if (input.files[0]) taken(input.files[0]);
    input.value = ""; // the same file may be chosen again
  });
  area.addEventListener("paste", (event) => {
    const file = first(event.clipboardData?.files);
    if (!file) return;
    event.preventDefault();
    taken(file);
  });
  for (const kind of ["dragenter", "dragover"]) {
    area.addEventListener(kind, (event) => {
      event.preventDefault();
      area.classList.add("dropping");
    });
  }
  for (const kind of ["dragleave", "drop"]) area.addEventListener(kind, () => area.classList.remove("dropping"));
  area.addEventListener("drop", (event) => {
    event.preventDefault();
    const file = first(event.dataTransfer?.files);
    if (file) taken(file);
  });
}

/** A file as a data URI. */
export function dataUri(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new ApiError("The picture cannot be read."));
    reader.readAsDataURL(file);
  });
}

/** The file of a data URI. */
export function fileOf(uri, name) {
  const bytes = Uint8Array.from(atob(uri.split(",")[1]), (letter) => letter.charCodeAt(0));
  return new File([bytes], name, { type: uri.slice(5, uri.indexOf(";")) });
}

export function show(image, picture) {
  image.src = picture;
  image.onload = () => image.classList.toggle("small", image.naturalWidth < SMALL);
}

export function download(uri, name) {
  const link = document.createElement("a");
  [link.href, link.download] = [uri, name];
  link.click();
}

export async function copyPicture(uri) {
  await navigator.clipboard.write([new ClipboardItem({ "image/png": fileOf(uri, "") })]);
}

/** An image in a button that enlarges it. */
export function zoomable(image) {
  const made = document.createElement("button");
  [made.type, made.className] = ["button", "zoom"];
  made.setAttribute("aria-haspopup", "dialog");
  made.append(image);
  made.addEventListener("click", () => {
    if (image.src) enlarge(image.src, image.alt);
  });
  return made;
}

export function enlarge(uri, words) {
  const dialog = document.getElementById("zoom");
  const image = dialog.querySelector("img");
  image.alt = words;
  show(image, uri);
  dialog.querySelector("p").textContent = words;
  dialog.showModal();
}
