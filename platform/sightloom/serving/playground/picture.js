// The picture: loaded, shrunk where it is large, drawn, and marked with the boxes and points of an answer.

const LONGEST_PX = 2048;
const LARGEST_BYTES = 6 * 2 ** 20;

export async function loadPicture(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`“${file.name || "the clipboard"}” is not a picture that this browser can read.`);
  }
  const scale = Math.min(1, LONGEST_PX / Math.max(bitmap.width, bitmap.height));
  const plain = ["image/png", "image/jpeg", "image/webp"].includes(file.type);
  let url;
  if (scale === 1 && plain && file.size <= LARGEST_BYTES) {
    url = await asDataUrl(file);
  } else {
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    url = canvas.toDataURL("image/jpeg", 0.92);
  }
  const shrunk = scale < 1 ? ", shrunk before it is sent" : "";
  return { bitmap, url, about: `${file.name || "pasted picture"} · ${bitmap.width} × ${bitmap.height} px${shrunk}` };
}

function asDataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The file could not be read."));
    reader.readAsDataURL(file);
  });
}

// Coordinates are in 0…1000 of the picture's sides: [x, y] is a point, [x1, y1, x2, y2] a box.
export function findMarks(text) {
  const marks = [];
  for (const [, list] of text.matchAll(/[[(]\s*(-?\d+(?:\.\d+)?(?:\s*,\s*-?\d+(?:\.\d+)?){1,3})\s*[\])]/g)) {
    const values = list.split(",").map(Number);
    if (values.some((value) => value < 0 || value > 1000)) continue;
    if (values.length === 2) marks.push({ point: values });
    if (values.length === 4 && values[2] > values[0] && values[3] > values[1]) marks.push({ box: values });
  }
  return marks;
}

export function draw(canvas, picture, marks) {
  const room = canvas.parentElement.clientWidth || 400;
  const { width, height } = picture.bitmap;
  const zoom = Math.min(room / width, 384 / height, 6);
  const density = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * zoom * density);
  canvas.height = Math.round(height * zoom * density);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = zoom < 2;
  pen.drawImage(picture.bitmap, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `the picture${marks.length ? `, ${marks.length} place(s) marked` : ""}`);
  const x = (value) => (value / 1000) * canvas.width;
  const y = (value) => (value / 1000) * canvas.height;
  for (const { point, box, colour } of marks) {
    for (const [ink, wide] of [["#ffffff", 5], [colour, 2.5]]) {
      pen.strokeStyle = ink;
      pen.lineWidth = wide * density;
      pen.beginPath();
      if (box) pen.rect(x(box[0]), y(box[1]), x(box[2]) - x(box[0]), y(box[3]) - y(box[1]));
      else pen.arc(x(point[0]), y(point[1]), 9 * density, 0, 2 * Math.PI);
      pen.stroke();
    }
  }
}
