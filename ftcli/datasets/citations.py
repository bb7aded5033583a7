"""Source, citation and licence of the known data sets, written to SOURCE.txt."""

from __future__ import annotations

_IMAGES_UNCHANGED = "The images are unchanged; ftcli only put them into folders."
_WRITTEN_AS_PNG = (
    "The pixels are unchanged; ftcli wrote them as PNG files, numbered in the order of the data set's own files."
)
_LICENCE_UNSTATED = "the publisher states none, and the images belong to those who made them; use them for research"

CITATIONS = {
    "cifar10": f"""\
CIFAR-10: 60,000 colour images of 32 x 32 pixels in 10 classes, 50,000 in train and 10,000 in test.

Source: the binary version at https://www.cs.toronto.edu/~kriz/cifar.html.
Cite: A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images. Technical report, University of Toronto
(2009).
Licence: {_LICENCE_UNSTATED}.

{_WRITTEN_AS_PNG}
""",
    "cifar100": f"""\
CIFAR-100: 60,000 colour images of 32 x 32 pixels in 100 classes, 50,000 in train and 10,000 in test.

Source: the binary version at https://www.cs.toronto.edu/~kriz/cifar.html. The classes are the 100 fine ones.
Cite: A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images. Technical report, University of Toronto
(2009).
Licence: {_LICENCE_UNSTATED}.

{_WRITTEN_AS_PNG}
""",
    "dtd": f"""\
Describable Textures Dataset (DTD): 5,640 photographs of textures in 47 classes, a third each in train, val and test.

Source: https://www.robots.ox.ac.uk/~vgg/data/dtd/, release 1.0.1. The splits are the first of its ten.
Cite: M. Cimpoi, S. Maji, I. Kokkinos, S. Mohamed, A. Vedaldi: Describing Textures in the Wild. CVPR 2014.
Licence: made available to the research community for research; the images belong to those who made them.

{_IMAGES_UNCHANGED}
""",
    "eurosat": f"""\
EuroSAT: 27,000 satellite images of 64 x 64 pixels, red, green and blue of Sentinel-2, in 10 classes of land use.

Source: https://github.com/phelber/EuroSAT, from its copy at https://huggingface.co/datasets/torchgeo/eurosat. It has
no official split, so this is one folder for each class.
Cite: P. Helber, B. Bischke, A. Dengel, D. Borth: EuroSAT: A Novel Dataset and Deep Learning Benchmark for Land Use and
Land Cover Classification. IEEE Journal of Selected Topics in Applied Earth Observations and Remote Sensing (2019).
Licence: MIT; Copernicus Sentinel data are free and open, with their source named.

{_IMAGES_UNCHANGED}
""",
    "fashion-mnist": f"""\
Fashion-MNIST: 70,000 grey images of 28 x 28 pixels, articles of clothing in 10 classes, 60,000 in train and 10,000 in
test.

Source: https://github.com/zalandoresearch/fashion-mnist.
Cite: H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms.
arXiv 1708.07747 (2017).
Licence: MIT, copyright 2017 Zalando SE.

{_WRITTEN_AS_PNG}
The class T-shirt/top is called T-shirt-top, since the name of a folder cannot contain a slash.
""",
    "flowers102": f"""\
Oxford 102 Flowers: 8,189 photographs of 102 kinds of flowers that are common in Britain; 1,020 are in train, 1,020 in
val and 6,149 in test.

Source: https://www.robots.ox.ac.uk/~vgg/data/flowers/102/.
Cite: M.-E. Nilsback, A. Zisserman: Automated flower classification over a large number of classes. Indian Conference on
Computer Vision, Graphics and Image Processing (2008).
Licence: {_LICENCE_UNSTATED}.

{_IMAGES_UNCHANGED}
""",
    "food101": f"""\
Food-101: 101,000 photographs of 101 dishes, 750 of each in train and 250 in test. The labels of train are not cleaned.

Source: https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/.
Cite: L. Bossard, M. Guillaumin, L. Van Gool: Food-101 - Mining Discriminative Components with Random Forests. ECCV
2014.
Licence: the images come from foodspotting.com and belong to those who made them; uses beyond scientific fair use
need their consent.

{_IMAGES_UNCHANGED}
""",
    "hotdog": f"""\
Hotdog or not: 2,000 photographs in train and 800 in test, half of them of hotdogs.

Source: http://d2l-data.s3-accelerate.amazonaws.com/hotdog.zip, the archive of Dive into Deep Learning.
Cite: A. Zhang, Z. C. Lipton, M. Li, A. J. Smola: Dive into Deep Learning, https://d2l.ai, chapter 14.2.
Licence: {_LICENCE_UNSTATED}.

{_IMAGES_UNCHANGED}
""",
    "imagenette": f"""\
Imagenette: 13,394 photographs of ten classes of ImageNet that are easy to distinguish, 9,469 in train and 3,925 in val,
their shorter side of 320 pixels.

Source: https://github.com/fastai/imagenette, version 2.
Cite: J. Howard: Imagenette, https://github.com/fastai/imagenette; J. Deng, W. Dong, R. Socher, L.-J. Li, K. Li,
L. Fei-Fei: ImageNet: A Large-Scale Hierarchical Image Database. CVPR 2009.
Licence: Apache 2.0 for the selection; the images are ImageNet's, which are for research and teaching without profit.

{_IMAGES_UNCHANGED}
Folders have the names of the classes instead of WordNet numbers.
""",
    "kmnist": f"""\
Kuzushiji-MNIST: 70,000 grey images of 28 x 28 pixels, cursive Japanese characters in 10 classes, 60,000 in train and
10,000 in test.

Source: KMNIST Dataset, http://codh.rois.ac.jp/kmnist/, created by CODH, adapted from the Kuzushiji Dataset created by
NIJL and others, doi:10.20676/00000341.
Cite: T. Clanuwat, M. Bober-Irizar, A. Kitamoto, A. Lamb, K. Yamamoto, D. Ha: Deep Learning for Classical Japanese
Literature. arXiv 1812.01718 (2018).
Licence: Creative Commons Attribution-ShareAlike 4.0 (CC BY-SA 4.0). Name the source as above, and pass on what you make
of the images under the same licence.

{_WRITTEN_AS_PNG}
""",
    "mnist": f"""\
MNIST: 70,000 grey images of 28 x 28 pixels, handwritten digits, 60,000 in train and 10,000 in test.

Source: http://yann.lecun.com/exdb/mnist/, from its copy at https://ossci-datasets.s3.amazonaws.com/mnist/.
Cite: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied to document recognition. Proceedings
of the IEEE 86 (1998), 2278-2324.
Licence: Creative Commons Attribution-ShareAlike 3.0 (CC BY-SA 3.0), of Yann LeCun and Corinna Cortes; the digits come
from databases of NIST.

{_WRITTEN_AS_PNG}
""",
    "oxford-pets": f"""\
Oxford-IIIT Pet: 7,349 photographs of 37 breeds of cats and dogs, 3,680 in train (its trainval) and 3,669 in test.

Source: https://www.robots.ox.ac.uk/~vgg/data/pets/.
Cite: O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar: Cats and Dogs. CVPR 2012.
Licence: Creative Commons Attribution-ShareAlike 4.0 (CC BY-SA 4.0); the images belong to those who made them.

{_IMAGES_UNCHANGED}
""",
    "solar-cells": """\
Solar cells in electroluminescence images: 2,624 grey images of 300 x 300 pixels, one photovoltaic cell each.

Source: the ELPV dataset, https://github.com/zae-bayern/elpv-dataset, as in the Python package elpv-dataset.
Cite: S. Deitsch, V. Christlein, S. Berger, C. Buerhop-Lutz, A. Maier, F. Gallwitz, C. Riess:
Automatic classification of defective photovoltaic module cells in electroluminescence images.
Solar Energy 185 (2019), 455-468, https://doi.org/10.1016/j.solener.2019.02.067
Licence: Creative Commons Attribution-NonCommercial-ShareAlike 4.0 (CC BY-NC-SA 4.0),
https://creativecommons.org/licenses/by-nc-sa/4.0/. Name the authors, do not use the images commercially, and pass
on what you make of them under the same licence.

The images are unchanged; ftcli only put them into folders: a cell is defective where its defect probability,
as given by the experts of the data set, is above 0.5, else functional; a quarter of each group of equal probability and
cell type (monocrystalline or polycrystalline) is in test, drawn by file name, and the rest in train.
""",
}
"""The text by name of the data set."""
