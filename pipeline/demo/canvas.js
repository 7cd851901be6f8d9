// What Gradio calls when the canvas is there, with its `element`; `trigger` tells the server what is drawn, while it is.
const canvas = element.querySelector("canvas");
const pen = canvas.getContext("2d");
const MOMENT = 60; // milliseconds from one telling to the next
let last = null; // where the pen is, if it is down
let soon = 0;

function tell() {
  soon ||= setTimeout(() => {
    soon = 0;
    props.value = canvas.toDataURL("image/png");
    trigger("input");
  }, MOMENT);
}

function clear() {
  pen.fillStyle = "black";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  tell();
}

function draw(event) {
  const box = canvas.getBoundingClientRect();
  const to = [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
  pen.beginPath();
  pen.moveTo(...(last ?? to));
  pen.lineTo(...to);
  pen.stroke();
  last = to;
  tell();
}

pen.strokeStyle = "white";
pen.lineWidth = 20;
pen.lineCap = pen.lineJoin = "round";
canvas.onpointerdown = (event) => {
  canvas.setPointerCapture(event.pointerId);
  draw(event);
};
canvas.onpointermove = (event) => last && (event.getCoalescedEvents?.() ?? []).concat(event).forEach(draw);
canvas.onpointerup = canvas.onpointercancel = () => (last = null);
element.querySelector("button").onclick = clear;
clear();
