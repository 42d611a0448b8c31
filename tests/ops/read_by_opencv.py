"""What OpenCV's Caffe importer makes of files that Cortado wrote; run by an interpreter that has OpenCV 4.

PYTHON tests/ops/read_by_opencv.py DEPLOY WEIGHTS INPUT.npy BLOB OUTPUT.npy
"""

import sys

import cv2
import numpy as np

deploy, weights, given, blob, out = sys.argv[1:]
net = cv2.dnn.readNetFromCaffe(deploy, weights)
net.setInput(np.load(given))
np.save(out, net.forward(blob))
