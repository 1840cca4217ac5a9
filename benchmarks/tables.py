"""The figures to beat: the authors' code on two cores, one thread (ALGORITHMS.md, section 2)."""

#: network -> sparsity -> column -> (accuracy %, solver CPU seconds, Q); None where it was not recorded.
AUTHORS = {
    "MLPNet": {
        0.5: {"MP": (93.93,), "BSO": (94.03, 0.24), "LS": (93.93, 0.75), "CHITA": (93.95, 3.6)},
        0.7: {"MP": (93.62,), "BSO": (93.93,), "LS": (93.76,), "CHITA": (93.70,)},
        0.8: {"MP": (92.89,), "BSO": (93.68,), "LS": (93.49,), "CHITA": (93.43,)},
        0.9: {"MP": (90.30,), "BSO": (92.47, 0.11), "LS": (92.53, 0.09), "CHITA": (91.97, 1.6)},
        0.95: {"MP": (83.64,), "BSO": (84.76,), "LS": (87.08,), "CHITA": (86.74,)},
        0.98: {"MP": (32.25,), "BSO": (31.08, 0.04), "LS": (38.54, 0.02), "CHITA": (46.54, 1.3)},
    },
    "ResNet20": {
        0.5: {"MP": (88.9,), "BSO": (90.0, 1.9, 0.02043), "LS": (90.7, 5.0, 0.01927), "CHITA": (90.0, 30.8, 0.01952)},
        0.6: {"MP": (83.6,), "BSO": (88.4, 1.6, 0.03869), "LS": (87.6, 3.5, 0.03585), "CHITA": (86.5, 26.9, 0.03650)},
        0.7: {"MP": (75.7,), "BSO": (80.0, 1.3, 0.06847), "LS": (78.8, 2.5, 0.06246), "CHITA": (78.1, 25.7, 0.06346)},
        0.8: {"MP": (55.3,), "BSO": (67.0, 1.1, 0.11943), "LS": (51.4, 2.3, 0.10536), "CHITA": (52.3, 24.0, 0.10710)},
        0.9: {"MP": (11.9,), "BSO": (19.7, 0.8, 0.21884), "LS": (10.1, 0.8, 0.17961), "CHITA": (11.0, 20.0, 0.18315)},
    },
}

#: Multi-stage runs of the authors' code: network -> sparsity -> column -> accuracy %.
MULTI_STAGE = {
    "MLPNet": {
        0.5: {"LS++": 96.08, "CHITA++": 95.38},
        0.7: {"LS++": 96.07, "CHITA++": 95.29},
        0.8: {"LS++": 95.90},
        0.9: {"LS++": 95.81, "CHITA++": 94.97},
        0.95: {"LS++": 95.34, "CHITA++": 93.92},
        0.98: {"LS++": 88.76, "CHITA++": 90.25},
    },
    "ResNet20": {0.7: {"BSO, 8 stages": 85.7}, 0.9: {"BSO, 8 stages": 53.6}},
}

#: What is to be reached: network -> kind -> sparsity -> accuracy %, mean of three seeds (ALGORITHMS.md, section 2).
BARS = {
    "MLPNet": {
        "one shot": {0.9: 92.3, 0.95: 88.0, 0.98: 50.0},
        "multi-stage": {0.9: 95.81, 0.95: 95.5, 0.98: 92.0},
    },
    "ResNet20": {
        "one shot": {0.5: 90.7, 0.6: 88.4, 0.7: 80.0, 0.8: 70.0, 0.9: 19.7},
        "multi-stage": {0.7: 85.7, 0.9: 53.6},
    },
}
