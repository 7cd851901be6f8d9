"""How the files of an export are used: what its card says to somebody who has nothing else of ours."""

from pipeline.stages.artifacts import ExportedModel, PreparedData, TrainedModel

PLAIN = 0.1  # of full brightness: a mean that is nearer to the middle says neither light on dark nor dark on light
PICTURE = """import json, numpy as np, onnxruntime
from PIL import Image, ImageOps

image = ImageOps.exif_transpose(Image.open("image.png")).convert("{mode}")
image = ImageOps.fit(image, ({width}, {height}), Image.Resampling.BILINEAR)
images = np.array(image){axes}
logits, probabilities = onnxruntime.InferenceSession("model.onnx").run(None, {{"images": images}})
print(json.load(open("model.json", encoding="utf-8"))["classes"][probabilities[0].argmax()])"""
OPENED = {
    "safetensors": ("the weights alone", 'from safetensors.numpy import load_file\n\nweights = load_file("{file}")'),
    "onnx": (
        "for onnxruntime, in any language",
        'import numpy as np, onnxruntime\n\nsession = onnxruntime.InferenceSession("{file}")\n'
        'images = np.zeros((1, {shape}), np.uint8)\nlogits, probabilities = session.run(None, {{"images": images}})',
    ),
    "pt2": (
        "a program of torch.export",
        'import torch\n\nprogram = torch.export.load("{file}").module()\n'
        "logits, probabilities = program(torch.zeros(1, {shape}, dtype=torch.uint8))",
    ),
    "aotinductor": (
        "machine code, for torch without a compiler. **Set the variable, in C++ too**: without it nothing looks at what "
        "the program is given, images of another type or size get answers that mean nothing, and of smaller ones it reads past their end",
        'import os, torch\n\nos.environ["AOTI_RUNTIME_CHECK_INPUTS"] = "1"\n'
        'program = torch._inductor.aoti_load_package("{file}")\n'
        "logits, probabilities = program(torch.zeros(1, {shape}, dtype=torch.uint8))",
    ),
}
OPENED["int8"] = ("the same in 8 bits", OPENED["onnx"][1])


def use(data: PreparedData, trained: TrainedModel, exported: ExportedModel) -> str:
    """From a picture to the name of its class; then how to open each file, in five lines at most."""
    channels, height, width = trained.shape
    mode, axes = ("L", "[None, None]") if channels == 1 else ("RGB", ".transpose(2, 0, 1)[None].copy()")
    shape = ", ".join(map(str, trained.shape))
    opened = [
        f"`{made.file}`, {OPENED[name][0]}:\n\n{_python(OPENED[name][1].format(file=made.file, shape=shape))}"
        for name, made in exported.formats.items()
    ]
    return "\n\n".join(
        [
            f"Models take raw pixels, `images` uint8 [batch, {shape}] (channels, height, width), as many as you like; normalisation and "
            f"softmax are inside. `logits` and `probabilities` are float32 [batch, {len(trained.classes)}], in the order of the classes, "
            "which `model.json` holds besides the architecture, the mean and the standard deviation.",
            f"Prepare a picture as the images were that the model has learnt from: turn it as its EXIF data say, make it "
            f"{'grey' if channels == 1 else 'red, green and blue'}, scale it in its own proportions and cut it about its centre, until it "
            f"is {width} pixels wide and {height} high. {_polarity(data)}From a picture of 8 bits a pixel to the name of its class, with "
            "numpy, Pillow and onnxruntime alone, where these files are:",
            _python(PICTURE.format(mode=mode, axes=axes, width=width, height=height)),
            "The package that made the files gives the same for any number of pictures, of 16 bits too, whose upper eight count: "
            "`pipeline predict FOLDER IMAGE...`, FOLDER being the one that this card is in.",
            "To open each of the files; in the place of the zeros put the `images` of above, for torch as `torch.from_numpy(images)`:",
            *opened,
        ]
    )


def _python(code: str) -> str:
    return f"```python\n{code}\n```"


def _polarity(data: PreparedData) -> str:
    """Of grey images, whether they are light on dark, as far as their mean tells; nobody inverts those that are not."""
    if data.shape[0] != 1:
        return ""
    mean = data.mean[0]
    found = "" if abs(mean - 0.5) < PLAIN else f", so mostly {'light on dark' if mean < 0.5 else 'dark on light'}"
    return (
        f"Those were {mean:.2f} bright in the mean, where 0 is black and 1 white{found}; a picture that is the other way round, as ink on "
        "paper may be, has to be inverted by `ImageOps.invert(image)`: nothing else does it. "
    )
