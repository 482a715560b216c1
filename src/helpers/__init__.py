"""The code that the chapters of this book import. Read the modules in this order:

- `models`: images in [0, 1] in, logits out; the ImageNet classifier and the small network for digits
- `data`: the book's photographs, a reader's own image, handwritten digits
- `perturbations`: what counts as a small change: the sets and their geometry
- `attacks`: losses, FGSM and PGD
- `risk`: risk and adversarial risk, with intervals that say which side they bound
- `report`: `evaluate`, the book's whole protocol for anybody's classifier; `protocol` is what it runs on a batch of
  images, `sheet` is what its report looks like
- `training`: the training loop, with an attack or a loss of your own, and the networks of Part II
- `distance`: how small a perturbation fools the model: bisection over eps with any attack, DeepFool, DDN
- `blackbox`: Square, a random search without gradients
- `adaptive`: what turns a standard attack into one made for a defence
- `bounds`: upper bounds of the margin: intervals (also to train with), CROWN, optimised slopes
- `exact`: branch and bound on these bounds, and the same question as a mixed-integer program
- `smoothing`: the vote under Gaussian noise, and the l2 radius that it proves
- `spatial`: pictures rotated and shifted, the worst placement of a grid, and patches
- `tokens`: text as tokens, and a classifier of bytes
- `stored`: results of experiments that take too long for a chapter
- `plots`, `widgets`: the figures, still and interactive; `explorer`: how the latter follow their controls
- `exercises`: the `check_...` functions that the exercises call

Importing any of them needs no network, and heavy libraries are imported only by the functions that use them.
"""
