// What Gradio calls when its element is there; `trigger` tells the server what is asked about: "", or the name of an image and its data.
// One event for drawings and pictures, each of which waits for the answer to the one before: what was done last is what is shown.
const canvas = element.querySelector("canvas"); // none where images have colours
const pen = canvas?.getContext("2d");
const chosen = element.querySelector("input");
const MOMENT = 60; // milliseconds from one telling of a drawing to the next
let last = null; // where the pen is, if it is down
let soon = 0;
let asked = 0; // how often something was; a file that is slow to read may be asked about no longer

function tell(value) {
  asked += 1;
  clearTimeout(soon);
  soon = 0;
  props.value = value;
  trigger("input");
}

function wipe() {
  if (!pen) return;
  pen.fillStyle = "black";
  pen.fillRect(0, 0, canvas.width, canvas.height);
}

function draw(event) {
  const box = canvas.getBoundingClientRect();
  const to = [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
  pen.beginPath();
  pen.moveTo(...(last ?? to));
  pen.lineTo(to[0] + 0.01, to[1]); // or a dot would be no line
  pen.stroke();
  last = to;
  soon ||= setTimeout(() => tell(` ${canvas.toDataURL("image/png")}`), MOMENT);
}

function ask(file) {
  if (!file) return;
  wipe();
  tell("");
  const mine = asked;
  const reader = new FileReader();
  reader.onloadend = () => mine === asked && tell(`${encodeURIComponent(file.name)} ${reader.result ?? ""}`);
  if (file.size > props.largest) reader.onloadend();
  else reader.readAsDataURL(file);
}

if (canvas) {
  pen.strokeStyle = "white";
  pen.lineWidth = 20;
  pen.lineCap = pen.lineJoin = "round";
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    draw(event);
  };
  canvas.onpointermove = (event) => last && (event.getCoalescedEvents?.() ?? []).concat(event).forEach(draw);
  canvas.onpointerup = canvas.onpointercancel = () => (last = null);
}
element.querySelector("button").onclick = () => {
  wipe();
  tell("");
};
chosen.onchange = () => {
  ask(chosen.files[0]);
  chosen.value = ""; // or the same file could not be chosen again
};
document.ondragover = (event) => event.preventDefault();
document.ondrop = (event) => {
  event.preventDefault();
  ask(event.dataTransfer.files[0]);
};
document.onpaste = (event) => ask(event.clipboardData.files[0]);
wipe();
