// Three integer layers in a row, 1x1 convolution, depthwise 3x3, 1x1 convolution (an inverted residual: MobileNetV2, arXiv 1801.04381,
// figure 3), on one map of bytes (H, W, C). The result is theirs one after another, bit for bit; what lies between does not leave the
// second cache.
//
// A task is a band of output rows, walked a few rows a step. The rows that the first layer has written stand in a ring: a step adds those
// that it needs and finds the last ones of the step before. Only at the borders between bands is a row or two computed twice.
//
// Floor: that of the three layers' operations; x read and y written once.
#pragma once

#include "cpu/ops/qdepthwise_conv2d.h"
#include "cpu/ops/qgemm.h"

namespace mvit {

struct QInvertedResidualProblem {
    // Rows are pixels. Where expand and reduce read and write each other's results, and the maps of depthwise, pointers are null; all that
    // is written in between is bytes.
    QGemmProblem expand;
    QDepthwiseConv2dProblem depthwise;  // one image
    QGemmProblem reduce;
};

Status qinverted_residual(const QInvertedResidualProblem& problem, int threads);

}  // namespace mvit
